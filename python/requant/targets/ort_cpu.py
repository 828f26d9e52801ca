"""onnxruntime on CPUs: what its optimizer really turns into integer kernels (version 1.31, opset 13 to 26).

Found by looking, and held against the installed version by ``tests/unit/targets/test_ort_cpu.py`` and
``tests/unit/onnx/test_export.py``: a model for each row, its optimized graph saved.
"""

from __future__ import annotations

from requant.targets.spec import FloatWins, Target

TARGET = Target(
    name="ort-cpu",
    fused=frozenset(
        {
            "Conv",
            "Gemm",
            "MatMul",
            "Add",
            "Mul",
            "Where",
            "Concat",
            "Sigmoid",
            "LeakyRelu",
            "Softmax",
            "AveragePool",
            "GlobalAveragePool",
        }
    ),
    float_output=frozenset({"Gemm", "MatMul"}),
    saturating_adds=frozenset({"HardSigmoid"}),
    moves=frozenset(
        {
            "MaxPool",
            "Reshape",
            "Flatten",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "Gather",
            "GatherElements",
            "ReduceMax",
            "ReduceMin",
            "Expand",
            "Tile",
            "DepthToSpace",
            "Resize",
        }
    ),
    # int8 is turned to uint8 where a single Q and DQ stand, and stays float elsewhere, at Add, Mul, Concat and Where
    # among others, unless session.qdqisint8allowed is set, as on arm64.
    activations=("uint8",),
    float_activations=("int8", "uint16", "int16"),
    operators=True,
    pair_products=True,
    requantizes=frozenset({"Conv", "ConvTranspose", "Gemm"}),
    one_gelu=True,
    # ConvInteger takes 3 to 14 times as long as float; GRU has no integer kernel.
    dynamic={"Gemm": 1 << 13, "MatMul": 1 << 13, "LSTM": 1 << 16},
    # An integer convolution copies every window before it multiplies, and few weights do not pay for that.
    float_wins=FloatWins(held=1 << 17, channels=3, weights=864),
    # Where channels are not last an integer MaxPool takes forty times as long as a float one.
    behind_convolutions={"MaxPool": 1 << 14},
    keeps_layout=frozenset(
        {
            "Add",
            "AveragePool",
            "Concat",
            "GlobalAveragePool",
            "LeakyRelu",
            "MaxPool",
            "Mul",
            "Resize",
            "Sigmoid",
            "Slice",
        }
    ),
)

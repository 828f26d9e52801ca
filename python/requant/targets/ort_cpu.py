"""onnxruntime on CPUs: what its optimizer really turns into integer kernels (version 1.31, opset 13 to 26).

Found by looking, and held against the installed version by ``tests/unit/targets/test_ort_cpu.py`` and
``tests/unit/onnx/test_export.py``: a model for each row, its optimized graph saved.
"""

from __future__ import annotations

from requant.targets.spec import Target

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
)

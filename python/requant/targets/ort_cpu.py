"""onnxruntime on CPUs: what its optimizer really turns into integer kernels (version 1.31, opset 13 to 26).

Found by looking, and held against the installed version by ``tests/unit/targets/test_ort_cpu.py`` and
``tests/unit/onnx/test_export.py``: a model for each row, its optimized graph saved.
"""

from __future__ import annotations

from requant.targets.spec import Cost, Target

# On floats and on integers, on one core with AVX2 (benches/python/op_costs.py prints them). An integer convolution
# copies every window before it multiplies, group by group, so neither few output channels nor many groups pay for it; a
# float one copies none, and takes the addition and the activation behind it along. The integer kernels of AveragePool,
# Resize and Softmax are slow.
_COSTS = {
    "Conv": (
        Cost(window=0.25, product=0.0235, lanes=8),
        Cost(output=0.4, tap=2.2, group=6.0, window=0.08, product=0.011, lanes=16),
    ),
    "depthwise Conv": (Cost(window=0.075), Cost(output=0.4, window=0.09)),
    "Gemm": (Cost(product=0.025), Cost(product=0.0135)),
    "MatMul": (Cost(product=0.025), Cost(product=0.0135)),
    "Add": (Cost(0.1), Cost(0.25)),
    "Mul": (Cost(0.3), Cost(0.4)),
    "Sigmoid": (Cost(0.7), Cost(0.5)),
    "HardSigmoid": (Cost(0.1), Cost(0.25)),
    "LeakyRelu": (Cost(0.2), Cost(0.45)),
    "Softmax": (Cost(1.0), Cost(5.6)),
    "Softmax across": (Cost(15.0), Cost(5.5)),
    "Concat": (Cost(0.3), Cost(0.5)),
    "AveragePool": (Cost(0.5, window=0.05), Cost(5.0, window=1.0)),
    "GlobalAveragePool": (Cost(window=0.23), Cost(window=0.1)),
    "Resize": (Cost(0.25), Cost(2.0)),
}

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
    joins_biases=True,
    skips_clamps=True,
    folds_constants=True,
    # ConvInteger takes 3 to 14 times as long as float; GRU has no integer kernel.
    dynamic={"Gemm": 1 << 13, "MatMul": 1 << 13, "LSTM": 1 << 16},
    costs=_COSTS,
    crossing=0.6,
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

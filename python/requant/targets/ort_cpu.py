"""onnxruntime on CPUs: what its optimizer really turns into integer kernels (version 1.31, opset 13 to 26).

Found by looking, and held against the installed version by ``tests/unit/targets/test_ort_cpu.py`` and
``tests/unit/onnx/test_export.py``: a model for each row, its optimized graph saved.
"""

from __future__ import annotations

from requant.targets.spec import Cost, Costs, Target

# On floats and on integers, on one core (benches/python/op_costs.py prints them). An integer convolution copies every
# window before it multiplies, group by group, so neither few output channels nor many groups pay for it; a float one
# copies none where its groups are whole blocks, and takes the addition and the activation behind it along. Along a
# single axis it copies them too, and multiplies whole vectors of positions, sample by sample. The integer kernels of
# AveragePool, Resize and Softmax are slow.
_AVX2 = Costs(
    {
        "Conv": (
            Cost(window=0.25, product=0.0235, lanes=8),
            Cost(output=0.4, tap=2.2, group=6.0, window=0.08, product=0.011, lanes=16),
        ),
        "signal Conv": (
            Cost(window=0.25, product=0.0235, places=16),
            Cost(output=0.1, tap=0.15, window=0.05, product=0.011, lanes=16),
        ),
        "depthwise Conv": (Cost(window=0.075), Cost(output=0.4, window=0.09, rest=0.3, lanes=16)),
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
    },
    Cost(0.6, call=8000),
)

# With AVX-512 and VNNI a product of integers costs a quarter of one of floats, not half. What is left are calls, copies
# and conversions, which weigh the more. Of a call 1.3 us (float) and 1.9 us (integers) were the profile's own, by what
# whole models take. An activation or an addition behind a float convolution is no call of its own.
_VNNI = Costs(
    {
        "Conv": (
            Cost(0.031, call=900, window=0.059, product=0.0072, lanes=16),
            Cost(0.03, call=1500, tap=1.0, window=0.008, product=0.0017, lanes=16),
        ),
        "narrow Conv": (
            Cost(0.031, call=900, window=0.059, product=0.0072, lanes=16),
            Cost(0.25, call=1500, tap=1.0, window=0.008, product=0.0017, lanes=16),
        ),
        "signal Conv": (
            Cost(0.031, call=900, window=0.15, product=0.008, places=16),
            Cost(0.03, call=1500, tap=0.1, window=0.03, product=0.0018, lanes=16),
        ),
        "grouped Conv": (
            Cost(0.031, tap=4.6, row=2.2, window=0.061, product=0.0038, lanes=8),
            Cost(0.26, call=1400, group=2.7, product=0.0011, lanes=16),
        ),
        "depthwise Conv": (
            Cost(0.064, call=1100, window=0.009),
            Cost(0.066, call=1200, tap=0.42, window=0.013, rest=0.26, lanes=16),
        ),
        "Gemm": (Cost(call=600, product=0.008), Cost(call=800, product=0.0026)),
        "MatMul": (Cost(call=600, product=0.008), Cost(call=800, product=0.0026)),
        "Add": (Cost(), Cost(0.1, call=600)),
        "Mul": (Cost(0.11, call=400), Cost(0.18, call=600)),
        "Sigmoid": (Cost(0.22), Cost(0.25, call=300)),
        "HardSigmoid": (Cost(0.05), Cost(0.1, call=600)),
        "LeakyRelu": (Cost(0.18), Cost(0.25, call=300)),
        "Softmax": (Cost(0.6, call=2000), Cost(2.3, call=600)),
        "Softmax across": (Cost(5.0, call=2000), Cost(2.2, call=600)),
        "Concat": (Cost(0.06, call=400), Cost(0.25, call=700)),
        "AveragePool": (Cost(0.12, call=400), Cost(0.5, call=300, window=0.4)),
        "GlobalAveragePool": (Cost(call=500, window=0.04), Cost(call=500, window=0.03)),
        "Resize": (Cost(0.05, call=400), Cost(0.58, call=300)),
    },
    Cost(0.4, call=2500),
    bare=Cost(0.055, call=1000),
)

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
    costs={"avx2": _AVX2, "vnni": _VNNI},
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

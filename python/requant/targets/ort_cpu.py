"""onnxruntime on CPUs: what its optimizer really turns into integer kernels (version 1.31, opset 13 to 26)."""

from __future__ import annotations

from requant.targets.spec import Target

TARGET = Target(
    name="ort-cpu",
    fused=frozenset(
        {"Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool"}
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
            "Expand",
            "Tile",
            "DepthToSpace",
            "Resize",
        }
    ),
    activations=frozenset({"uint8"}),  # int8 is fused only where session.qdqisint8allowed is set, as on arm64
    pair_products=True,
    one_gelu=True,
    # ConvInteger takes 3 to 14 times as long as float; GRU has no integer kernel.
    dynamic={"Gemm": 1 << 13, "MatMul": 1 << 13, "LSTM": 1 << 16},
)

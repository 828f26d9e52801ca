"""NVIDIA TensorRT with explicit quantization: Q/DQ in the model say what runs on integers.

Quantization is symmetric, and zero points are 0; activations are int8 with one scale, weights int8 with a scale for
each output channel. Biases stay float, as its importer wants them. Pointwise ops without Q/DQ (activations,
normalizations) are fused in float behind the products.

Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html and
.../quantized-types-explicit-quantization.html (quantization scheme, granularity, Q/DQ placement).
"""

from __future__ import annotations

from requant.targets.spec import Target

TARGET = Target(
    name="tensorrt",
    fused=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Concat", "AveragePool", "GlobalAveragePool"}),
    moves=frozenset(
        {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Resize"}
    ),
    float_output=frozenset({"Gemm", "MatMul"}),
    activations=("int8",),
    symmetric=True,
    weights=("int8",),
    quantizes_bias=False,
)

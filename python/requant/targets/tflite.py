"""TensorFlow Lite's 8-bit quantization specification, as a model that is converted for its interpreter must obey it.

Activations are int8 with one scale and any zero point; weights are int8 in -127..127 with zero point 0 and a scale for
each output channel; biases are int32 in steps of the product of both scales. Pooling, joining and moving ops have one
scale for their inputs and outputs; those of bounded functions are given.

Source: https://www.tensorflow.org/lite/performance/quantization_spec (int8 quantized operator specifications).
"""

from __future__ import annotations

from requant.targets.spec import Target
from requant.types import FixedParams

#: Ops whose inputs and outputs have the same scale and zero point, beside those that only move values.
ONE_SCALE = frozenset({"AveragePool", "Concat"})
#: Scale and zero point of the outputs of softmax, logistic and tanh.
FIXED_OUTPUTS = {
    "Softmax": FixedParams(1 / 256, -128),
    "Sigmoid": FixedParams(1 / 256, -128),
    "Tanh": FixedParams(1 / 128, 0),
}

_MOVES = frozenset(
    {
        "MaxPool",
        "ReduceMax",
        "ReduceMin",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Gather",
        "SpaceToDepth",
        "Resize",
    }
)

TARGET = Target(
    name="tflite",
    fused=frozenset(
        {
            "Conv",
            "ConvTranspose",
            "Gemm",
            "MatMul",
            "Add",
            "Sub",
            "Mul",
            "Concat",
            "Sigmoid",
            "Softmax",
            "Tanh",
            "AveragePool",
            "GlobalAveragePool",
        }
    ),
    moves=_MOVES,
    activations=("int8",),
    weights=("int8",),
    one_scale=ONE_SCALE | _MOVES,
    fixed_outputs=FIXED_OUTPUTS,
    everything=True,
)

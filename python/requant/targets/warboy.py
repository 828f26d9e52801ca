"""FuriosaAI Warboy, an NPU for int8 only.

Its quantization follows TensorFlow Lite's 8-bit specification: activations are int8 with one scale and any zero point,
weights and biases of convolutions have a scale for each output channel, those of products one. ``requant edit`` lets
the model take and give integers.

Source: https://developer.furiosa.ai/docs/latest/en/software/quantization.html and
https://developer.furiosa.ai/docs/v0.9.0/en/npu/supported_operators.html (operators accelerated on NPU).
"""

from __future__ import annotations

from requant.targets.spec import Target
from requant.targets.tflite import FIXED_OUTPUTS, ONE_SCALE

_MOVES = frozenset(
    {
        "MaxPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Unsqueeze",
        "Slice",
        "Split",
        "Expand",
        "DepthToSpace",
        "SpaceToDepth",
        "Resize",
    }
)

TARGET = Target(
    name="warboy",
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
            "LeakyRelu",
            "Elu",
            "Gelu",
            "AveragePool",
            "GlobalAveragePool",
        }
    ),
    moves=_MOVES,
    activations=("int8",),
    weights=("int8",),
    per_channel=frozenset({"Conv", "ConvTranspose"}),
    one_scale=ONE_SCALE | _MOVES,
    fixed_outputs=FIXED_OUTPUTS,
    everything=True,
)

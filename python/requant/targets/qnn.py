"""Qualcomm's Hexagon Tensor Processor, through onnxruntime's QNN provider or Qualcomm AI Engine Direct.

The whole model is quantized: what is float does not run there. Activations are uint8 or uint16 with one scale, weights
int8 or uint8, those of convolutions with a scale for each output channel, biases int32.

Source: https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html (supported operators, quantized
models) and Qualcomm's operator definitions for HTP, https://docs.qualcomm.com (80-63442-10, HtpOpDefSupplement).
"""

from __future__ import annotations

from requant.targets.spec import Target

TARGET = Target(
    name="qnn",
    fused=frozenset(
        {
            "Conv",
            "ConvTranspose",
            "Gemm",
            "MatMul",
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Where",
            "Concat",
            "Sigmoid",
            "HardSigmoid",
            "Softmax",
            "Tanh",
            "LeakyRelu",
            "PRelu",
            "Elu",
            "Gelu",
            "HardSwish",
            "AveragePool",
            "GlobalAveragePool",
        }
    ),
    moves=frozenset(
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
            "GatherElements",
            "Expand",
            "Tile",
            "DepthToSpace",
            "SpaceToDepth",
            "Resize",
        }
    ),
    activations=("uint8", "uint16"),
    per_channel=frozenset({"Conv", "ConvTranspose"}),
    everything=True,
)

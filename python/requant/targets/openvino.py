"""OpenVINO on CPUs: Q/DQ become FakeQuantize, which its low-precision transformations move through the graph.

Activations are uint8 or int8 with one scale, symmetric or not; weights are symmetric with a scale for each output
channel; the inputs and the output of Concat share one scale; biases stay float.

Source: NNCF's description of this device, https://github.com/openvinotoolkit/nncf (common/hardware/configs/cpu.json:
quantizable operations, and ``"scales": "unified"`` of Concat), and
https://docs.openvino.ai/latest/openvino_docs_OV_UG_lpt.html.
"""

from __future__ import annotations

from requant.targets.spec import Target

TARGET = Target(
    name="openvino",
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
            "Concat",
            "AveragePool",
            "GlobalAveragePool",
        }
    ),
    moves=frozenset(
        {
            "MaxPool",
            "ReduceMax",
            "Reshape",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Split",
            "Slice",
            "Transpose",
            "Tile",
            "Expand",
            "Resize",
            "Gather",
        }
    ),
    float_output=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    activations=("uint8", "int8"),
    quantizes_bias=False,
    one_scale=frozenset({"Concat"}),
)

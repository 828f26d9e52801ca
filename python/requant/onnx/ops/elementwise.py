"""Ops on each element: they follow their neighbours into integers."""

from __future__ import annotations

from requant.onnx.ops.spec import Kind, OpSpec, Role
from requant.types import Range

_BOTH = {0: Role.ACTIVATION, 1: Role.ACTIVATION}

ROWS = (
    OpSpec(("Add", "Mul", "Sub", "Div"), Kind.FOLLOW, _BOTH),
    OpSpec(("Sigmoid", "HardSigmoid", "Softmax"), Kind.FOLLOW, fixed_range=Range(0.0, 1.0)),
    OpSpec(("Tanh",), Kind.FOLLOW, fixed_range=Range(-1.0, 1.0)),
    OpSpec(("LeakyRelu", "PRelu", "Elu", "Gelu", "HardSwish"), Kind.FOLLOW),
    OpSpec(("Where",), Kind.FOLLOW, {1: Role.ACTIVATION, 2: Role.ACTIVATION}),
    OpSpec(("Relu", "Clip"), Kind.CLAMP),
)

"""Pooling and joining."""

from __future__ import annotations

from requant.onnx.ops.spec import Kind, OpSpec, Tie

ROWS = (
    OpSpec(("AveragePool", "GlobalAveragePool"), Kind.FOLLOW),
    OpSpec(("MaxPool",), Kind.MOVE, tie=Tie.SAME_AS_INPUT),
    OpSpec(("Concat",), Kind.FOLLOW, variadic=True),
)

"""The op table: a new op is a row in one of these files, a new file is a line here."""

from __future__ import annotations

from requant.onnx.ops import compute, elementwise, movement, pooling
from requant.onnx.ops.spec import Kind, OpSpec, Role, Tie, WeightAxis

ROWS: tuple[OpSpec, ...] = (*compute.ROWS, *elementwise.ROWS, *pooling.ROWS, *movement.ROWS)
OPS: dict[str, OpSpec] = {op_type: row for row in ROWS for op_type in row.op_types}

__all__ = ["OPS", "ROWS", "Kind", "OpSpec", "Role", "Tie", "WeightAxis"]

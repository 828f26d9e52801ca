"""The op table: a new op is a row in one of these files, a new file is a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.onnx.ops import compute, elementwise, movement, pooling, recurrent
from requant.onnx.ops.spec import Kind, OpSpec, Role, Tie, WeightAxis

if TYPE_CHECKING:
    import onnx_ir as ir

ROWS: tuple[OpSpec, ...] = (
    *compute.ROWS,
    *recurrent.ROWS,
    *elementwise.ROWS,
    *pooling.ROWS,
    *movement.ROWS,
)
OPS: dict[str, OpSpec] = {op_type: row for row in ROWS for op_type in row.op_types}


def row_of(node: ir.Node) -> OpSpec | None:
    """The row of a node's op; None where it has none, or not in this form.

    Resize only moves values where it takes the nearest one and nothing from outside.
    """
    if node.domain != "":
        return None
    if node.op_type == "Resize":
        attributes = node.attributes
        nearest = attributes.get_string("mode", "nearest") == "nearest"
        cropped = attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        if not nearest or cropped:
            return None
    return OPS.get(node.op_type)


__all__ = ["OPS", "ROWS", "Kind", "OpSpec", "Role", "Tie", "WeightAxis", "row_of"]

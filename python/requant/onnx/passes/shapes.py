"""Shapes and types of every tensor, as far as ONNX can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes import common

if TYPE_CHECKING:
    import onnx_ir as ir


def infer(model: ir.Model) -> int:
    """Infer shapes and types; returns how many tensors became known. What stays unknown makes the plan more careful."""
    before = _known(model)
    # Without data propagation: it computes the contents of tensors, of any size that the model asks for.
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    return max(_known(model) - before, 0)


def _known(model: ir.Model) -> int:
    return sum(v.shape is not None and v.dtype is not None for node in model.graph for v in node.outputs)

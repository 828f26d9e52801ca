"""Say pooling where pooling is meant.

Exporters write the squeeze of a squeeze-and-excitation block as ReduceMean over all spatial axes. That is
GlobalAveragePool, which runtimes run on integers and ReduceMean they do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.onnx.graph import constant, int_attribute, rank

if TYPE_CHECKING:
    import onnx_ir as ir

_FIRST_SPATIAL = 2
#: Of rank 3 a mean over the last axis is a normalization of tokens far more often than a pooling of signals.
_IMAGE = 4


def recognise_pooling(model: ir.Model) -> int:
    """Turn ReduceMean over exactly the spatial axes into GlobalAveragePool; returns how many."""
    found = 0
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        dims = rank(source)
        if node.op_type != "ReduceMean" or node.domain != "" or dims is None or dims < _IMAGE:
            continue
        if source is None or source.dtype is None or not source.dtype.is_floating_point():
            continue
        axes = _axes(node)
        spatial = set(range(_FIRST_SPATIAL, dims))
        if axes is not None and {a % dims for a in axes} == spatial and int_attribute(node, "keepdims", 1):
            node.op_type = "GlobalAveragePool"
            node.attributes.clear()
            node.resize_inputs(1)
            found += 1
    return found


def _axes(node: ir.Node) -> list[int] | None:
    """The axes, an attribute before opset 18 and an input since; None where they are unknown or all."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return list(attribute.as_ints())
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else [int(a) for a in array.reshape(-1)]

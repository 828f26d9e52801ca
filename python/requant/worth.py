"""Where integers would cost more than they save, judged from shapes and from what a target says of its kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir  # noqa: TID251 - for annotations only

    from requant.targets import Target

_SPATIAL = 2  # the first axis behind batch and channels


def wins_in_float(node: ir.Node, target: Target) -> bool:
    """Whether ``node`` is a convolution of a shape that ``target`` runs faster in float, as its ``float_wins`` says.

    An image of free size counts as large.
    """
    limits = target.float_wins
    if limits is None or node.op_type != "Conv":
        return False
    data, weight = node.inputs[0], node.inputs[1]
    kernel, weights = elements(weight, _SPATIAL), elements(weight)
    channels = data.shape[1] if data is not None and data.shape is not None and len(data.shape) > 1 else None
    if kernel is None or weights is None or not isinstance(channels, int):
        return False
    positions = elements(node.outputs[0], _SPATIAL)
    held = math.inf if positions is None else positions * kernel * channels
    return held >= limits.held and channels <= limits.channels and weights <= limits.weights


def elements(value: ir.Value | None, first: int = 0) -> int | None:
    """Elements of ``value`` from axis ``first`` on, a free batch counted as 1; None where a size is not known."""
    if value is None or value.shape is None:
        return None
    sizes = [1 if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(value.shape)]
    known = [size for size in sizes[first:] if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes[first:]) else None

"""The weight of a layer as a matrix of rows, in the order in which a kernel multiplies its terms, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from requant.planning.plan import NodePlan

    Array = NDArray[Any]


def as_rows(weight: Array, node: NodePlan) -> Array:
    """``weight`` as [outputs, terms].

    The input channel is innermost for convolutions; of a stack of matrices one comes after the other.
    """
    if node.op_type == "MatMul":
        matrices = weight.reshape(-1, 1) if weight.ndim == 1 else weight
        return np.swapaxes(matrices, -1, -2).reshape(-1, matrices.shape[-2])
    rows = np.moveaxis(weight, 1, -1) if node.op_type == "Conv" else np.moveaxis(weight, node.weight_axis or 0, 0)
    return rows.reshape(rows.shape[0], -1)


def from_rows(rows: Array, node: NodePlan, shape: tuple[int, ...]) -> Array:
    """What ``as_rows`` made ``rows`` of, a weight of that shape."""
    if node.op_type == "Conv":
        return np.ascontiguousarray(np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1))
    if node.op_type == "MatMul" and len(shape) != 2:
        stack = rows.reshape(*shape[:-2], *reversed(shape[-2:])) if shape[1:] else rows.reshape(1, -1)
        return np.ascontiguousarray(np.swapaxes(stack, -1, -2)).reshape(shape)
    axis = node.weight_axis or 0
    others = tuple(size for i, size in enumerate(shape) if i != axis)
    return np.ascontiguousarray(np.moveaxis(rows.reshape(shape[axis], *others), 0, axis))

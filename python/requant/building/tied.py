"""Tables of embeddings that a product multiplies as well, as the head of a language model does: integers for both.

The two are one matrix, or the transposed of each other, but for gains of columns that were moved into the product
(``passes.norms``, ``transforms.smooth``). The product's integers serve the table, too: each row of the one is a column
of the other with the same scale, and the file holds them once (``onnx.shared``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.building.dynamic import IntegerWeight
from requant.onnx.nodes import constant
from requant.onnx.ops import OPS
from requant.planning.plan import Form
from requant.types import QuantType

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.building.dynamic import IntegerWeights
    from requant.building.resolve import Resolved
    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan


def tie_tables(graph: Graph, plan: QuantPlan, resolved: Resolved, weights: IntegerWeights) -> IntegerWeights:
    """``weights``, with tables of ``plan`` in the integers of the products that share their reals."""
    nodes = {node.name: node for node in graph.all_nodes()}
    tied = {}
    for planned in plan.dynamic:
        if not OPS[planned.op_type].lookup or planned.form is not Form.STORED:
            continue
        (table,) = planned.weights
        value = nodes[planned.name].inputs[table.index]
        reals = constant(value)
        if reals is None or reals.ndim != 2 or table.axes != (0,):
            continue
        for other, integers, scale in _products(nodes, plan, resolved, weights, reals.shape):
            along = scale.shape == (len(reals), 1)
            weight = constant(other)
            gain = None if weight is None else _gain(reals, weight if along else weight.T)
            if gain is not None:
                rows = integers if along else integers.T
                stored = rows if graph.scratch is None else graph.tensor(rows, table.name)
                moved = gain if np.any(gain != 1) else None
                tied[planned.name, table.index] = IntegerWeight(stored, scale.reshape(-1, 1), 0, moved)
                break
    return {**weights, **tied} if tied else weights


def _products(
    nodes: dict[str | None, ir.Node],
    plan: QuantPlan,
    resolved: Resolved,
    weights: IntegerWeights,
    shape: tuple[int, ...],
) -> Iterator[tuple[ir.Value | None, NDArray[Any], NDArray[np.float32]]]:
    """Weights of products, int8, that may be a table of ``shape``: what holds the reals, integers, scale.

    Scale is ``[rows, 1]`` where integers are ``[rows, columns]``, ``[1, rows]`` where they are ``[columns, rows]``.
    """
    for node in plan.nodes:
        tensor = resolved.weights.get(node.name)
        axis = node.weight_axis
        if tensor is None or axis is None or tensor.params.scheme.dtype is not QuantType.INT8:
            continue
        if tensor.params.scale.size == shape[0] and _crosses(tensor.data.shape, shape, axis):
            yield nodes[node.name].inputs[1], tensor.data, np.moveaxis(tensor.params.scale[None], 0, 1 - axis)
    for planned in plan.dynamic:
        for weight in planned.weights if not OPS[planned.op_type].lookup else ():
            found = weights[planned.name, weight.index]
            if found.zero_point == 0 and len(weight.axes) == 1 and _crosses(found.data.shape, shape, weight.axes[0]):
                yield nodes[planned.name].inputs[weight.index], found.data, found.scale


def _crosses(weight: tuple[int, ...], table: tuple[int, ...], axis: int) -> bool:
    """Whether a weight with scales along ``axis`` may be a table with a scale for each row."""
    return len(weight) == 2 and weight == (table if axis == 0 else table[::-1])


def _gain(table: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.float32] | None:
    """``[1, columns]`` by which ``weight`` is to be multiplied to be ``table``; None if there is nothing such."""
    if weight.shape != table.shape or not _alike(table[:1], weight[:1]):
        return None
    largest = np.argmax(np.abs(table), axis=0)[None]
    over = np.take_along_axis(table, largest, 0), np.take_along_axis(weight, largest, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(over[1] == 0, 1, over[0] / over[1]).astype(np.float32)
    return gain if np.isfinite(gain).all() and np.array_equal(weight * gain, table) else None


def _alike(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two rows may differ by gains alone, which are powers of two: most others do not get that far."""
    return np.array_equal(np.frexp(a)[0], np.frexp(b)[0])

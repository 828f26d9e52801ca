"""What must stay float for the sake of a logarithm.

Rounding to integers errs by as much near zero as anywhere else. A logarithm asks for the relative error there, and is
infinite where rounding gives zero: spectrograms, whose quiet bins lie far below the step of the loud ones, lose them.
So what a Log reads stays float, back through ops that make small values of small ones, filters without bias among them,
to where values are small for another reason: a bias, or a probability. ``log(1 + x)`` is as smooth as ``x``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from requant.onnx.names import name_of
from requant.onnx.nodes import constant
from requant.onnx.ops import Kind, row_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx_ir as ir  # noqa: TID251 - for annotations only

REASON = "a Log reads what it gives, and makes small errors near zero large"

#: Besides those that move values, and products. Constants that are added are there to keep the logarithm finite.
_SMALL_FROM_SMALL = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "Div",
        "Identity",
        "Max",
        "Mul",
        "Neg",
        "Pad",
        "Pow",
        "ReduceL1",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Relu",
        "Sqrt",
        "Sub",
        "Sum",
    }
)
_BIAS = 2


def before_logarithms(nodes: Iterable[ir.Node]) -> dict[str, str]:
    """The nodes whose small results a Log reads, each with the reason to leave it in float."""
    waiting = [node for node in nodes if node.op_type == "Log" and not node.domain]
    found: dict[ir.Node, None] = {}
    while waiting:
        for value in _small_inputs(waiting.pop()):
            node = value.producer()
            if node is not None and node not in found and _is_small(node):
                found[node] = None
                waiting.append(node)
    return {name_of(node): REASON for node in found}


def _is_small(node: ir.Node) -> bool:
    """Whether values near zero that ``node`` gives may matter to a logarithm of them."""
    if node.op_type == "Add" and any(_least(value) >= 1 for value in node.inputs):
        return False
    row = row_of(node)
    rounded = row is not None and (row.kind in (Kind.COMPUTE, Kind.MOVE) or row.fixed_range is not None)
    return rounded or (not node.domain and node.op_type in _SMALL_FROM_SMALL)


def _small_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of ``node`` that make its result small; none where it adds a bias, or gives probabilities."""
    row = row_of(node)
    if row is not None and row.fixed_range is not None:
        return
    if row is not None and row.kind is Kind.COMPUTE and len(node.inputs) > _BIAS and node.inputs[_BIAS] is not None:
        return
    for value in node.inputs:
        if value is not None and constant(value) is None:
            yield value


def _least(value: ir.Value | None) -> float:
    """The least value of a constant; that of others is not known."""
    array = None if value is None else constant(value)
    return -np.inf if array is None or not array.size else float(np.min(array))

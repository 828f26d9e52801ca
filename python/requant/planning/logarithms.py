"""What must stay float for the sake of a logarithm.

Rounding to integers errs by as much near zero as anywhere else. A logarithm asks for the relative error there, and is
infinite where rounding gives zero: spectrograms, whose quiet bins lie far below the step of the loud ones, lose them.
So what a Log reads stays float, back to where values begin to be small for another reason than that the input is:
through ops that make small values of small ones, filters without bias among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.onnx.graph import constant
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
    return {node.name or "": REASON for node in found}


def _is_small(node: ir.Node) -> bool:
    """Whether the result of ``node`` may be small because something that it reads is, or it filters something."""
    row = row_of(node)
    moves_or_computes = row is not None and row.kind in (Kind.COMPUTE, Kind.MOVE)
    return moves_or_computes or (not node.domain and node.op_type in _SMALL_FROM_SMALL)


def _small_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of ``node`` that make its result small; none where it adds a bias."""
    row = row_of(node)
    if row is not None and row.kind is Kind.COMPUTE and len(node.inputs) > _BIAS and node.inputs[_BIAS] is not None:
        return
    for value in node.inputs:
        if value is not None and constant(value) is None:
            yield value

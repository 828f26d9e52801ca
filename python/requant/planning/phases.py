"""What must stay float for the sake of a sine.

Fourier features turn coordinates, positions or times into phases of many turns, which a Sin and a Cos read (Tancik et
al., Fourier Features Let Networks Learn High Frequency Functions, 2020). Rounding errs by a share of the largest
phase: a fraction of a turn or whole ones, after which the sine says nothing. So a product of few terms that a Sin or
Cos reads stays float, with its weights and what scales or shifts the phases on their way: it costs next to nothing.
Products of many terms, as in networks whose activations are sines, may become integer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from requant.onnx.names import name_of
from requant.onnx.nodes import constant, is_transposed
from requant.onnx.ops import Kind, row_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir  # noqa: TID251 - for annotations only

REASON = "a Sin or Cos reads the phases that it makes of few coordinates, and loses them where they are rounded"

#: So many coordinates at most.
_FEW = 16
_SHIFTS = frozenset({"Add", "Cast", "Concat", "Div", "Identity", "Mul", "Neg", "Sub"})


def before_sines(nodes: Iterable[ir.Node]) -> dict[str, str]:
    """The products of few coordinates that a Sin or Cos reads, and what stands between, with the reason."""
    found: dict[ir.Node, None] = {}
    for node in nodes:
        if node.op_type in ("Cos", "Sin") and not node.domain:
            _follow(node, (), found)
    return {name_of(node): REASON for node in found}


def _follow(node: ir.Node, path: tuple[ir.Node, ...], found: dict[ir.Node, None]) -> None:
    """Add the products that ``node`` reads, at the end of ``path``, and the path to them."""
    for value in node.inputs:
        giver = None if value is None or constant(value) is not None else value.producer()
        if giver is None or giver in found or giver in path:
            continue
        row = row_of(giver)
        if row is not None and row.kind is Kind.COMPUTE and giver.op_type not in _SHIFTS:
            if _terms(giver) <= _FEW:
                found.update(dict.fromkeys((*path, giver)))
        elif (row is not None and row.kind is Kind.MOVE) or (giver.op_type in _SHIFTS and not giver.domain):
            _follow(giver, (*path, giver), found)


def _terms(node: ir.Node) -> float:
    """How many terms a product sums up; infinite where that is not known."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    shape = None if weight is None else weight.shape
    if shape is None or not shape:
        return math.inf
    rows = -2 if node.op_type == "MatMul" and len(shape) > 1 else -1 if is_transposed(node) else 0
    sizes = shape.dims[1:] if node.op_type == "Conv" else (shape[rows],)
    return math.prod(size if isinstance(size, int) else math.inf for size in sizes)

"""Which constants that are sliced are tables of positions, and may be rounded like embeddings.

A transformer holds encodings for the longest sequence it knows, and takes as many rows as there are tokens: these are
added to activations. Another constant that is sliced may be a mask with infinities, positions that become phases,
indices or sizes, or rotary factors of all queries and keys, and rounding would spoil much for little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from requant.onnx.nodes import constant
from requant.onnx.ops import Kind, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir  # noqa: TID251 - for annotations only


def takes_positions(node: ir.Node) -> bool:
    """Whether a Slice takes rows of a finite constant that are added to activations, and nothing else."""
    array = constant(node.inputs[0])
    rows = list(_rows(node))
    readers = [(reader, index) for value in rows for reader, index in value.uses() if not _moves(reader, index)]
    return (
        array is not None
        and bool(np.isfinite(array).all())
        and bool(readers)
        and all(_adds_computed(reader, index) for reader, index in readers)
        and not any(value.is_graph_output() for value in rows)
    )


def _rows(node: ir.Node) -> Iterator[ir.Value]:
    """What ``node`` gives, and what of that is only moved."""
    for output in node.outputs:
        yield output
        for reader, index in output.uses():
            if _moves(reader, index):
                yield from _rows(reader)


def _moves(node: ir.Node, index: int) -> bool:
    """Whether a node only moves the values of its input ``index``."""
    row = row_of(node)
    return row is not None and row.kind is Kind.MOVE and index == 0


def _adds_computed(node: ir.Node, index: int) -> bool:
    """Whether a node adds something computed to its input ``index``."""
    if node.op_type != "Add" or node.domain or len(node.inputs) < 2:
        return False
    other = node.inputs[1 - index]
    return other is not None and constant(other) is None

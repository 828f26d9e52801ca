"""Which constants that are sliced are tables of positions, and may be rounded like embeddings.

A transformer holds encodings for the longest sequence it knows, and takes as many rows as there are tokens: these are
added to activations. Another constant that is sliced may be a mask with infinities, positions that become phases,
indices or sizes, or rotary factors of all queries and keys, and rounding would spoil much for little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from requant.onnx.graph import constant
from requant.onnx.ops import Kind, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir  # noqa: TID251 - for annotations only


def takes_positions(node: ir.Node) -> bool:
    """Whether a Slice takes rows of a finite constant that are added to activations, and nothing else."""
    array = constant(node.inputs[0])
    uses = list(_uses(node))
    return (
        array is not None
        and bool(np.isfinite(array).all())
        and bool(uses)
        and all(_adds_computed(reader, index) for reader, index in uses)
        and not any(out.is_graph_output() for out in node.outputs)
    )


def _uses(node: ir.Node) -> Iterator[tuple[ir.Node, int]]:
    """What reads ``node``, through what only moves values."""
    for output in node.outputs:
        for reader, index in output.uses():
            row = row_of(reader)
            if row is not None and row.kind is Kind.MOVE and index == 0 and reader.outputs[0].uses():
                yield from _uses(reader)
            else:
                yield reader, index


def _adds_computed(node: ir.Node, index: int) -> bool:
    """Whether a node adds something computed to its input ``index``."""
    if node.op_type != "Add" or node.domain or len(node.inputs) < 2:
        return False
    other = node.inputs[1 - index]
    return other is not None and constant(other) is None

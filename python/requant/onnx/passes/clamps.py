"""Clamp before moving, not after.

``Relu(MaxPool(x))`` is ``MaxPool(Relu(x))``, and so for every op that only moves values. Behind the op that computed
``x``, the clamp vanishes into its quantization, and the move runs on integers with one scale.
"""

from __future__ import annotations

import onnx_ir as ir

from requant.onnx.nodes import constant
from requant.onnx.ops import Kind, row_of


def hoist_clamps(model: ir.Model) -> int:
    """Swap each Relu or Clip with the move that alone feeds it; returns how many swaps there were."""
    swaps = 0
    for clamp in list(model.graph):
        while _is(clamp, Kind.CLAMP) and _swap_with_producer(model.graph, clamp):
            swaps += 1
    return swaps


def _swap_with_producer(graph: ir.Graph, clamp: ir.Node) -> bool:
    between = clamp.inputs[0]
    move = None if between is None else between.producer()
    if between is None or move is None or move.graph is not graph or not _is(move, Kind.MOVE):
        return False
    if len(move.outputs) != 1 or len(between.uses()) != 1 or between.is_graph_output():
        return False
    # A clamp keeps the shape: its output takes the place of the move's input, and the move's that of the clamp's.
    result, source = clamp.outputs[0], move.inputs[0]
    result.name, between.name = between.name, result.name
    ir.convenience.replace_all_uses_with(result, between, replace_graph_outputs=True)
    clamp.replace_input_with(0, source)
    move.replace_input_with(0, result)
    result.shape = None if source is None else source.shape
    graph.remove(clamp)
    graph.insert_before(move, clamp)
    return True


def _is(node: ir.Node, kind: Kind) -> bool:
    row = row_of(node)
    if row is None or row.kind is not kind:
        return False
    return kind is not Kind.CLAMP or all(bound is None or constant(bound) is not None for bound in node.inputs[1:])

"""Keep an optimizer from joining an integer product and the addition of its bias to a float op.

onnxruntime turns ``MatMul`` and the ``Add`` of a vector behind it into ``Gemm``, between two ``Reshape`` where the
matrix on the left has more than two axes and all its sizes are known. It does so before it looks for integer products:
a Gemm whose input comes from a Reshape, and whose result no QuantizeLinear reads, is none, and dequantizes its weights
at every inference. A bias of two axes, ``[1, N]``, adds the same numbers and is not taken for one of Gemm's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.onnx.nodes import constant, set_constant
from requant.onnx.passes.cleanup import drop_unused

if TYPE_CHECKING:
    from collections.abc import Container

    import onnx_ir as ir

    from requant.onnx.graph import Graph


def keep_apart(graph: Graph, products: Container[str]) -> Graph:
    """A copy of ``graph`` with the vectors that are added to ``products`` as matrices; itself where there are none."""
    if not any(_vector(node, products) for node in graph.all_nodes()):
        return graph
    copy = graph.copy()
    for node in copy.all_nodes():
        if found := _vector(node, products):
            add, index = found
            vector = constant(add.inputs[index])
            assert vector is not None  # the original's were constants
            set_constant(add, index, vector.reshape(1, -1), "row")
    drop_unused(copy.model)
    return copy


def _vector(node: ir.Node, products: Container[str]) -> tuple[ir.Node, int] | None:
    """The addition that alone reads one of ``products``, and at which input it reads a constant vector."""
    if node.op_type != "MatMul" or node.name not in products or len(node.outputs[0].uses()) != 1:
        return None
    use = next(iter(node.outputs[0].uses()))
    index = 1 - use.idx
    if use.node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    vector = constant(use.node.inputs[index])
    return (use.node, index) if vector is not None and vector.ndim == 1 else None

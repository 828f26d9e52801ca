"""Keep an optimizer from taking the clamp behind an integer product for a part of it.

onnxruntime looks through a Relu or Clip that alone reads a product for the QuantizeLinear behind, which would do the
same. Where there is none, since the result stays float, it leaves the product in float as well, and dequantizes the
weights at every inference. Max and Min with the bounds give the same numbers and are not looked through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from requant.onnx.names import free_name, taken_names
from requant.onnx.nodes import add_initializer
from requant.onnx.passes.cleanup import drop_unused

if TYPE_CHECKING:
    from collections.abc import Container

    from requant.onnx.graph import Graph


def spell_clamps(graph: Graph, products: Container[str]) -> Graph:
    """A copy of ``graph`` with the clamps that float results of ``products`` run into as Max and Min; else itself."""
    if not any(_clamp_behind(node, products) for node in graph.all_nodes()):
        return graph
    copy = graph.copy()
    main = copy.model.graph
    taken = taken_names(main)
    zero = add_initializer(main, free_name("zero", taken), ir.Tensor(np.zeros((), np.float32)))
    for node in list(copy.all_nodes()):
        if (clamp := _clamp_behind(node, products)) is not None:
            _spell(clamp, zero, taken)
    drop_unused(copy.model)
    return copy


def _clamp_behind(node: ir.Node, products: Container[str]) -> ir.Node | None:
    """The Relu or Clip that alone reads one of ``products``, gives no output of the model, and is not quantized."""
    if node.name not in products or len(node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output():
        return None
    clamp = next(iter(node.outputs[0].uses())).node
    if clamp.domain or clamp.op_type not in ("Relu", "Clip") or not any(_bounds(clamp, clamp.inputs[0])):
        return None
    result = clamp.outputs[0]
    seen = result.is_graph_output() or any(user.op_type == "QuantizeLinear" for user in result.consumers())
    return None if seen else clamp


def _bounds(clamp: ir.Node, zero: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """The lower and the upper bound, None where there is none; that of a Relu is ``zero``."""
    if clamp.op_type == "Relu":
        return zero, None
    low, high, *_ = (*clamp.inputs[1:], None, None)
    return low, high


def _spell(clamp: ir.Node, zero: ir.Value, taken: set[str]) -> None:
    """Put Max and Min in the place of ``clamp``."""
    value, steps = clamp.inputs[0], []
    for op_type, bound in zip(("Max", "Min"), _bounds(clamp, zero), strict=True):
        if bound is not None:
            name = free_name(f"{clamp.name}_{op_type.lower()}", taken)
            steps.append(ir.node(op_type, [value, bound], outputs=[ir.Value(name=name)], name=name))
            value = steps[-1].outputs[0]
    assert isinstance(clamp.graph, ir.Graph)  # functions are inlined before
    ir.convenience.replace_nodes_and_values(clamp.graph, clamp, [clamp], steps, clamp.outputs, steps[-1].outputs)

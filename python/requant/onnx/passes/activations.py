"""Say activations in ops that runtimes know, however the exporter spelt them.

``clip(x + b, 0, c) / c`` is ``HardSigmoid(x)`` with ``alpha = 1 / c`` and ``beta = b / c``; hard swish is its product
with ``x``. As one op they are faster in float, and a target may run them on integers (see ``requant.targets``).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter.ort_fusions.erfgelu import fuse_erfgelu
from onnxscript.rewriter.ort_fusions.gelu import fuse_gelu

from requant.onnx.nodes import constant

if TYPE_CHECKING:
    from requant.onnx.graph import Graph

_CONTRIB = "com.microsoft"
_RTOL = 1e-5
#: The library's rules hold what they match: one thread at a time may use them.
_RULES = threading.Lock()


def name_hard_activations(model: ir.Model) -> int:
    """Turn hard sigmoids and hard swishes into HardSigmoid and Mul; returns how many."""
    found = 0
    for node in list(model.graph):
        if node.domain != "":
            continue
        if node.op_type == "HardSwish":
            x, result = node.inputs[0], node.outputs[0]
            if x is not None:
                _replace(node, result, _product(x, _hard_sigmoid(x, 1 / 6, 0.5)))
                found += 1
        elif node.op_type == "Clip":
            found += _name_clip(node)
    return found


def hard_sigmoid(node: ir.Node) -> tuple[float, float]:
    """``alpha`` and ``beta`` of a HardSigmoid, ``clip(alpha x + beta, 0, 1)``."""
    return node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)


def fuse_gelus(graph: Graph) -> Graph:
    """A copy of ``graph`` with each GELU as one op of onnxruntime's; the graph itself where there is none.

    It knows the spelling by the one tensor that all its parts read. Behind DequantizeLinear it gives each of them a
    copy, and would not find it again.
    """
    if not any(node.op_type in ("Erf", "Tanh") for node in graph.all_nodes()):
        return graph
    copy = graph.copy()
    with _RULES:
        found = fuse_gelu(copy.model) + fuse_erfgelu(copy.model)
    if not found:
        return graph
    copy.model.opset_imports.setdefault(_CONTRIB, 1)
    return copy


def _name_clip(clip: ir.Node) -> bool:
    """Rewrite what ``clip`` is the middle of, if that is a hard sigmoid or a hard swish."""
    low, top = (_scalar(value) for value in (*clip.inputs[1:], None, None)[:2])
    added = _binary(clip.inputs[0], "Add")
    if low != 0.0 or top is None or top <= 0.0 or added is None:
        return False
    x, shift = added
    if shift < 0.0:
        return False
    end = _only_user(clip.outputs[0])
    weighted = end is not None and end.op_type == "Mul" and set(end.inputs) == {x, clip.outputs[0]}
    if weighted and end is not None:
        end = _only_user(end.outputs[0])
    if end is None or not _divides(end, top):
        return False
    sigmoid = _hard_sigmoid(x, 1.0 / top, shift / top)
    _replace(end, end.outputs[0], _product(x, sigmoid) if weighted else (sigmoid,))
    return True


def _binary(value: ir.Value | None, op_type: str) -> tuple[ir.Value, float] | None:
    """The tensor and the number of which ``value`` is the sum (or what ``op_type`` is)."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != op_type or node.domain != "":
        return None
    for x, other in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        number = _scalar(other)
        if x is not None and number is not None and constant(x) is None:
            return x, number
    return None


def _divides(node: ir.Node, divisor: float) -> bool:
    """Whether ``node`` divides its other input by that number."""
    if node.op_type == "Div":
        number = _scalar(node.inputs[1])
        return number is not None and bool(np.isclose(number, divisor, rtol=_RTOL))
    found = _binary(node.outputs[0], "Mul")
    return found is not None and bool(np.isclose(found[1] * divisor, 1.0, rtol=_RTOL))


def _scalar(value: ir.Value | None) -> float | None:
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def _only_user(value: ir.Value) -> ir.Node | None:
    users = list(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None


def _hard_sigmoid(x: ir.Value, alpha: float, beta: float) -> ir.Node:
    return ir.node("HardSigmoid", [x], attributes={"alpha": float(alpha), "beta": float(beta)})


def _product(x: ir.Value, sigmoid: ir.Node) -> tuple[ir.Node, ...]:
    return sigmoid, ir.node("Mul", [x, sigmoid.outputs[0]])


def _replace(last: ir.Node, result: ir.Value, nodes: tuple[ir.Node, ...]) -> None:
    """Let ``nodes`` give ``result`` in place of ``last``."""
    graph = last.graph
    assert isinstance(graph, ir.Graph)
    for node in nodes:
        if result.dtype is not None:
            node.outputs[0].dtype = result.dtype
        node.outputs[0].shape = result.shape
    ir.convenience.replace_nodes_and_values(graph, last, [last], list(nodes), [result], [nodes[-1].outputs[0]])

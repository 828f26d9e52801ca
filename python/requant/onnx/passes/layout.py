"""Move Transposes down until they meet those that undo them.

Frameworks with channels last export a convolution between two Transposes; what stands between two convolutions, and
could be folded into them or run on integers with them, then works on another layout::

    Conv -> Transpose -> Mul -> Add -> Relu -> Transpose back -> Conv    becomes    Conv -> Mul -> Add -> Relu -> Conv

It is done where fewer Transposes are left than before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.names import free_name, taken_names
from requant.onnx.nodes import add_initializer, constant, int_attribute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    #: What a node is to read, and its axis, on the other side of a Transpose.
    Moved = tuple[list[ir.Value | None], dict[str, int]]

_UNARY = frozenset(
    {
        "Abs",
        "Clip",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Mish",
        "Neg",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Tanh",
    }
)
_BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"})
_ALONG = frozenset({"Concat", "Softmax"})
_OPSET = 13  # from which on Softmax has one axis


def sink_transposes(model: ir.Model) -> int:
    """Move Transposes down and drop those that undo each other; returns how many are gone."""
    opset = model.opset_imports.get("") or 0
    if opset < _OPSET or _count(model.graph) < 2:
        return 0
    trial = model.clone()
    _sink(trial.graph)
    gone = _count(model.graph) - _count(trial.graph)
    if gone <= 0:
        return 0
    _sink(model.graph)
    return gone


def _count(graph: ir.Graph) -> int:
    return sum(node.op_type == "Transpose" and node.domain == "" for node in graph)


def _sink(graph: ir.Graph) -> None:
    taken = taken_names(graph)
    for node in list(graph):  # in order of execution, so that what was moved moves on
        perm = next(filter(None, map(_perm, node.inputs)), None)
        if node.domain != "" or perm is None:
            continue
        if node.op_type == "Transpose":
            _join(node, perm)
        elif (moved := _moved(graph, node, perm, taken)) is not None:
            _swap(graph, node, moved, perm, taken)
    for node in reversed(list(graph)):
        unused = not any(value.uses() or value.is_graph_output() for value in node.outputs)
        if node.op_type == "Transpose" and node.domain == "" and unused:
            graph.remove(node, safe=True)


def _perm(value: ir.Value | None) -> tuple[int, ...] | None:
    """The order of axes in which ``value`` is a Transpose of another."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Transpose" or node.domain != "":
        return None
    perm = node.attributes.get("perm")
    return None if perm is None else tuple(perm.as_ints())


def _before(value: ir.Value) -> ir.Value | None:
    """What a Transpose read that gave ``value``."""
    node = value.producer()
    assert node is not None  # it has an order of axes
    return node.inputs[0]


def _join(node: ir.Node, first: Sequence[int]) -> None:
    """Let a Transpose of a Transpose be one, or none."""
    second = _perm(node.outputs[0])
    value = node.inputs[0]
    if second is None or value is None or len(second) != len(first):
        return
    both, before = [first[axis] for axis in second], _before(value)
    if both != sorted(both):
        node.replace_input_with(0, before)
        node.attributes.add(ir.AttrInt64s("perm", both))
    elif not node.outputs[0].is_graph_output() and before is not None:
        ir.convenience.replace_all_uses_with(node.outputs[0], before)


def _moved(graph: ir.Graph, node: ir.Node, perm: tuple[int, ...], taken: set[str]) -> Moved | None:
    """What ``node`` reads where it stands before Transposes of order ``perm``; None where it has to stay behind."""
    if len(node.outputs) != 1 or any(value.is_graph_output() for value in node.outputs):
        return None
    if node.op_type in _UNARY:
        value = node.inputs[0]
        return None if value is None or _perm(value) != perm else ([_before(value), *node.inputs[1:]], {})
    if node.op_type not in _BINARY | _ALONG:
        return None
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        if value is None:
            return None
        array = constant(value)
        if _perm(value) == perm:
            inputs.append(_before(value))
        elif array is None or node.op_type in _ALONG or array.ndim > len(perm):
            return None
        elif array.size == 1:
            inputs.append(value)
        else:
            inputs.append(_arranged(graph, value, array, perm, taken))
    axis = int_attribute(node, "axis", -1) % len(perm)
    return inputs, {"axis": perm[axis]} if node.op_type in _ALONG else {}


def _arranged(
    graph: ir.Graph, value: ir.Value, array: NDArray[Any], perm: tuple[int, ...], taken: set[str]
) -> ir.Value:
    """A constant as it was before a Transpose of order ``perm``."""
    whole = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    tensor = ir.tensor(np.ascontiguousarray(whole.transpose(np.argsort(perm))))
    return add_initializer(graph, free_name(f"{value.name}_moved", taken), tensor)


def _swap(graph: ir.Graph, node: ir.Node, moved: Moved, perm: tuple[int, ...], taken: set[str]) -> None:
    """Put ``node`` before the Transposes that it reads, and one of order ``perm`` behind it."""
    inputs, changed = moved
    output = node.outputs[0]
    inner = ir.Value(name=free_name(f"{output.name}_moved", taken), type=output.type)
    if output.shape is not None:
        inner.shape = ir.Shape([output.shape[perm.index(axis)] for axis in range(len(perm))])
    attributes = [a for a in node.attributes.values() if a.name not in changed]
    attributes += [ir.AttrInt64(name, number) for name, number in changed.items()]
    new = ir.Node("", node.op_type, inputs, attributes, outputs=[inner], name=node.name)
    outer = ir.Value(name=output.name, shape=output.shape, type=output.type)
    transpose = ir.node("Transpose", [inner], {"perm": list(perm)}, outputs=[outer])
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new, transpose], [output], [outer])

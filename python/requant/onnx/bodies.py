"""Tensors inside the bodies of If, Loop and Scan: where they stand, and how to look at them.

A runtime gives out tensors of the main graph only. So that those of a body can be seen, a sequence goes through every
node around it, from an empty one in the main graph to an output: what computes the tensor puts its value in, each time
that it runs and whatever its shape is then. For that Loop carries the sequence along, If reads it from outside and puts
an empty array in where the other branch is taken, and Scan, which cannot carry one, becomes a Loop over its slices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from requant.onnx.names import free_name, name_of, taken_names
from requant.onnx.nodes import bodies
from requant.onnx.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from requant.onnx.graph import Graph

_KINDS = frozenset({"If", "Loop", "Scan"})
#: Inputs of Loop before the values that it carries along: number of iterations, condition. Its body has as many.
_BEFORE_CARRIED = 2


class Surroundings:
    """The nodes around each node of a model."""

    def __init__(self, graph: Graph) -> None:
        self._owners = {body: node for node in graph.all_nodes() for body in bodies(node)}

    def around(self, graph: object) -> list[ir.Node]:
        """The nodes whose bodies ``graph`` is in, from the inside out."""
        found = []
        while isinstance(graph, ir.Graph) and graph in self._owners:
            found.append(self._owners[graph])
            graph = self._owners[graph].graph
        return found

    def hidden(self, graph: object) -> str:
        """Why the tensors of ``graph``, the main one or a body, cannot be seen from outside; empty where they can."""
        kinds = [node.op_type for node in self.around(graph)]
        return next((f"it stands inside {kind}" for kind in kinds if kind not in _KINDS), "")


def expose(model: ir.Model, names: Collection[str]) -> dict[str, str]:
    """Let ``model`` give out the tensors ``names`` of its bodies, in place; returns where each then comes out.

    Each is a sequence of the arrays that the tensor was, in the order in which they were computed, empty ones among
    them where it was not.
    """
    return {name: name_of(value) for name, value in _Exposure(model, names).outputs().items()}


class _Exposure:
    def __init__(self, model: ir.Model, names: Collection[str]) -> None:
        self._main = model.graph
        graphs = (model.graph, *model.graph.subgraphs())
        self._taken = taken_names(model.graph)
        self._dtypes = {
            name_of(value): value.dtype or ir.DataType.FLOAT
            for graph in graphs[1:]
            for value in _values(graph)
            if value.name in names
        }

    def outputs(self) -> dict[str, ir.Value]:
        """What each tensor is in the end, by its name."""
        writer = Writer(self._main, next(iter(self._main), None), self._taken)
        begin = {
            name: writer.add("SequenceEmpty", output=self._sequence(name), dtype=dtype)
            for name, dtype in self._dtypes.items()
        }
        return self._through(self._main, begin)

    def _through(self, graph: ir.Graph, seen: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """``seen``, sequences of what was seen before ``graph``, with what is seen in there."""
        seen = dict(seen)
        for node in list(graph):
            inside = {
                value.name for body in bodies(node) for each in (body, *body.subgraphs()) for value in _values(each)
            }
            if not inside.isdisjoint(seen):
                seen |= self._through_node(node, {name: value for name, value in seen.items() if name in inside})
        if graph is not self._main:
            for value in list(_values(graph)):
                if value.name in seen:
                    seen[value.name] = self._insert(graph, value.name, seen[value.name], value)
        return seen

    def _through_node(self, node: ir.Node, seen: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """The same of the bodies of ``node``, as outputs of it."""
        if node.op_type == "Scan":
            _become_loop(node, self._taken)
        at, before = len(node.outputs), 0
        if node.op_type == "Loop":
            node.resize_inputs(max(len(node.inputs), _BEFORE_CARRIED))  # those at the end may be left out
            at, before = len(node.inputs) - _BEFORE_CARRIED, 1  # of the body's outputs, the condition is before them
            _set_inputs(node, [*node.inputs, *seen.values()])
        for body in bodies(node):
            begin = seen
            if before:
                begin = {name: self._sequence(name) for name in seen}
                body.inputs.extend(begin.values())
            end = self._through(body, begin)
            for name in seen:
                if end[name] is begin[name]:
                    nothing = Writer(body, None, self._taken).constant(np.zeros(0, self._dtypes[name].numpy()))
                    end[name] = self._insert(body, name, end[name], nothing)
            body.outputs[at + before : at + before] = [end[name] for name in seen]
        _make_room(node, at, len(seen))
        found = dict(zip(seen, node.outputs[at:], strict=False))
        for name, value in found.items():
            value.name, value.type = free_name(f"{name}_seen", self._taken), seen[name].type
        return found

    def _insert(self, graph: ir.Graph, name: str, seen: ir.Value, value: ir.Value) -> ir.Value:
        return Writer(graph, None, self._taken).add("SequenceInsert", seen, value, output=self._sequence(name))

    def _sequence(self, name: str) -> ir.Value:
        return _sequence(free_name(f"{name}_seen", self._taken), self._dtypes[name])


def _become_loop(scan: ir.Node, taken: set[str]) -> None:
    """Make ``scan`` the Loop that does the same: it gathers each slice, and what it gives for each is joined behind."""
    graph, body = scan.graph, scan.attributes["body"].as_graph()
    assert isinstance(graph, ir.Graph)
    states = len(scan.inputs) - scan.attributes["num_scan_inputs"].as_int()
    ways_in, ways_out = (
        _ways(scan, "input", len(scan.inputs) - states),
        _ways(scan, "output", len(body.outputs) - states),
    )
    for key in set(scan.attributes) - {"body"}:
        del scan.attributes[key]
    scan.op_type = "Loop"

    around, ahead = Writer(graph, scan, taken), Writer(body, next(iter(body), None), taken)
    index = ir.Value(name=free_name("index", taken), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    go = ir.Value(name=free_name("go", taken), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    count = around.add("Gather", around.add("Shape", scan.inputs[states]), around.constant(np.array(ways_in[0][0])))
    last = around.add("Sub", count, around.constant(np.array(1)))
    for whole, piece, (axis, reverse) in zip(scan.inputs[states:], body.inputs[states:], ways_in, strict=True):
        gathered = ir.Value(name=piece.name, type=piece.type, shape=piece.shape)
        ir.convenience.replace_all_uses_with(piece, gathered, replace_graph_outputs=True)
        ahead.add("Gather", whole, ahead.add("Sub", last, index) if reverse else index, output=gathered, axis=axis)
    body.inputs[:] = [index, go, *body.inputs[:states]]

    behind = Writer(body, None, taken)
    after = Writer(graph, _next(graph, scan), taken)
    begins = []
    for place, (axis, reverse) in enumerate(ways_out, states):
        piece, whole = body.outputs[place], scan.outputs[place]
        dtype = piece.dtype or ir.DataType.FLOAT
        begins.append(around.add("SequenceEmpty", dtype=dtype))
        body.inputs.append(_sequence(free_name(f"{piece.name}_each", taken), dtype))
        front = [behind.constant(np.array(0))] if reverse else []
        each = _sequence(free_name(f"{piece.name}_each", taken), dtype)
        body.outputs[place] = behind.add("SequenceInsert", body.inputs[-1], piece, *front, output=each)
        joined = ir.Value(name=whole.name or free_name("joined", taken), type=whole.type, shape=whole.shape)
        ir.convenience.replace_all_uses_with(whole, joined, replace_graph_outputs=True)
        whole.name, whole.type, whole.shape = free_name(f"{whole.name}_each", taken), each.type, None
        after.add("ConcatFromSequence", whole, output=joined, axis=axis, new_axis=1)
    body.outputs.insert(0, behind.add("Identity", go))
    always = around.constant(np.array(True))
    _set_inputs(scan, [count, always, *scan.inputs[:states], *begins])


def _ways(scan: ir.Node, which: str, count: int) -> list[tuple[int, bool]]:
    """Axis of each scan input or output, and whether it is taken from the end."""
    axes = list(scan.attributes.get_ints(f"scan_{which}_axes", ())) or [0] * count
    directions = list(scan.attributes.get_ints(f"scan_{which}_directions", ())) or [0] * count
    return [(axis, bool(direction)) for axis, direction in zip(axes, directions, strict=True)]


def _set_inputs(node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def _make_room(node: ir.Node, at: int, count: int) -> None:
    """Put ``count`` new outputs in front of output ``at``."""
    known = len(node.outputs)
    node.resize_outputs(known + count)
    for index in reversed(range(at, known)):
        old, new = node.outputs[index], node.outputs[index + count]
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.shape = None


def _next(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    nodes = iter(graph)
    return next((next(nodes, None) for each in nodes if each is node), None)


def _sequence(name: str, dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, type=ir.SequenceType(ir.TensorType(dtype)))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs

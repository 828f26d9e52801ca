"""Tensors inside the bodies of If, Loop and Scan: where they stand, and how to look at them.

A runtime gives out tensors of the main graph only. So that those of a body can be seen, they become outputs of the node
that the body belongs to: for Loop and Scan stacked over the iterations, for If empty where the other branch was taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from requant.onnx.graph import bodies, free_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from requant.onnx.graph import Graph

_LOOPS = frozenset({"Loop", "Scan"})
#: Attributes of Scan that have an entry for each of its stacked outputs.
_EACH_OUTPUT = ("scan_output_axes", "scan_output_directions")


class Surroundings:
    """The nodes around each node of a model."""

    def __init__(self, graph: Graph) -> None:
        self._owners = {body: node for node in graph.all_nodes() for body in bodies(node)}
        self._sizes = {
            str(dim) for value in graph.model.graph.inputs for dim in value.shape or () if not isinstance(dim, int)
        }

    def around(self, graph: object) -> list[ir.Node]:
        """The nodes whose bodies ``graph`` is in, from the inside out."""
        found = []
        while isinstance(graph, ir.Graph) and graph in self._owners:
            found.append(self._owners[graph])
            graph = self._owners[graph].graph
        return found

    def hidden(self, node: ir.Node) -> str:
        """Why the tensors of ``node`` cannot be seen from outside; empty where they can."""
        values = [value for value in (*node.inputs, *node.outputs) if value is not None and self.around(value.graph)]
        return self._hidden(node.graph, values)

    def hidden_value(self, value: ir.Value) -> str:
        """Why a tensor cannot be seen from outside; empty where it can."""
        return self._hidden(value.graph, [value])

    def _hidden(self, graph: object, values: Sequence[ir.Value]) -> str:
        types = [owner.op_type for owner in self.around(graph)]
        if not set(types) <= {"If", *_LOOPS}:
            return f"it stands inside {types[0]}"
        loops = [index for index, op_type in enumerate(types) if op_type in _LOOPS]
        if not loops:
            return ""
        if "If" in types[: loops[-1]]:
            return "it stands in an If inside Loop or Scan, where a branch may change from one iteration to the next"
        if all(map(self._keeps_shape, values)):
            return ""
        return "the shapes of its tensors may change from one iteration to the next"

    def _keeps_shape(self, value: ir.Value) -> bool:
        """Whether a tensor of a body surely has the same shape in each iteration."""
        if value.dtype is not None and not value.dtype.is_floating_point():
            return True  # it is not looked at
        return value.shape is not None and all(isinstance(dim, int) or str(dim) in self._sizes for dim in value.shape)


def expose(model: ir.Model, names: Collection[str]) -> dict[str, str]:
    """Let ``model`` give out the tensors ``names`` of its bodies, in place; returns where each then comes out."""
    taken = {value.name or "" for graph in (model.graph, *model.graph.subgraphs()) for value in _values(graph)}
    return {name: value.name or "" for name, value in _lift(model.graph, names, taken).items()}


def _lift(graph: ir.Graph, names: Collection[str], taken: set[str]) -> dict[str, ir.Value]:
    """The tensors ``names`` of the bodies in ``graph``, as values of ``graph``."""
    found: dict[str, ir.Value] = {}
    for node in list(graph):
        inside = []
        for body in bodies(node):
            wanted = _lift(body, names, taken)
            wanted |= {value.name: value for value in _values(body) if value.name in names}  # type: ignore[misc]
            inside.append((body, wanted))
        for name in dict.fromkeys(name for _, wanted in inside for name in wanted):
            for body, wanted in inside:
                copy = _given_out(wanted.get(name), free_name(f"{name}_seen", taken))
                body.append(copy)
                body.outputs.append(copy.outputs[0])
            node.resize_outputs(len(node.outputs) + 1)
            found[name] = node.outputs[-1]
            found[name].name, found[name].dtype = free_name(f"{name}_seen", taken), ir.DataType.FLOAT
            for key in _EACH_OUTPUT:
                if key in node.attributes:
                    node.attributes[key] = ir.AttrInt64s(key, [*node.attributes[key].as_ints(), 0])
    return found


def _given_out(value: ir.Value | None, name: str) -> ir.Node:
    """A node that gives ``value`` out as ``name``, or, of a branch without it, no values."""
    output = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    if value is not None:
        return ir.node("Identity", [value], outputs=[output], name=name)
    return ir.node("Constant", [], {"value": ir.tensor(np.zeros(0, np.float32))}, outputs=[output], name=name)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs

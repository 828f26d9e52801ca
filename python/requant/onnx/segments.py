"""A graph that is run piece by piece: up to a node, then on to a later one, with other weights behind it.

What later nodes read of earlier ones is kept between the pieces, for every batch, and dropped when nothing reads it any
more. So a whole walk costs as much computation as one run of the model, and its memory is that of the tensors that are
alive at one place. Integers are kept as such: a DequantizeLinear runs in each piece that reads what it gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from requant.onnx.mapped import MappedTensor
from requant.onnx.names import name_of
from requant.onnx.nodes import bodies, initializers
from requant.runtime import open_runner, unboxed
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from requant.onnx.graph import Graph

    Feeds = Mapping[str, NDArray[Any]]

#: Bytes of weights that a piece of a large model reads, about.
_PIECE = 1 << 27


class Walk:
    """One walk through a graph, in execution order.

    Args:
        graph: What is run; it is not changed.
        feeds: Inputs, batch after batch.
        threads: CPU threads; 0 uses all cores.
    """

    def __init__(self, graph: Graph, feeds: Iterable[Feeds], *, threads: int = 0) -> None:
        self._model = graph.model
        self._nodes = graph.nodes
        self._threads = threads
        self._place = 0
        self._late = {name_of(node.outputs[0]): i for i, node in enumerate(self._nodes) if _only_dequantizes(node)}
        self._reads = [self._reads_of(place) for place in range(len(self._nodes))]
        self._last = {name: place for place, names in enumerate(self._reads) for name in names}
        self._last |= {name_of(output): len(self._nodes) for output in graph.model.graph.outputs}
        self._weights: dict[str, NDArray[Any]] = {}
        self._alive = [dict(feed) for feed in feeds]
        self._drop()

    def advance(self, place: int) -> None:
        """Run the nodes before the one at ``place``, so that all it reads of them is there.

        Raises:
            ModelError: The runtime cannot.
        """
        late = set(self._late.values())
        nodes = [i for i in range(self._place, place) if i not in late]
        self._place = place
        given = {name_of(output) for i in nodes for output in self._nodes[i].outputs}
        wanted = sorted(name for name in given if self._last.get(name, -1) >= place)
        if wanted:
            model, taken = self._piece(nodes, given, wanted)
            runner = open_runner(model, threads=self._threads, shared=True)
            for alive in self._alive:
                outputs = runner.run({name: unboxed(alive[name]) for name in taken})
                alive.update(zip(wanted, map(np.asarray, outputs), strict=True))
        self._drop()

    def arrays(self, name: str) -> Iterator[NDArray[Any]]:
        """The tensor of that name, which the next node reads, batch after batch."""
        for alive in self._alive:
            yield alive[name]

    def replace(self, name: str, array: NDArray[Any]) -> None:
        """Let the nodes to come read ``array`` as the constant of that name, or as what is dequantized to it."""
        self._weights[name] = array

    def _reads_of(self, place: int) -> list[str]:
        """What a node reads, and what that is dequantized from; nothing where it does so itself."""
        if place in self._late.values():
            return []
        names = _reads(self._nodes[place])
        before = [_reads(self._nodes[self._late[name]]) for name in names if name in self._late]
        return sorted(names.union(*before))

    def _drop(self) -> None:
        """Forget what no later node reads."""
        for held in (*self._alive, self._weights):
            for name in [name for name in held if self._last.get(name, -1) < self._place]:
                del held[name]

    def _piece(self, nodes: list[int], given: set[str], wanted: list[str]) -> tuple[SerializedModel, list[str]]:
        """The model of some nodes, and the names of its inputs."""
        graph = onnx.GraphProto(name="piece")
        reads = {name for i in nodes for name in self._reads[i]} - given
        late = {name: self._late[name] for name in reads if name in self._late and name not in self._weights}
        graph.node.extend(ir.serde.serialize_node(self._nodes[i]) for i in sorted({*nodes, *late.values()}))
        initializers = self._model.graph.initializers
        outside: list[MappedTensor] = []
        taken = []
        for name in sorted(reads - late.keys()):
            if name in self._weights:
                graph.initializer.append(numpy_helper.from_array(self._weights[name], name))
            elif name in self._alive[0]:
                taken.append(name)
                graph.input.append(_described(name, self._alive[0][name]))
            elif name in initializers:
                tensor = initializers[name].const_value
                assert tensor is not None
                proto = ir.serde.serialize_tensor(tensor)
                proto.name = name
                graph.initializer.append(proto)
                if isinstance(tensor, MappedTensor):
                    outside.append(tensor)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self._model.opset_imports.items()]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=self._model.ir_version)
        folder = Path(outside[0].base_dir) if outside else None
        size = sum(tensor.nbytes for tensor in outside)
        return SerializedModel(model.SerializeToString(deterministic=True), folder, size, tuple(outside)), taken


def run_in_pieces(graph: Graph, feeds: Feeds, *, threads: int = 0) -> list[NDArray[Any]]:
    """The outputs of a model that is larger than memory: of its weights only those of a few nodes are there at a time.

    Raises:
        ModelError: The runtime cannot.
    """
    walk = Walk(graph, [feeds], threads=threads)
    sizes = {
        value.name: value.const_value.nbytes for value in initializers(graph.model) if value.const_value is not None
    }
    taken = 0
    for place, node in enumerate(graph.nodes):
        taken += sum(sizes.get(name, 0) for name in _reads(node))
        if taken > _PIECE:
            walk.advance(place)
            taken = 0
    walk.advance(len(graph.nodes))
    return [next(walk.arrays(output.name)) for output in graph.outputs]


def _only_dequantizes(node: ir.Node) -> bool:
    """Whether a node turns integers into reals, with constant parameters, for other nodes."""
    constants = all(value is None or value.is_initializer() for value in node.inputs[1:])
    return node.op_type == "DequantizeLinear" and constants and not node.outputs[0].is_graph_output()


def _reads(node: ir.Node) -> set[str]:
    """Names of all that a node reads, its bodies included."""
    names = {value.name for value in node.inputs if value is not None and value.name}
    for body in bodies(node):
        inner = list(body.all_nodes())
        own = {out.name for n in inner for out in n.outputs} | {value.name for value in body.inputs}
        own |= {name for each in (body, *body.subgraphs()) for name in each.initializers}
        read = {value.name for n in inner for value in n.inputs if value is not None and value.name}
        read |= {value.name for value in body.outputs if value.name}
        names |= {name for name in read if name not in own}
    return {name for name in names if name}


def _described(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    """An input of the type and rank of ``array``, its sizes left free; a sequence where one is in it."""
    items = unboxed(array)
    if not isinstance(items, list):
        return onnx.helper.make_tensor_value_info(name, _type_of(array), [None] * array.ndim)
    return onnx.helper.make_tensor_sequence_value_info(
        name, _type_of(items[0]) if items else onnx.TensorProto.FLOAT, None
    )


def _type_of(array: NDArray[Any]) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))

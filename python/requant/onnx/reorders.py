"""Tensors of convolutional models as onnxruntime computes them, instead of in the order that ONNX says.

Where it can, onnxruntime keeps groups of 8 or 16 channels innermost between convolutions (NCHWc), and a
``ReorderOutput`` restores the usual order of a tensor that is an output. If all tensors are, that takes a fifth of the
inference where convolutions are dense, and half as long as it where they are depthwise. To count values, no order
is needed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from requant.onnx.graph import Graph

_DOMAIN = "com.microsoft.nchwc"
#: Channels in a group, at most.
_LARGEST_GROUP = 16
#: Samples and channels: tensors of that rank have nothing else.
_RANK_OF_SAMPLES = 2


def reordered(graph: Graph, names: Container[str]) -> int:
    """How many values of one sample may have to be reordered to give out the tensors ``names``, of what is known."""
    if not any(node.op_type == "Conv" for node in graph.nodes):
        return 0
    tensors = (value for node in graph.nodes for value in node.outputs if value.name in names)
    shapes = [value.shape for value in tensors if value.shape is not None and len(value.shape) > _RANK_OF_SAMPLES]
    return sum(math.prod(dim for dim in shape[1:] if isinstance(dim, int)) for shape in shapes)


def without_reorders(data: bytes) -> bytes | None:
    """A model that onnxruntime has optimized, whose outputs hold the same values, of each sample, in any order.

    None where no output would be another. The shapes stay the same: groups that channels do not fill hold zeros, and
    are left to be reordered.
    """
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    group = _group(graph)
    sources = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.domain == _DOMAIN and node.op_type == "ReorderOutput" and _channels(node) % group == 0
    }
    for output in graph.output:
        source = sources.get(output.name)
        if source is not None and all(source != other.name for other in graph.output):
            output.name = source
    read = {output.name for output in graph.output} | {name for node in _nodes(graph) for name in node.input}
    idle = [node for node in graph.node if node.output[0] in sources and node.output[0] not in read]
    for node in idle:
        graph.node.remove(node)
    return model.SerializeToString() if idle else None


def _channels(node: onnx.NodeProto) -> int:
    return next((int(each.i) for each in node.attribute if each.name == "channels"), 1)


def _group(graph: onnx.GraphProto) -> int:
    """Channels in a group. Those of weights are filled up to whole groups, which may prove that these are of 8."""
    weights = {node.input[1] for node in graph.node if node.domain == _DOMAIN and node.op_type == "Conv"}
    filled = [tensor.dims[0] for tensor in graph.initializer if tensor.name in weights]
    return 8 if any(channels % _LARGEST_GROUP == 8 for channels in filled) else _LARGEST_GROUP


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Its nodes, those of bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)

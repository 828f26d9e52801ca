"""What ``onnx.checker`` says of a model, and what it should not be asked.

It refuses what runtimes take: outputs of unknown shape, and normalizations that onnxruntime has among ONNX's ops. It
would look for external data in the working directory.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx

from requant.errors import ModelError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

#: Ops that onnxruntime has in ONNX's domain, each with the opset since which ONNX defines it, if it does.
_OF_RUNTIME: Mapping[str, float] = {"LayerNormalization": 17, "SimplifiedLayerNormalization": float("inf")}
_ELSEWHERE = "onnxruntime"


def check(proto: onnx.ModelProto, origin: str) -> None:
    """Run ``onnx.checker`` without what it should not see: outputs of unknown shape, external data, foreign ops.

    Raises:
        ModelError: the model is invalid.
    """
    shapeless = [o for o in proto.graph.output if not o.type.tensor_type.HasField("shape")]
    if shapeless:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        for output in shapeless:
            copy.graph.output.remove(output)
        proto = copy
    try:
        outside = [tensor for tensor in initializers(proto.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL]
        with _emptied(outside), _moved_away(proto):
            onnx.checker.check_model(proto)
    except Exception as problem:  # ValidationError, but also UnicodeDecodeError and whatever else a mutant provokes
        raise ModelError(
            f"{origin} is not a valid ONNX model: {_miswired(proto.graph) or first_line(problem)}",
            hint="export it again, and check the exporter's messages",
        ) from problem


def initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The initializers of ``graph`` and of the bodies in it."""
    yield from graph.initializer
    for body in bodies(graph.node):
        yield from initializers(body)


def bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The bodies that stand in attributes of ``nodes``."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def opset_of(proto: onnx.ModelProto) -> int:
    """Version of the standard operators; 0 where none is imported."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


@contextmanager
def _moved_away(proto: onnx.ModelProto) -> Iterator[None]:
    """For a while, normalizations that ONNX does not define in another domain, where the checker lets them be."""
    opset = opset_of(proto)
    nodes = [node for node in _nodes(proto.graph) if is_of_runtime(node.domain, node.op_type, opset)]
    domains = [node.domain for node in nodes]
    if nodes:
        proto.opset_import.add(domain=_ELSEWHERE, version=1)
    try:
        for node in nodes:
            node.domain = _ELSEWHERE
        yield
    finally:
        for node, domain in zip(nodes, domains, strict=True):
            node.domain = domain
        if nodes:
            del proto.opset_import[-1]


def is_of_runtime(domain: str, op_type: str, opset: int) -> bool:
    """Whether an op of ONNX's domain is onnxruntime's: its optimizer and model builders write such normalizations."""
    return domain in ("", "ai.onnx") and opset < _OF_RUNTIME.get(op_type, 0)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    yield from graph.node
    for body in bodies(graph.node):
        yield from _nodes(body)


def _miswired(graph: onnx.GraphProto) -> str:
    """In words, which node reads what nothing gives, or what comes later; empty where none does."""
    later = {name: node for node in graph.node for name in node.output}
    sparse = {tensor.values.name for tensor in graph.sparse_initializer}
    known = {"", *(v.name for v in graph.input), *(t.name for t in graph.initializer), *sparse}
    for node in graph.node:
        for name in node.input:
            if name in known:
                continue
            reader = f"node {(node.name or ''.join(node.output[:1]))!r} ({node.op_type}) reads {name!r}, which"
            if name not in later:
                return f"{reader} no node gives and no initializer holds"
            if _leads_to(later[name], node, later):
                return f"{reader} depends on it: the graph has a cycle"
            return f"{reader} comes later: the nodes are not sorted"
        known.update(node.output)
    return ""


def _leads_to(node: onnx.NodeProto, source: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether what ``node`` gives depends on what ``source`` gives."""
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if current is source:
            return True
        for name in current.input:
            if name in producers and name not in seen:
                seen.add(name)
                waiting.append(producers[name])
    return False


@contextmanager
def _emptied(tensors: Sequence[onnx.TensorProto]) -> Iterator[None]:
    """For a while, ``tensors`` without elements."""
    originals = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    try:
        for tensor in tensors:
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.dims[:] = [0]
        yield
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.CopyFrom(original)

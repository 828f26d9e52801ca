"""What nodes and tensors say of themselves, and constants for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.names import free_name
from requant.types import QuantType

if TYPE_CHECKING:
    from collections.abc import Iterator


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of a node."""
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.as_graph()


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """The initializers of a model and of the bodies in it."""
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.initializers.values()


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The array behind an initializer or Constant node that no caller can override, else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_params(node: ir.Node) -> tuple[float, int, QuantType] | None:
    """Scale, zero point and type of a (De)QuantizeLinear; None where it has several, or computed ones."""
    _, scale_of, *rest = node.inputs
    scale, zero_point = constant(scale_of), constant(rest[0]) if rest else np.zeros((), np.uint8)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype.name not in set(QuantType):
        return None
    return float(scale.flat[0]), int(zero_point.flat[0]), QuantType(zero_point.dtype.name)


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or the operator's default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def is_transposed(node: ir.Node) -> bool:
    """Whether the weight of a Gemm or MatMul lies as ``[N, K]``, an output to a row."""
    return bool(int_attribute(node, "transB", 0))


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, or None if unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def is_float(value: ir.Value) -> bool:
    """Whether a tensor is known to be float32."""
    return value.dtype is ir.DataType.FLOAT


def may_touch_float(node: ir.Node) -> bool:
    """Whether a tensor of the node is float, or of a type that shape inference could not tell."""
    return any(
        v is not None and (v.dtype is None or v.dtype.is_floating_point()) for v in (*node.inputs, *node.outputs)
    )


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new constant of ``graph``, of a name that is free."""
    tensor.name = name
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, const_value=tensor, shape=shape, type=kind)
    graph.register_initializer(value)
    return value


def set_constant(node: ir.Node, index: int, array: np.ndarray[Any, Any] | ir.TensorProtocol, suffix: str) -> None:
    """Give ``node`` a constant of its own as input ``index``, named after its second input."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"node {node.name!r} stands in no graph")
    base = node.inputs[1].name if node.inputs[1] is not None else node.name
    name = free_name(f"{base}_{suffix}", set(graph.initializers))
    value = add_initializer(graph, name, ir.tensor(array) if isinstance(array, np.ndarray) else array)
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def check_order(model: ir.Model) -> None:
    """Check that each node reads only what stands before it, in its graph or in those around it.

    Raises:
        ValueError: One does not.
    """
    _check_order(model.graph, set())


def _check_order(graph: ir.Graph, outer: set[ir.Value]) -> None:
    known = {*outer, *graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                raise ValueError(f"node {node.name!r} reads {value.name!r} before it is computed")
        for body in bodies(node):
            _check_order(body, known)
        known.update(node.outputs)
    for value in graph.outputs:
        if value not in known:
            raise ValueError(f"output {value.name!r} is computed by no node")

"""Ops that ONNX does not define: what onnxruntime, or their library, says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from requant.onnx.checking import is_of_runtime
from requant.runtime import OrtRunner, available, unknown

if TYPE_CHECKING:
    from requant.onnx.graph import Graph

_TYPES = {
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(int32)": ir.DataType.INT32,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(string)": ir.DataType.STRING,
}


_ONNX = frozenset({"", "ai.onnx", "ai.onnx.ml"})  # what shape inference knows


def typed(graph: Graph) -> Graph:
    """``graph`` with the types and ranks of what ops give that are onnxruntime's or of a library: ONNX infers none.

    Of the main graph alone. Without them what reads such a tensor cannot be quantized.

    Raises:
        ModelError: onnxruntime cannot load the model with the libraries that are registered.
    """
    if unknown(graph.foreign_ops()) or not available():
        return graph
    nodes = [
        node
        for node in graph.nodes
        if (node.domain not in _ONNX and node.op_identifier() not in graph.model.functions)
        or is_of_runtime(node.domain, node.op_type, graph.opset)
    ]
    untyped = {value.name for node in nodes for value in node.outputs if value.dtype is None and value.name}
    if not untyped:
        return graph
    outputs = OrtRunner(graph.serialize(sorted(untyped)), threads=1).outputs()
    result = graph.copy()
    for node in result.nodes:
        for value in node.outputs:
            if value.name in untyped and value.dtype is None:
                known, shape = _TYPES.get(outputs[value.name][0]), outputs[value.name][1]
                value.type = None if known is None else ir.TensorType(known)
                value.shape = value.shape if not shape or value.shape is not None else ir.Shape(shape)
    return result

"""Ops that neither ONNX nor onnxruntime defines: what their library says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from requant.runtime import OrtRunner, available, custom_op_libraries

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


def typed(graph: Graph) -> Graph:
    """``graph`` with the types that custom ops of its main graph give, where a library tells: ONNX infers none.

    Without them what reads such a tensor cannot be quantized.

    Raises:
        ModelError: onnxruntime cannot load the model with the libraries that are registered.
    """
    foreign = set(graph.foreign_ops())
    if not foreign or not custom_op_libraries() or not available():
        return graph
    nodes = [node for node in graph.nodes if f"{node.domain}:{node.op_type}" in foreign]
    unknown = [value.name for node in nodes for value in node.outputs if value.dtype is None and value.name]
    types = OrtRunner(graph.serialize(unknown), threads=1).output_types()
    result = graph.copy()
    for node in result.nodes:
        for value in node.outputs:
            if value.name in unknown and value.dtype is None:
                known = _TYPES.get(types[value.name])
                value.type = None if known is None else ir.TensorType(known)
    return result

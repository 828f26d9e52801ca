"""Outputs that are counted where they are computed, by the compiled core's op for onnxruntime, instead of given out.

A tensor that is an output lies in memory of its own until the run ends, and is read again from beyond the cache. A
node ``requant::Observe`` reads it right after it is computed, and its memory is used again at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Iterable

    from requant.onnx.graph import Graph

_DOMAIN = "requant"
_HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
#: A session needs an output.
_NOTHING = "requant.nothing"


def observable(graph: Graph, names: Iterable[str]) -> tuple[int, ...]:
    """Which of ``names`` the op can count, by position: tensors of float32 outside of bodies.

    None of a model with others of float16: between these and outputs, onnxruntime leaves out other roundings.
    """
    computed = {value.name: value for node in graph.nodes for value in node.outputs}
    if any(value.dtype in _HALVES for value in computed.values()):
        return ()
    values = [computed.get(name) for name in names]
    return tuple(
        index
        for index, value in enumerate(values)
        if value is not None and isinstance(value.type, ir.TensorType) and value.dtype is ir.DataType.FLOAT
    )


def with_observers(data: bytes, observed: Iterable[int]) -> bytes:
    """A model whose outputs at the positions ``observed`` are counted in statistics at these positions.

    The others stay outputs.
    """
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    outputs = list(graph.output)
    names = {index: outputs[index].name for index in observed}
    computed = {name: place for place, node in enumerate(graph.node) for name in node.output}
    # onnxruntime goes back from nodes without outputs, the last one first: so each runs right after what it reads.
    # What it has folded is computed by none.
    for index in sorted(names, key=lambda index: computed.get(names[index], -1), reverse=True):
        number = onnx.AttributeProto(name="index", type=onnx.AttributeProto.INT, i=index)
        graph.node.add(op_type="Observe", domain=_DOMAIN, input=[names[index]], attribute=[number])
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    del graph.output[:]
    graph.output.extend(output for index, output in enumerate(outputs) if index not in names)
    if not graph.output:
        graph.initializer.append(helper.make_tensor(_NOTHING, TensorProto.INT64, [], [0]))
        graph.output.append(helper.make_tensor_value_info(_NOTHING, TensorProto.INT64, []))
    return bytes(model.SerializeToString())

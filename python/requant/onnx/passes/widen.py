"""Half floats to float32, for which there are integer kernels.

A model of float16 or bfloat16 tensors computes in float32 afterwards: its constants are the same numbers, and what was
rounded after each op no longer is. Inputs and outputs keep their type, with a Cast behind or in front of them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from requant.onnx.graph import free_name
from requant.onnx.mapped import changed
from requant.onnx.passes.shapes import infer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from requant.onnx.graph import Graph

_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
#: Attributes of the standard ops that hold an element type.
_TYPE_ATTRIBUTES = ("dtype", "output_datatype", "softmax_precision", "stash_type", "to")
#: Domains whose ops take float32 wherever they take half floats.
_DOMAINS = frozenset({"", "com.microsoft"})


def widen_half(model: ir.Model) -> int:
    """Make every half float inside the model float32; returns how many tensors changed their type."""
    graph = model.graph
    inner = [*graph.subgraphs(), *(function.graph for function in model.functions.values())]
    values = [value for body in (graph, *inner) for value in _computed(body)]
    values += [value for body in inner for value in body.inputs]
    half = [value for value in values if _is_half(value)]
    if not half or not all(_takes_float(node, model) for node in graph.all_nodes()):
        return 0
    common.RemoveInitializersFromInputsPass()(model)
    outputs = [(i, v, v.dtype) for i, v in enumerate(graph.outputs) if _is_half(v) and not v.is_graph_input()]
    for value in half:
        _widen(value)
    for body in (graph, *inner):
        for node in body:
            _widen_attributes(node)
    taken = {value.name or "" for value in (*values, *graph.inputs)}
    for value in graph.inputs:
        if _is_half(value):
            _cast_input(graph, value, taken)
    for index, value, dtype in outputs:
        _cast_output(graph, index, value, dtype, taken)
    return len(half)


def without_bfloat16(graph: Graph) -> Graph:
    """``graph`` in float32, inputs and outputs too, where it holds bfloat16: CPU runtimes and NumPy know none."""
    main = graph.model.graph
    kinds = {value.dtype for value in (*main.inputs, *_computed(main))}
    casts = any(_casts_to(node, ir.DataType.BFLOAT16) for node in graph.all_nodes())
    if ir.DataType.BFLOAT16 not in kinds and not casts:
        return graph
    widened = graph.copy()
    main = widened.model.graph
    infer(widened.model)
    for value in (*main.inputs, *main.outputs):
        if value.dtype is ir.DataType.BFLOAT16:
            _widen(value)
    widen_half(widened.model)
    widened.spill()
    return widened


def _takes_float(node: ir.Node, model: ir.Model) -> bool:
    """Whether ``node`` computes the same of float32; a cast of the bits does not."""
    known = node.domain in _DOMAINS or node.op_identifier() in model.functions
    return (known and node.op_type != "BitCast") or not any(map(_is_half, (*node.inputs, *node.outputs)))


def _casts_to(node: ir.Node, dtype: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.domain == "" and node.attributes["to"].value == dtype


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in _HALF


def _computed(body: ir.Graph) -> Iterator[ir.Value]:
    yield from body.initializers.values()
    for node in body:
        yield from node.outputs


def _widen(value: ir.Value) -> None:
    value.type = copy.deepcopy(value.type)  # copies of a graph share their types
    value.dtype = ir.DataType.FLOAT
    if value.const_value is not None:
        value.const_value = _widened(value.const_value)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return changed(tensor, lambda array: array.astype(np.float32), ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALF:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
        elif name in _TYPE_ATTRIBUTES and node.domain == "" and attribute.value in _HALF:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)


def _cast_input(graph: ir.Graph, value: ir.Value, taken: set[str]) -> None:
    """Let the readers of input ``value`` read it as float32."""
    uses = value.uses()
    if not uses:
        return
    cast = _cast(value, ir.DataType.FLOAT, free_name(f"{value.name}_float", taken))
    graph.insert_before(graph[0], cast)
    for node, index in uses:
        node.replace_input_with(index, cast.outputs[0])


def _cast_output(graph: ir.Graph, index: int, value: ir.Value, dtype: ir.DataType | None, taken: set[str]) -> None:
    """Give ``value`` out as ``dtype``, under the name it had."""
    assert dtype is not None
    name = value.name or ""
    value.name = free_name(f"{name}_float", taken)
    cast = _cast(value, dtype, name)
    graph.append(cast)
    graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    result = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
    return ir.node("Cast", [value], attributes={"to": dtype}, outputs=[result])

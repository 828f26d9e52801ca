"""Half floats and doubles to float32, for which there are integer kernels.

A model of float16 or bfloat16 tensors computes in float32 afterwards: its constants are the same numbers, and what was
rounded after each op no longer is. So does one that multiplies float64 tensors, whose numbers are rounded to float32,
unless it may need them as they are: it casts some to integers, or compares them with thresholds (trees), or has
constants that float32 cannot tell from zero or infinity. Inputs and outputs keep their type, with a Cast behind or in
front of them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from requant.onnx.mapped import changed
from requant.onnx.names import free_name, name_of, taken_names
from requant.onnx.nodes import initializers
from requant.onnx.ops import Kind, row_of
from requant.onnx.passes.shapes import infer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from requant.onnx.graph import Graph

_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_DOUBLE = frozenset({ir.DataType.DOUBLE})
#: Ops that onnxruntime computes in single precision only, at one opset or another.
_SINGLE = frozenset(
    {
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "AveragePool",
        "Conv",
        "ConvTranspose",
        "Cosh",
        "Elu",
        "Erf",
        "GRU",
        "Gelu",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "GridSample",
        "HardSigmoid",
        "HardSwish",
        "Hardmax",
        "InstanceNormalization",
        "LRN",
        "LSTM",
        "LeakyRelu",
        "LpPool",
        "Mean",
        "MeanVarianceNormalization",
        "Mish",
        "PRelu",
        "RNN",
        "Resize",
        "Selu",
        "Sinh",
        "Softplus",
        "Softsign",
        "Tan",
        "ThresholdedRelu",
    }
)
#: Attributes of the standard ops that hold an element type.
_TYPE_ATTRIBUTES = ("dtype", "output_datatype", "softmax_precision", "stash_type", "to")
#: Domains whose ops take float32 wherever they take half floats.
_DOMAINS = frozenset({"", "com.microsoft"})
#: Ops of other domains that do, and compare no input with thresholds.
_LEARNT = frozenset({"ArrayFeatureExtractor", "LinearClassifier", "LinearRegressor", "Normalizer", "Scaler", "ZipMap"})


def widen_half(model: ir.Model) -> int:
    """Make every half float inside the model float32; returns how many tensors changed their type."""
    return _convert(model, _HALF)


def narrow_double(model: ir.Model) -> int:
    """Make every double inside a model that multiplies them float32; returns how many tensors changed their type."""
    if not any(_multiplies(node) and _touches(node, _DOUBLE) for node in model.graph.all_nodes()):
        return 0
    rounds = any(_casts_to_integers(node) for node in model.graph.all_nodes())
    return 0 if rounds or not all(map(_fits_float, _tensors(model, _DOUBLE))) else _convert(model, _DOUBLE)


def is_narrowed(given: Graph, prepared: Graph) -> bool:
    """Whether the constants of a model were doubles before it was prepared, and no longer are."""
    before, after = (any(True for _ in _tensors(graph.model, _DOUBLE)) for graph in (given, prepared))
    return before and not after


def _convert(model: ir.Model, kinds: frozenset[ir.DataType]) -> int:
    """Make every tensor of ``kinds`` inside the model float32; returns how many."""
    graph = model.graph
    inner = [*graph.subgraphs(), *(function.graph for function in model.functions.values())]
    values = [value for body in (graph, *inner) for value in _computed(body)]
    values += [value for body in inner for value in body.inputs]
    found = [value for value in values if value.dtype in kinds]
    if not found or not all(_takes_float(node, model) for node in graph.all_nodes() if _touches(node, kinds)):
        return 0
    common.RemoveInitializersFromInputsPass()(model)
    outputs = [(i, v, v.dtype) for i, v in enumerate(graph.outputs) if v.dtype in kinds and not v.is_graph_input()]
    for value in found:
        _retype(value)
    for body in (graph, *inner):
        for node in body:
            _convert_attributes(node, kinds)
    taken = taken_names(graph)
    for value in graph.inputs:
        if value.dtype in kinds:
            _cast_input(graph, value, taken)
    for index, value, dtype in outputs:
        _cast_output(graph, index, value, dtype, taken)
    return len(found)


def runnable(graph: Graph) -> Graph:
    """``graph`` in float32 where no CPU runtime runs it as it is: it holds bfloat16, or doubles that lack kernels.

    NumPy knows no bfloat16 either: such inputs and outputs become float32, too.
    """
    main = graph.model.graph
    kinds = {value.dtype for value in (*main.inputs, *_computed(main))}
    casts = any(_casts_to(node, ir.DataType.BFLOAT16) for node in graph.all_nodes())
    if ir.DataType.BFLOAT16 in kinds or casts:
        return _converted(graph, widen_half, ir.DataType.BFLOAT16)
    doubles = ir.DataType.DOUBLE in kinds or any(_casts_to(node, ir.DataType.DOUBLE) for node in graph.all_nodes())
    return _converted(graph, narrow_double) if doubles and _lacks_kernels(graph) else graph


def _lacks_kernels(graph: Graph) -> bool:
    """Whether onnxruntime cannot run a model, because an op in it has no kernel for doubles."""
    if not any(node.domain == "" and node.op_type in _SINGLE for node in graph.all_nodes()):
        return False
    typed = graph.copy()
    infer(typed.model)
    return any(node.op_type in _SINGLE and _touches(node, _DOUBLE) for node in typed.all_nodes())


def _converted(graph: Graph, convert: Callable[[ir.Model], int], interface: ir.DataType | None = None) -> Graph:
    """``graph`` as ``convert`` makes it, with inputs and outputs of type ``interface`` in float32."""
    result = graph.copy()
    main = result.model.graph
    infer(result.model)
    for value in (*main.inputs, *main.outputs):
        if interface is not None and value.dtype is interface:
            _retype(value)
    convert(result.model)
    result.spill()
    return result


def _takes_float(node: ir.Node, model: ir.Model) -> bool:
    """Whether ``node`` computes the same of float32; a cast of the bits does not."""
    learnt = node.domain == "ai.onnx.ml" and node.op_type in _LEARNT
    known = node.domain in _DOMAINS or node.op_identifier() in model.functions
    return learnt or (known and node.op_type != "BitCast")


def _touches(node: ir.Node, kinds: frozenset[ir.DataType]) -> bool:
    return any(value is not None and value.dtype in kinds for value in (*node.inputs, *node.outputs))


def _multiplies(node: ir.Node) -> bool:
    row = row_of(node)
    return (row is not None and row.kind in (Kind.COMPUTE, Kind.RECURRENT)) or node.op_type == "Einsum"


def _casts_to_integers(node: ir.Node) -> bool:
    """Whether integers are made of doubles, which may count more than float32 tells apart."""
    made = node.outputs[0].dtype
    return node.op_type == "Cast" and _touches(node, _DOUBLE) and made is not None and made.is_integer()


def _fits_float(tensor: ir.TensorProtocol) -> bool:
    """Whether no number of ``tensor`` becomes 0 or infinite as float32."""
    array = tensor.numpy()
    with np.errstate(over="ignore", under="ignore"):
        rounded = array.astype(np.float32)
    return bool(np.array_equal(np.isfinite(rounded), np.isfinite(array)) and np.array_equal(rounded == 0, array == 0))


def _tensors(model: ir.Model, kinds: frozenset[ir.DataType]) -> Iterator[ir.TensorProtocol]:
    """The constants of ``kinds``, initializers and attributes."""
    attributes = (each for node in model.graph.all_nodes() for each in node.attributes.values() if not each.is_ref())
    tensors = (each.as_tensor() for each in attributes if each.type is ir.AttributeType.TENSOR)
    stored = (value.const_value for value in initializers(model) if value.const_value is not None)
    yield from (tensor for tensor in (*stored, *tensors) if tensor.dtype in kinds)


def _casts_to(node: ir.Node, dtype: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.domain == "" and node.attributes["to"].value == dtype


def _computed(body: ir.Graph) -> Iterator[ir.Value]:
    yield from body.initializers.values()
    for node in body:
        yield from node.outputs


def _retype(value: ir.Value) -> None:
    value.type = copy.deepcopy(value.type)  # copies of a graph share their types
    value.dtype = ir.DataType.FLOAT
    if value.const_value is not None:
        value.const_value = _in_float(value.const_value)


def _in_float(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return changed(tensor, lambda array: array.astype(np.float32), ir.DataType.FLOAT)


def _convert_attributes(node: ir.Node, kinds: frozenset[ir.DataType]) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype in kinds:
            node.attributes[name] = ir.AttrTensor(name, _in_float(attribute.as_tensor()))
        elif name in _TYPE_ATTRIBUTES and node.domain == "" and attribute.value in kinds:
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
    name = name_of(value)
    value.name = free_name(f"{name}_float", taken)
    cast = _cast(value, dtype, name)
    graph.append(cast)
    graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    result = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
    return ir.node("Cast", [value], attributes={"to": dtype}, outputs=[result])

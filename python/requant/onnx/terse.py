"""What a file need not hold, because each runtime makes it again when it loads the model.

* The scale of an int32 bias is that of its op's input times those of the weights, four bytes a channel:

      input scale, weight scales -> Mul -> DequantizeLinear(bias)

  A runtime that folds constants multiplies once, and to the same bits.
* The zero points of a convolution's weights, where all are 0, a byte a channel. onnxruntime fuses no Gemm without them.
* Numbers in wider types than they need, such as int64 of a table of positions or the floats of a mask:

      integers -> Cast -> readers
* The pairs of positions at which one bias stands (``requant.onnx.repeats``).
* Attributes that say what the op does without them.
* Long names of inner tensors. That a node gives a tensor is said by the node's name, which stays (``name_briefly``).
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from requant.onnx.names import name_of, taken_names
from requant.onnx.nodes import add_initializer, constant
from requant.onnx.passes.cleanup import drop_unused
from requant.onnx.repeats import gather_repeats
from requant.uncollected import uncollected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from requant.onnx.graph import Graph

_BIASED = frozenset({"Conv", "Gemm"})
_BIAS = 2
#: With as many channels a scale is as large as the node that would compute it.
_CHANNELS = 8
#: Elements from which on a constant is worth a Cast; none of so many is a shape.
_LEAST = 128
_INTEGERS = (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT16)
_NARROWER = {
    ir.DataType.INT64: (*_INTEGERS, ir.DataType.INT32),
    ir.DataType.INT32: _INTEGERS,
    ir.DataType.FLOAT: (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.FLOAT16),
}
#: What these read belongs to their kernel.
_PARAMETERS = frozenset({"DequantizeLinear", "QuantizeLinear"})
#: What attributes that are lists are without being said, at each place; their operators' schemas say it in words only.
_REPEATED = {"dilations": 1, "pads": 0, "strides": 1}
_WINDOWS = frozenset({"AveragePool", "Conv", "ConvTranspose", "MaxPool"})


@uncollected()
def drop_implied(graph: Graph, *, folds: bool) -> Graph:
    """A copy of ``graph`` without what is implied; ``folds``: whether its runtime computes constants once."""
    copy = graph.copy()
    if folds:
        scales = [found for node in copy.all_nodes() for found in _bias_scales(node)]
        _multiply(copy.model, scales)
        for node in copy.all_nodes():
            _drop_zero_points(node)
        drop_unused(copy.model)
        if copy.scratch is None:  # what lies in files is not read for it
            gather_repeats(copy.model)
            _narrow(copy.model)
    for node in copy.all_nodes():
        _drop_defaults(node, copy.opset)
    return copy


#: What tensors are called whose names went, a number behind it.
_BRIEF = "t"
_LONG = 8
#: Names stay that are less than this share of the file: a reader of the graph knows tensors by them.
_SHARE = 0.02


@uncollected()
def name_briefly(graph: Graph, given: Graph) -> Graph:
    """A copy of ``graph`` where inner tensors have short names, if theirs (paths of modules) are 2 % of the file.

    Kept are the names of inputs, outputs, constants and tensors that are quantized, which reports and monitors name,
    and of what was given by another node in the float model ``given``: ``given_by`` finds the others.
    """
    copy = graph.copy()
    known, found = _givers(given), {name for node in given.all_nodes() for name in _names(node)}
    names = _numbered(_BRIEF, taken_names(copy.model.graph) | found)
    brief: dict[ir.Value, str] = {}
    for node in copy.all_nodes():
        for index, value in enumerate(node.outputs):
            name = name_of(value)
            quantized = any(use.node.op_type == "QuantizeLinear" and use.idx == 0 for use in value.uses())
            derived = name not in found or known.get((name_of(node), index)) == name
            if len(name) > _LONG and derived and not quantized and not value.is_graph_output():
                brief[value] = next(names)
    saved = sum((len(name_of(value)) - len(name)) * (1 + len(value.uses())) for value, name in brief.items())
    scopes = (copy.model.graph, *copy.model.graph.subgraphs())
    constants = sum(
        array.nbytes for scope in scopes for value in scope.initializers.values() if (array := value.const_value)
    )
    if saved >= _SHARE * (constants + saved):
        for value, name in brief.items():
            value.name = name
    return copy


def given_by(graph: Graph, given: Graph) -> Mapping[tuple[str, int], str]:
    """The tensors of ``graph`` whose names went, by the name of the node that gives them and its output's number.

    What the float model ``given`` calls so is none of them.
    """
    own = {name for node in given.all_nodes() for name in _names(node)}
    return {
        place: name for place, name in _givers(graph).items() if name not in own and re.fullmatch(rf"{_BRIEF}\d+", name)
    }


def _givers(graph: Graph) -> dict[tuple[str, int], str]:
    """Names of tensors by that of the node that gives them, where no other has it, and the number of its output."""
    named = Counter(node.name for node in graph.all_nodes())
    return {
        (node.name, index): name
        for node in graph.all_nodes()
        if node.name and named[node.name] == 1
        for index, name in enumerate(_names(node))
    }


def _names(node: ir.Node) -> list[str]:
    return [name_of(value) for value in node.outputs]


def _numbered(prefix: str, taken: set[str]) -> Iterator[str]:
    """Names that nothing has."""
    return (name for serial in count(1) if (name := f"{prefix}{serial}") not in taken)


def _bias_scales(node: ir.Node) -> Iterator[tuple[ir.Node, ir.Value, ir.Value]]:
    """The DequantizeLinear of the bias of ``node``, and the two scales whose product its own is."""
    if node.op_type not in _BIASED or node.domain != "" or len(node.inputs) <= _BIAS:
        return
    operands = [None if value is None else value.producer() for value in node.inputs[: _BIAS + 1]]
    if any(giver is None or giver.op_type != "DequantizeLinear" or giver.graph is not node.graph for giver in operands):
        return
    x_scale, w_scale, b_scale = (giver.inputs[1] for giver in operands if giver is not None)
    x, w, b = (constant(value) for value in (x_scale, w_scale, b_scale))
    if x is None or w is None or b is None or x.size != 1 or b.size <= _CHANNELS or w.shape != b.shape:
        return
    if x.dtype == w.dtype == b.dtype and np.array_equal(x.reshape(()) * w, b):
        bias = operands[_BIAS]
        assert x_scale is not None
        assert w_scale is not None
        assert bias is not None
        yield bias, x_scale, w_scale


def _multiply(model: ir.Model, scales: list[tuple[ir.Node, ir.Value, ir.Value]]) -> None:
    """Let each of these read the product of its two scales, which is computed once for all that have them."""
    names = _numbered("m", taken_names(model.graph))
    products: dict[tuple[ir.Graph, ir.Value, ir.Value], ir.Value] = {}
    for bias, x_scale, w_scale in scales:
        home, scale = bias.graph, bias.inputs[1]
        assert isinstance(home, ir.Graph)
        assert scale is not None
        key = (home, x_scale, w_scale)
        if key not in products:
            output = ir.Value(name=next(names), shape=scale.shape, type=scale.type)
            product = ir.node("Mul", [x_scale, w_scale], outputs=[output], name=output.name)
            home.insert_before(home[0], product)
            products[key] = output
        bias.replace_input_with(1, products[key])


def _drop_zero_points(node: ir.Node) -> None:
    """Take its zero points from a DequantizeLinear that only convolutions read, as their weight."""
    if (
        node.op_type != "DequantizeLinear"
        or node.domain != ""
        or len(node.inputs) < 3
        or constant(node.inputs[0]) is None
    ):
        return
    zero_points, output = constant(node.inputs[2]), node.outputs[0]
    weighs = all(use.node.op_type == "Conv" and use.idx == 1 for use in output.uses()) and not output.is_graph_output()
    if weighs and zero_points is not None and not zero_points.any():
        node.resize_inputs(2)


def _narrow(model: ir.Model) -> None:
    """Store large constants in the smallest type that holds their numbers exactly."""
    names = _numbered("n", taken_names(model.graph))
    for scope in (model.graph, *model.graph.subgraphs()):
        for value in list(scope.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.size < _LEAST or tensor.dtype not in _NARROWER or value.is_graph_output():
                continue
            narrow = _exact(tensor)
            if narrow is None or value.is_graph_input() or any(n.op_type in _PARAMETERS for n in value.consumers()):
                continue
            name = name_of(value)
            output = ir.Value(name=next(names), shape=value.shape, type=value.type)
            ir.convenience.replace_all_uses_with(value, output)
            del scope.initializers[name]
            stored = add_initializer(scope, name, narrow)
            cast = ir.node("Cast", [stored], {"to": tensor.dtype}, outputs=[output], name=output.name)
            scope.insert_before(scope[0], cast)


def _exact(tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
    """The same numbers in the first type of those that are smaller and hold them; None if there is none."""
    array = tensor.numpy()
    for dtype in _NARROWER[tensor.dtype]:
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = array.astype(dtype.numpy())
            back = narrow.astype(array.dtype)
        if back.tobytes() == array.tobytes():  # -0 and 0 differ
            return ir.Tensor(narrow, dtype)
    return None


def _drop_defaults(node: ir.Node, opset: int) -> None:
    if node.domain != "":
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:  # newer than onnx, which the checker will say
        return
    for name, attribute in list(node.attributes.items()):
        known = schema.attributes.get(name)
        if known is None or attribute.is_ref():
            continue
        if known.default_value.type:
            implied = onnx.helper.get_attribute_value(ir.serde.serialize_attribute(attribute)) == (
                onnx.helper.get_attribute_value(known.default_value)
            )
        else:
            repeated = _REPEATED.get(name) if node.op_type in _WINDOWS else None
            implied = repeated is not None and all(number == repeated for number in attribute.as_ints())
        if implied:
            del node.attributes[name]

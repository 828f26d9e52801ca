"""Take onnxruntime's fused ops apart where weights hide in them, which no other runtime op quantizes.

    Attention(x, W [K, 3 N], b)  ->  MultiHeadAttention(x @ Wq, x @ Wk, x @ Wv, b)
    EmbedLayerNormalization      ->  SkipLayerNormalization of rows that Gather looks up

The parts compute the same; the products then run on integers, and tables of embeddings are stored as such.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.mapped import changed
from requant.onnx.names import free_name, taken_names
from requant.onnx.nodes import add_initializer, constant, int_attribute, rank
from requant.onnx.passes.shapes import infer
from requant.onnx.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_CONTRIB = "com.microsoft"
_OPSET = 13  # from which on ReduceSum has its axes as an input
_ATTENTION_ATTRIBUTES = frozenset({"num_heads", "unidirectional", "scale", "mask_filter_value"})
_EPSILON = 1e-12


def take_apart(model: ir.Model) -> int:
    """Take apart each fused op of the main graph whose weights are constants; returns how many were."""
    if _CONTRIB not in model.opset_imports or (model.opset_imports.get("") or 0) < _OPSET:
        return 0
    taken = taken_names(model.graph)
    count = 0
    # Attentions first: they look at the shape of the mask that an embedding gives.
    for op_type, form in (("Attention", _attention), ("EmbedLayerNormalization", _embedding)):
        for node in [node for node in model.graph if node.domain == _CONTRIB and node.op_type == op_type]:
            if form(model.graph, node, Writer(model.graph, node, taken), taken):
                model.graph.remove(node, safe=True)
                count += 1
    if count:
        infer(model)
    return count


def _attention(graph: ir.Graph, node: ir.Node, writer: Writer, taken: set[str]) -> bool:
    x, weight, bias, mask, past, scores, past_length = _inputs(node, 7)
    array = constant(weight)
    if (
        array is None
        or array.ndim != 2
        or array.dtype != np.float32
        or past is not None
        or past_length is not None
        or _reads_beyond(node, 1)
        or not _same_mask(mask, x)
        or any(int_attribute(node, name, 0) for name in ("do_rotary", "past_present_share_buffer"))
    ):
        return False
    sizes = node.attributes.get("qkv_hidden_sizes")
    widths = [array.shape[1] // 3] * 3 if sizes is None else list(sizes.as_ints())
    if sum(widths) != array.shape[1]:
        return False
    tensor = ir.convenience.get_const_tensor(weight)
    assert tensor is not None
    products = []
    for part, (start, end) in zip("qkv", pairwise(accumulate(widths, initial=0)), strict=True):
        cut = partial(_columns, start=start, end=end)
        columns = changed(tensor, cut, tensor.dtype, shape=ir.Shape((len(array), end - start)))
        value = add_initializer(graph, free_name(f"{weight.name}_{part}", taken), columns)
        products.append(writer.add("MatMul", x, value, name=free_name(f"{node.name}_{part}", taken)))
    kept = [attribute for name, attribute in node.attributes.items() if name in _ATTENTION_ATTRIBUTES]
    _become(node, "MultiHeadAttention", [*products, bias, mask, scores], kept)
    return True


def _columns(weight: NDArray[Any], start: int, end: int) -> NDArray[Any]:
    return np.ascontiguousarray(weight[:, start:end])


def _embedding(graph: ir.Graph, node: ir.Node, writer: Writer, taken: set[str]) -> bool:  # noqa: ARG001
    ids, kinds, words, places, sorts, gain, shift, mask, positions = _inputs(node, 9)
    counts = node.outputs[1] if len(node.outputs) > 1 and node.outputs[1].uses() else None
    if (
        any(constant(table) is None for table in (words, places))
        or (kinds is None) != (sorts is None)
        or (counts is not None and mask is None)
        or _reads_beyond(node, 2)
        or any(value.is_graph_output() for value in node.outputs[1:])
    ):
        return False
    shape = writer.add("Shape", ids)
    if positions is None:
        length = writer.add("Gather", shape, writer.constant(np.array(1)))
        positions = writer.add("Range", writer.constant(np.array(0)), length, writer.constant(np.array(1)))
    rows = writer.add("Gather", words, ids)
    if kinds is not None:
        rows = writer.add("Add", rows, writer.add("Gather", sorts, kinds))
    skip = writer.add("Gather", places, writer.add("Expand", positions, shape))
    if counts is not None:
        total = writer.add("ReduceSum", mask, writer.constant(np.array([1])), keepdims=0)
        ir.convenience.replace_all_uses_with(counts, total)
    epsilon = node.attributes.get_float("epsilon", _EPSILON)
    _become(node, "SkipLayerNormalization", [rows, skip, gain, shift], [ir.AttrFloat32("epsilon", epsilon)])
    return True


def _become(node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: Iterable[ir.Attr]) -> None:
    """Put an op of onnxruntime's in the place of ``node``, whose first output it gives."""
    graph, before = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)  # it stands in the main graph
    while inputs and inputs[-1] is None:
        inputs.pop()
    output = ir.Value(name=before.name, shape=before.shape, type=before.type)
    new = ir.Node(_CONTRIB, op_type, inputs, attributes, outputs=[output], name=node.name)
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(before, output, replace_graph_outputs=True)


def _inputs(node: ir.Node, count: int) -> list[Any]:
    """The first inputs of a node, None for each that is left out."""
    return [node.inputs[index] if index < len(node.inputs) else None for index in range(count)]


def _reads_beyond(node: ir.Node, outputs: int) -> bool:
    """Whether anything takes an output of ``node`` behind its first ``outputs``."""
    return any(value.uses() or value.is_graph_output() for value in node.outputs[outputs:])


def _same_mask(mask: ir.Value | None, x: ir.Value | None) -> bool:
    """Whether both ops take ``mask``: a vector holds lengths, and not starts behind them, which Attention alone has."""
    dims = rank(mask)
    if mask is None or (dims is not None and dims > 1):
        return True
    if dims is None or rank(x) is None:
        return False
    length, batch = mask.shape[0], x.shape[0]  # type: ignore[index,union-attr]
    return length == batch and (isinstance(length, int) or length.value is not None)

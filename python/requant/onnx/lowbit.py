"""Write weights of a few bits into a graph.

A product becomes com.microsoft's MatMulNBits, a lookup GatherBlockQuantized, both of which read the integers as they
are. In the standard form the weight stays an input of its op, behind a DequantizeLinear:

    integers, scales[, zero points] -> DequantizeLinear(block_size) [-> Transpose] -> MatMul, Gemm or Gather

Integers lie in rows ``[N, blocks, bytes]``. An embedding table and the head that is its transpose read the same ones.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from requant.errors import ModelError, first_line
from requant.onnx.graph import without_maps
from requant.onnx.mapped import MappedTensor
from requant.onnx.names import free_name, taken_names
from requant.onnx.nodes import add_initializer, constant, initializers, int_attribute, is_transposed
from requant.onnx.passes.cleanup import drop_unused
from requant.onnx.reading import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from requant.arrays.lowbit import BlockWeights
    from requant.onnx.graph import Graph
    from requant.planning.plan import BlockedNode, QuantPlan

_CONTRIB = "com.microsoft"
_BIAS = 2
#: MatMulNBits multiplies in float32, or rounds the activations to int8.
ACCURACY_LEVELS = {"float": 1, "int8": 4}
#: Weights of so many bits are unpacked at each run where activations are float: it has no kernel for these.
UNPACKED = 8
#: The first opset whose DequantizeLinear takes blocks and 4 bits, and the one that takes 2.
_BLOCKED_OPSET, _TWO_BITS_OPSET = 21, 25


def insert_blocks(
    graph: Graph,
    plan: QuantPlan,
    weights: Mapping[tuple[str, bool], BlockWeights],
    *,
    qdq: bool,
    activations: str | None,
) -> Graph:
    """A copy of ``graph`` whose planned nodes read ``weights``.

    Args:
        graph: the prepared model.
        plan: what becomes of it.
        weights: integers by ``BlockedNode.key``.
        qdq: standard DequantizeLinear instead of onnxruntime's own ops.
        activations: ``float`` or ``int8``, how MatMulNBits multiplies; None for what is fast with the weights.

    Raises:
        ModelError: the model cannot have the opset that ``qdq`` needs.
    """
    copy = graph.copy()
    writer = _Writer(copy, weights, activations)
    for planned in plan.blocked:
        writer.write(planned, qdq=qdq)
    drop_unused(copy.model)
    return copy


class _Writer:
    def __init__(self, graph: Graph, weights: Mapping[tuple[str, bool], BlockWeights], activations: str | None) -> None:
        self.graph = graph
        self.model = graph.model
        self.weights = weights
        self.activations = activations
        self.nodes = {node.name: node for node in graph.all_nodes()}
        self.taken = taken_names(graph.model.graph)
        self.parts: dict[tuple[tuple[str, bool], str], ir.Value] = {}
        self.reals: dict[tuple[tuple[str, bool], bool], ir.Value] = {}

    def write(self, planned: BlockedNode, *, qdq: bool) -> None:
        node = self.nodes[planned.name]
        if qdq:
            self._dequantize(node, planned)
        elif planned.op_type == "Gather":
            self._look_up(node, planned)
        else:
            self._multiply(node, planned)

    # -- onnxruntime's own ops ---------------------------------------------------------------------------------------

    def _multiply(self, node: ir.Node, planned: BlockedNode) -> None:
        weights = self.weights[planned.key]
        rows, terms = weights.shape
        shape = (rows, weights.scheme.blocks(terms), -1)
        inputs = [node.inputs[0], self._data(planned, shape), self._scales(planned), self._zero_points(planned)]
        bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
        alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        addend = None
        if bias is not None:
            vector = constant(bias) if alpha == beta == 1.0 else None
            if vector is not None and vector.size == rows and vector.shape[-1:] == (rows,):
                flat = bias if vector.ndim == 1 else self._initializer(f"{bias.name}_flat", vector.reshape(-1))
                inputs += [None, flat]
            else:
                addend = bias
        attributes = {
            "K": terms, "N": rows, "bits": weights.scheme.stored_bits, "block_size": weights.scheme.block_size,
            "accuracy_level": self._level(weights.scheme.stored_bits),
        }  # fmt: skip
        product = self._node("MatMulNBits", inputs, attributes, planned.name)
        chain = [product]
        if alpha != 1.0:  # one that preparation could not fold
            chain.append(self._scaled(product.outputs[0], alpha, f"{planned.name}_alpha"))
        result = chain[-1].outputs[0]
        if addend is not None and beta != 1.0:
            chain.append(self._scaled(addend, beta, f"{planned.name}_beta"))
            addend = chain[-1].outputs[0]
        if addend is not None:
            chain.append(self._node("Add", [result, addend], {}, f"{planned.name}_bias", domain=""))
        _replace(node, chain)

    def _level(self, bits: int) -> int:
        return ACCURACY_LEVELS[self.activations or ("int8" if bits == UNPACKED else "float")]

    def _scaled(self, value: ir.Value, factor: float, name: str) -> ir.Node:
        constant_factor = self._initializer(f"{name}_factor", np.array(factor, np.float32))
        return self._node("Mul", [value, constant_factor], {}, name, domain="")

    def _look_up(self, node: ir.Node, planned: BlockedNode) -> None:
        weights = self.weights[planned.key]
        attributes = {
            "bits": weights.scheme.stored_bits, "block_size": weights.scheme.block_size,
            "gather_axis": 0, "quantize_axis": 1,
        }  # fmt: skip
        rows, terms = weights.shape
        data = self._data(planned, (rows, -1), cut=terms * weights.scheme.stored_bits // 8)
        inputs = [data, node.inputs[1], self._scales(planned), self._zero_points(planned)]
        _replace(node, [self._node("GatherBlockQuantized", inputs, attributes, planned.name)])

    def _data(self, planned: BlockedNode, shape: tuple[int, ...], cut: int | None = None) -> ir.Value:
        """The integers in ``shape``: stored once, and reshaped for readers that want another one."""
        weights = self.weights[planned.key]
        flat = weights.data.reshape(shape)
        name = f"{planned.weight}_q"
        if cut is not None and cut != flat.shape[-1]:  # a table has no room behind its rows
            return self._part(planned, f"{name}_rows", np.ascontiguousarray(flat[:, :cut]))
        first = self._part(planned, name, flat)
        if tuple(first.shape.numpy()) == flat.shape:  # type: ignore[union-attr]  # it is a constant
            return first
        target = self._part(planned, f"{name}_{len(shape)}d", np.array(flat.shape, np.int64))
        key = (planned.key, f"reshaped_{len(shape)}")
        if key not in self.parts:
            reshape = self._node("Reshape", [first, target], {}, f"{name}_reshaped", domain="")
            self.model.graph.insert_before(self.model.graph[0], reshape)
            self.parts[key] = reshape.outputs[0]
        return self.parts[key]

    def _scales(self, planned: BlockedNode) -> ir.Value:
        return self._part(planned, f"{planned.weight}_scales", self.weights[planned.key].scales)

    def _zero_points(self, planned: BlockedNode) -> ir.Value | None:
        zero_points = self.weights[planned.key].zero_points
        return None if zero_points is None else self._part(planned, f"{planned.weight}_zero_points", zero_points)

    # -- standard ops ------------------------------------------------------------------------------------------------

    def _dequantize(self, node: ir.Node, planned: BlockedNode) -> None:
        in_rows = planned.op_type == "Gather" or is_transposed(node)
        key = (planned.key, in_rows)
        if key not in self.reals:
            self.reals[key] = self._reals(planned, in_rows=in_rows)
        node.replace_input_with(planned.index, self.reals[key])

    def _reals(self, planned: BlockedNode, *, in_rows: bool) -> ir.Value:
        """The reals of a weight, in rows or in columns; integers are stored in the way their first reader wants."""
        other = self.reals.get((planned.key, not in_rows))
        graph = self.model.graph
        if other is not None:
            turn = self._node("Transpose", [other], {"perm": [1, 0]}, f"{planned.weight}_turned", domain="")
            producer = other.producer()
            assert producer is not None
            graph.insert_after(producer, turn)
            return turn.outputs[0]
        weights = self.weights[planned.key]
        data, scales, zero_points = weights.to_dequantize_linear()
        size, axis = weights.scheme.block_size, 0
        if in_rows:
            data, scales, axis = data.T, scales.T, 1
            zero_points = None if zero_points is None else zero_points.T
        attributes = {"axis": axis, "block_size": size}
        if not size:  # a scale to a row
            attributes, scales = {"axis": 1 - axis}, scales.reshape(-1)
            zero_points = None if zero_points is None else zero_points.reshape(-1)
        inputs = [
            self._narrow(f"{planned.weight}_q", data, weights.scheme.stored_bits),
            self._initializer(f"{planned.weight}_scales", scales),
        ]
        if zero_points is None:  # onnxruntime fuses Gemm only with one
            zero_points = np.zeros(scales.shape, data.dtype)
        inputs.append(self._narrow(f"{planned.weight}_zero_points", zero_points, weights.scheme.stored_bits))
        node = self._node("DequantizeLinear", inputs, attributes, f"{planned.weight}_reals", domain="")
        graph.insert_before(graph[0], node)
        return node.outputs[0]

    def _narrow(self, name: str, array: NDArray[Any], bits: int) -> ir.Value:
        """Integers, one to a byte, as a constant of as many bits as they have."""
        kind = ir.DataType[f"{'U' if array.dtype == np.uint8 else ''}INT{bits}"]
        if bits == 8:
            return self._initializer(name, array)
        return self._initializer(name, np.ascontiguousarray(array).astype(kind.numpy()))

    # -- nodes and constants -----------------------------------------------------------------------------------------

    def _part(self, planned: BlockedNode, name: str, array: NDArray[Any]) -> ir.Value:
        """A constant of a weight, written once for all that read it."""
        key = (planned.key, name)
        if key not in self.parts:
            self.parts[key] = self._initializer(name, array)
        return self.parts[key]

    def _initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        name = free_name(name, self.taken)
        return add_initializer(self.model.graph, name, self.graph.tensor(np.asarray(array, order="C"), name))

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        name: str,
        domain: str = _CONTRIB,
    ) -> ir.Node:
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        name = free_name(name, self.taken) if name not in self.nodes else name
        output = ir.Value(name=free_name(f"{name}_out", self.taken))
        return ir.node(op_type, inputs, attributes, domain=domain, outputs=[output], name=name)


def _replace(node: ir.Node, chain: list[ir.Node]) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)  # functions are inlined before
    ir.convenience.replace_nodes_and_values(graph, node, [node], chain, node.outputs, chain[-1].outputs)


def with_opset(graph: Graph, least: int) -> Graph:
    """``graph`` with at least that version of the standard ops.

    Raises:
        ModelError: onnx cannot convert it.
    """
    if graph.opset >= least:
        return graph
    copy = graph.copy()
    try:
        ir_model = onnx.version_converter.convert_version(ir.serde.serialize_model(copy.model), least)
        copy.model = ir.serde.deserialize_model(ir_model)
        tensors = (value.const_value for value in initializers(graph.model))
        held = {key_of(tensor): tensor for tensor in tensors if isinstance(tensor, MappedTensor)}
        for value in initializers(copy.model):
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = held[key_of(value.const_value)]
    except Exception as problem:
        raise ModelError(
            f"{graph.origin} has opset {graph.opset}, blocks in DequantizeLinear need {least}, and onnx cannot convert "
            f"it: {first_line(problem)}",
            hint="choose format matmulnbits, or export the model with a later opset",
        ) from problem
    return copy


def needed_opset(plan: QuantPlan) -> int:
    """The version of the standard ops that DequantizeLinear needs for ``plan``."""
    stored = [(node.scheme.stored_bits, node.scheme.block_size) for node in plan.blocked]
    if any(bits == 2 for bits, _ in stored):
        return _TWO_BITS_OPSET
    return _BLOCKED_OPSET if any(bits == 4 or size for bits, size in stored) else 13


def multiplications(model: bytes) -> Counter[tuple[int, str]]:
    """How often an optimized model multiplies by weights of so many bits, and in what arithmetic.

    ``A8`` rounds activations to int8, ``A16`` and ``A32`` are floats; ``reals`` stands for a DequantizeLinear that is
    left, which makes float weights at each run.
    """
    found: Counter[tuple[int, str]] = Counter()
    loaded = ir.serde.deserialize_model(without_maps(onnx.ModelProto.FromString(model)))
    for node in loaded.graph.all_nodes():
        if node.op_type == "MatMulNBits":
            level = int_attribute(node, "accuracy_level", 0)
            scales = None if node.inputs[2] is None else node.inputs[2].const_value  # its values may lie elsewhere
            half = scales is not None and scales.dtype is ir.DataType.FLOAT16
            kind = "A8" if level == ACCURACY_LEVELS["int8"] else "A16" if half else "A32"
            found[int_attribute(node, "bits", 4), kind] += 1
        elif node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].dtype is not None:
            found[node.inputs[0].dtype.bitwidth, "reals"] += 1
    return found

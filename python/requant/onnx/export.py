"""Write integers into a graph: the one place that edits it.

For each quantized activation ``t``: ``t -> QuantizeLinear -> DequantizeLinear -> readers``. Where an integer op gives
``t``, every reader takes the dequantized tensor, because a runtime fuses the op only if QuantizeLinear is its sole
reader; otherwise only the integer readers do. A Relu or Clip between an integer op and QuantizeLinear is dropped when
saturation does the same: when its bounds are the ends of the integer type, to within rounding. The upper bound of such
a Clip is written to the model's metadata (``requant.clamp.TENSOR``), for those who look at the tensor while it runs;
both bounds are, where the saturation is that of a HardSigmoid.
Integers of 16 bits take onnxruntime's ops where the model's opset is below 21.

Tensors and nodes of the model keep their names here. What is added is numbered (``q7``, ``dq7``, ``w7``, ``s7``,
``z7``: integers, reals again, weights, scale, zero point): in long names it would weigh a tenth of a small model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.boundary import OPSET_OF_16_BITS
from requant.onnx.frozen import CLAMP_KEY
from requant.onnx.mapped import fingerprint
from requant.onnx.names import name_of, taken_names
from requant.onnx.nodes import add_initializer, constant, int_attribute
from requant.onnx.ops import Kind, row_of
from requant.onnx.passes.activations import hard_sigmoid
from requant.onnx.passes.cleanup import drop_unused
from requant.onnx.sites import FACTOR_BITS, multiplies_back
from requant.planning.plan import Saturation
from requant.types import PerChannel, QuantizedTensor, QuantParams, QuantScheme
from requant.uncollected import uncollected

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from requant.building.resolve import Resolved
    from requant.onnx.graph import Graph
    from requant.planning.plan import NodePlan, QuantPlan
    from requant.types import QuantType


@uncollected()
def insert_qdq(graph: Graph, plan: QuantPlan, resolved: Resolved) -> Graph:
    """A copy of ``graph`` with QuantizeLinear and DequantizeLinear where ``plan`` says."""
    copy = graph.copy()
    _Writer(copy, plan, resolved).write()
    drop_unused(copy.model)
    return copy


_CONTRIB = "com.microsoft"
_HALF_STEP = 0.5 + 1e-3  # with room for the rounding of scale itself


class _Writer:
    def __init__(self, graph: Graph, plan: QuantPlan, resolved: Resolved) -> None:
        self.opsets = graph.model.opset_imports
        self.metadata = graph.model.metadata_props
        self.tensor = graph.tensor
        self.plan = plan
        self.resolved = resolved
        self.nodes = {node.name: node for node in graph.all_nodes()}
        main = graph.model.graph
        graphs = (main, *main.subgraphs())
        self.values = {name: v for g in graphs for name, v in ir.convenience.create_value_mapping(g).items()}
        self.constants: dict[Hashable, ir.Value] = {}
        self.taken = taken_names(main)
        self.serials: Counter[str] = Counter()
        self.gains: dict[str, np.float32] = {}
        self.viewed: dict[ir.Node, str] = {}
        self.integer = {node.name for node in plan.nodes}

    def write(self) -> None:
        for node_plan in self.plan.nodes:
            self._write_constants(node_plan)
        readers: dict[str, list[tuple[str, int]]] = {}
        for node_plan in self.plan.nodes:
            for index, name in node_plan.activations:
                readers.setdefault(name, []).append((node_plan.name, index))
        for name in self.plan.tensors:
            producer = self.values[name].producer()
            if producer is not None and producer in self.viewed:
                self._view(producer)
            else:
                self._quantize_activation(self.values[name], readers.get(name, []))

    def _write_constants(self, node_plan: NodePlan) -> None:
        """Let a node read its weight and bias, and what else is constant there, from integers."""
        node, read = self.nodes[node_plan.name], node_plan.activations[0][1]
        if node_plan.saturates is Saturation.AS_ADD:
            self._become_add(node, self.plan.tensors[read].scheme.dtype)
        elif node_plan.saturates is Saturation.BEFORE:
            self.viewed[node] = read
        elif multiplies_back(node):
            self._quantize_factors(node, self.plan.tensors[read].scheme.dtype)
        for tensors, index in ((self.resolved.weights, 1), (self.resolved.biases, 2)):
            tensor = tensors.get(node_plan.name)
            if tensor is None:
                continue
            if len(node.inputs) <= index:  # a bias that corrects what has none
                node.resize_inputs(index + 1)
            node.replace_input_with(index, self._dequantized_constant(node, node.inputs[index], tensor))

    def _quantize_activation(self, value: ir.Value, readers: list[tuple[str, int]]) -> None:
        params = self.resolved.activations[name_of(value)]
        name = name_of(value)
        value, from_integer = self._drop_clamps(value, params)
        home = _home(value)
        stored = self._parameters(self._steps(name, value, params), home)
        quantized = self._unique("q")
        quantize = ir.node(
            "QuantizeLinear",
            [value, *stored],
            domain=self._domain(params.scheme.dtype),
            outputs=[_value(quantized, ir.DataType[params.scheme.dtype.upper()], value.shape)],
            name=quantized,
        )
        dequantize = self._dequantize(quantize.outputs[0], params, home)
        result, added = dequantize.outputs[0], [quantize, dequantize]
        if from_integer:
            is_output = value.is_graph_output()
            guarded = [(use.node, use.idx) for use in value.uses() if self._reaches_guarded(use.node)]
            ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
            quantize.replace_input_with(0, value)
            added += self._guard(quantize.outputs[0], params, guarded, home)
            if is_output:
                value.name, result.name = self._unique("f"), name
                if (high := self.metadata.pop(f"{CLAMP_KEY}{name}", None)) is not None:
                    self.metadata[f"{CLAMP_KEY}{value.name}"] = high
        else:
            for reader, index in readers:
                self.nodes[reader].replace_input_with(index, result)
        producer = value.producer()
        if producer is None:
            home.insert_before(home[0], added)
        else:
            home.insert_after(producer, added)
        self._dequantize_in_bodies(quantize.outputs[0], params, readers, home)

    def _steps(self, name: str, value: ir.Value, params: QuantParams) -> QuantParams:
        """The parameters by which ``value`` is quantized, where ``params`` are those of the tensor that is read."""
        gain = self.gains.get(name)
        if gain is not None:  # the addition gives what saturates only when it is quantized
            top = (params.scheme.dtype.max - int(params.zero_point)) * float(params.scale) / float(gain)
            self.metadata[f"{CLAMP_KEY}{name}"] = repr(top)
            params = replace(params, scale=params.scale / gain)
        if self._is_guarded_move(value.producer()):
            return _for_each_channel(params, value) or params
        return params

    def _dequantize_in_bodies(
        self, integers: ir.Value, params: QuantParams, readers: Sequence[tuple[str, int]], home: ir.Graph
    ) -> None:
        """Let readers in bodies read from a DequantizeLinear there: a runtime fuses no other."""
        inner: dict[ir.Graph, ir.Node] = {}
        for reader, index in readers:
            body = self.nodes[reader].graph
            if not isinstance(body, ir.Graph) or body is home:
                continue
            if body not in inner:
                inner[body] = self._dequantize(integers, params, body)
                body.insert_before(body[0], inner[body])
            self.nodes[reader].replace_input_with(index, inner[body].outputs[0])

    def _dequantize(self, integers: ir.Value, params: QuantParams, home: ir.Graph, axis: int | None = None) -> ir.Node:
        """A DequantizeLinear of one scale, or one for each index of ``axis``, whose default is 1."""
        name = self._unique("dq")
        return ir.node(
            "DequantizeLinear",
            [integers, *self._parameters(params, home)],
            domain=self._domain(params.scheme.dtype),
            attributes={} if axis is None else {"axis": axis},
            outputs=[_value(name, ir.DataType.FLOAT, integers.shape)],
            name=name,
        )

    def _is_guarded_move(self, node: ir.Node | None) -> bool:
        """Whether ``node`` moves values and shall stay float: an optimizer would draw a QuantizeLinear before it."""
        row = None if node is None or node.name not in self.plan.guarded else row_of(node)
        return row is not None and row.kind is Kind.MOVE

    def _reaches_guarded(self, node: ir.Node) -> bool:
        """Whether ``node`` is one that shall stay float, or only moves values on their way to one."""
        if node.name in self.plan.guarded:
            return True
        row = row_of(node)
        moves = row is not None and row.kind is Kind.MOVE and node.name not in self.integer
        return moves and any(self._reaches_guarded(user) for out in node.outputs for user in out.consumers())

    def _guard(
        self, integers: ir.Value, params: QuantParams, readers: Sequence[tuple[ir.Node, int]], home: ir.Graph
    ) -> list[ir.Node]:
        """Let ``readers`` read from a DequantizeLinear of the same scale for each channel (``Target.requantizes``)."""
        each = _for_each_channel(params, integers)
        if not readers or each is None:
            return []
        dequantize = self._dequantize(integers, each, home)
        for node, index in readers:
            node.replace_input_with(index, dequantize.outputs[0])
        return [dequantize]

    def _domain(self, dtype: QuantType) -> str:
        """Where the ops are that quantize to ``dtype``: before opset 21, ONNX's own do not know 16 bits."""
        imports = self.opsets
        if dtype.bits <= 8 or imports[""] >= OPSET_OF_16_BITS:
            return ""
        imports.setdefault(_CONTRIB, 1)
        return _CONTRIB

    def _become_add(self, node: ir.Node, dtype: QuantType) -> None:
        """Let a HardSigmoid add ``beta / alpha``: quantized in steps of ``scale / alpha``, its result saturates.

        What is dequantized in steps of ``scale`` then is that sum times ``alpha``.
        """
        alpha, beta = hard_sigmoid(node)
        scale = np.array(beta / alpha / dtype.max, np.float32)
        params = QuantParams(scale, np.zeros((), dtype.numpy), QuantScheme(dtype))
        shift = QuantizedTensor(np.array(dtype.max, dtype.numpy), params)
        node.op_type = "Add"
        node.attributes.clear()
        node.resize_inputs(2)
        node.replace_input_with(1, self._dequantized_constant(node, None, shift))
        self.gains[name_of(node.outputs[0])] = np.float32(alpha)

    def _quantize_factors(self, node: ir.Node, dtype: QuantType) -> None:
        """Let a product with powers of two read these as integers: the same numbers."""
        factors = constant(node.inputs[1])
        assert factors is not None
        unit = np.array(factors.max() / 2**FACTOR_BITS, np.float32)
        params = QuantParams(unit, np.zeros((), dtype.numpy), QuantScheme(dtype))
        integers = QuantizedTensor((factors / unit).astype(dtype.numpy), params)
        node.replace_input_with(1, self._dequantized_constant(node, node.inputs[1], integers))

    def _view(self, gate: ir.Node) -> None:
        """Let the integers that a HardSigmoid reads stand for its result, too.

        ``alpha s (q - z) + beta`` is ``alpha s (q - (z - beta / (alpha s)))``, to within half a step.
        """
        assert gate.inputs[0] is not None
        reals = gate.inputs[0].producer()
        assert reals is not None  # what the gate reads stands before it, and has been quantized
        integers, home = reals.inputs[0], _home(gate.outputs[0])
        assert integers is not None
        alpha, beta = hard_sigmoid(gate)
        read = self.resolved.activations[self.viewed[gate]]
        scale = np.array(np.float32(alpha) * read.scale, np.float32)
        limits = read.scheme.dtype.min, read.scheme.dtype.max
        zero = np.clip(np.rint(float(read.zero_point) - beta / float(scale)), *limits)
        params = replace(read, scale=scale, zero_point=zero.astype(read.scheme.dtype.numpy))
        self.metadata[f"{CLAMP_KEY}{self.viewed[gate]}"] = f"{-beta / alpha!r} {(1 - beta) / alpha!r}"
        view = self._dequantize(integers, params, home)
        home.insert_before(gate, view)
        ir.convenience.replace_all_uses_with(gate.outputs[0], view.outputs[0])

    def _drop_clamps(self, value: ir.Value, params: QuantParams) -> tuple[ir.Value, bool]:
        """The tensor to quantize in place of ``value``, and whether an integer op gives it."""
        chain, source = [], value
        while (node := source.producer()) is not None and node.op_type in ("Relu", "Clip"):
            if node.name in self.integer:
                break
            before = node.inputs[0]
            if before is None or len(before.uses()) != 1 or before.is_graph_output():
                break
            chain.append(node)
            source = before
        producer = source.producer()
        if producer is None or producer.name not in self.integer:
            return value, False
        if not all(_saturates(node, params) for node in chain):
            return value, True
        if chain:
            ir.convenience.replace_all_uses_with(value, source, replace_graph_outputs=True)
            name = value.name
            highs = [high for _, high in map(_bounds, chain) if high is not None]
            _home(source).remove(chain, safe=True)
            source.name = name
            if highs:  # a reader of the tensor cannot tell otherwise
                self.metadata[f"{CLAMP_KEY}{name}"] = repr(min(highs))
        return source, True

    def _dequantized_constant(self, node: ir.Node, original: ir.Value | None, tensor: QuantizedTensor) -> ir.Value:
        name = (original.name if original is not None else None) or f"{node.name}_constant"
        home = _home(node.outputs[0])
        key = (home, name, fingerprint(tensor.data), tensor.params.scale.tobytes())
        if key not in self.constants:
            axis = getattr(tensor.params.scheme.granularity, "axis", None)
            dequantize = self._dequantize(self._shared("w", tensor.data, home), tensor.params, home, axis)
            home.insert_before(home[0], dequantize)
            self.constants[key] = dequantize.outputs[0]
        return self.constants[key]

    def _parameters(self, params: QuantParams, home: ir.Graph) -> tuple[ir.Value, ...]:
        """Scale and zero point, each written once for all who share it; a bias needs no zero point.

        A weight does: onnxruntime fuses Gemm only with one.
        """
        scale = self._shared("s", params.scale.astype(np.float32), home)
        zero_point = params.zero_point
        if zero_point.dtype == np.int32:
            return (scale,)
        return scale, self._shared("z", zero_point, home)

    def _shared(self, kind: str, array: NDArray[Any], home: ir.Graph) -> ir.Value:
        """A constant in ``home``, written once there."""
        key = (home, kind, fingerprint(array))
        if key not in self.constants:
            self.constants[key] = self._initializer(kind, array, home)
        return self.constants[key]

    def _unique(self, kind: str) -> str:
        """The next name of that kind that no tensor or node of the model has."""
        while True:
            self.serials[kind] += 1
            name = f"{kind}{self.serials[kind]}"
            if name not in self.taken:
                return name

    def _initializer(self, kind: str, array: NDArray[Any], home: ir.Graph) -> ir.Value:
        name = self._unique(kind)
        array = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray makes 0-d arrays 1-d
        return add_initializer(home, name, self.tensor(array, name))


def _for_each_channel(params: QuantParams, value: ir.Value) -> QuantParams | None:
    """``params`` repeated for each channel of ``value``, axis 1; None where their number is not known."""
    channels = _channels(value)
    if channels is None:
        return None
    scheme = replace(params.scheme, granularity=PerChannel(1))
    return QuantParams(np.repeat(params.scale, channels), np.repeat(params.zero_point, channels), scheme)


def _channels(value: ir.Value) -> int | None:
    """How many indices axis 1 has, as ``value`` says, or else a convolution that reads it; None where neither does."""
    known = value.shape[1] if value.shape is not None and len(value.shape) > 1 else None
    if isinstance(known, int):
        return known
    for node, index in value.uses():
        weight = node.inputs[1] if node.op_type == "Conv" and index == 0 and not node.domain else None
        depth = None if weight is None or weight.shape is None else weight.shape[1]
        if isinstance(depth, int):
            return depth * int_attribute(node, "group", 1)
    return None


def _saturates(clamp: ir.Node, params: QuantParams) -> bool:
    """Whether quantizing already does what ``clamp`` does.

    It does where each bound quantizes to the end of the integer type, or lies within half a step of that end's real:
    then leaving the clamp out moves no value by more than rounding does.
    """
    scheme, scale, zero_point = params.scheme, np.float32(params.scale), int(params.zero_point)

    def meets(bound: float | None, end: int) -> bool:
        if bound is None:
            return True
        q = np.clip(np.rint(np.float32(bound) / scale) + zero_point, scheme.dtype.min, scheme.dtype.max)
        return bool(q == end or abs(bound / scale - (end - zero_point)) <= _HALF_STEP)

    low, high = _bounds(clamp)
    return meets(low, scheme.dtype.min) and meets(high, scheme.dtype.max)


def _bounds(clamp: ir.Node) -> tuple[float | None, float | None]:
    """The bounds of a Relu or Clip; None where it has none."""
    if clamp.op_type == "Relu":
        return 0.0, None
    bounds = [constant(v) for v in clamp.inputs[1:]]
    low, high = (None if b is None else float(b.item()) for b in (*bounds, None, None)[:2])
    return low, high


def _home(value: ir.Value) -> ir.Graph:
    """The graph that a tensor is of: the main one, or a body."""
    assert isinstance(value.graph, ir.Graph)  # functions are inlined before
    return value.graph


def _value(name: str, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    value = ir.Value(name=name, shape=None if shape is None else ir.Shape(list(shape)))
    value.dtype = dtype
    return value

"""Write integer weights, and activations that are quantized at run time, into a graph.

A product becomes the chain that onnxruntime fuses to DynamicQuantizeMatMul, or to MatMulIntegerToFloat where several
products read one activation::

    x -> DynamicQuantizeLinear -> MatMulInteger(weight) -> Cast -> Mul(x_scale * w_scale) [-> Add(bias)]

An LSTM becomes com.microsoft's DynamicQuantizeLSTM, a convolution the same chain with ConvInteger. A weight that is
only stored as integers is ``Mul(Cast(integers), scale)``: constants, which a runtime folds when it loads the model,
where it would run DequantizeLinear at each inference. Of a large table only the rows that are looked up become real::

    indices -> Gather(integers) -> Cast -> Mul(Gather(scale))
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.mapped import fingerprint
from requant.onnx.names import free_name, name_of, taken_names
from requant.onnx.nodes import add_initializer, constant, int_attribute, is_transposed
from requant.onnx.passes.cleanup import drop_unused
from requant.planning.plan import Form
from requant.uncollected import uncollected

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from numpy.typing import NDArray

    from requant.building.dynamic import IntegerWeight, IntegerWeights
    from requant.onnx.graph import Graph
    from requant.planning.plan import DynamicNode, QuantPlan

_CONTRIB = "com.microsoft"
_LSTM_INPUTS = 8  # X, W, R, B, sequence_lens, initial_h, initial_c, P: behind them come the scales
_BIAS = 2
#: Values of a table from which on its reals, four times its integers, do not lie in memory.
_LARGE_TABLE = 1 << 22


@uncollected()
def insert_dynamic(graph: Graph, plan: QuantPlan, weights: IntegerWeights) -> Graph:
    """``graph`` with each node of ``plan.dynamic`` in the form it says: a copy, if there are any."""
    if not plan.dynamic:
        return graph
    copy = graph.copy()
    _Writer(copy, weights).write(plan)
    drop_unused(copy.model)
    return copy


class _Writer:
    def __init__(self, graph: Graph, weights: IntegerWeights) -> None:
        self.model = graph.model
        self.weights = weights
        self.nodes = {node.name: node for node in graph.all_nodes()}
        self.taken = taken_names(graph.model.graph)
        self.tensor = graph.tensor
        self.serials: Counter[str] = Counter()
        self.constants: dict[Hashable, ir.Value] = {}
        self.quantized: dict[tuple[ir.Graph, ir.Value], tuple[ir.Value, ...]] = {}
        self.reals: dict[tuple[ir.Graph, str, tuple[int, ...]], ir.Value] = {}

    def write(self, plan: QuantPlan) -> None:
        forms = {"MatMul": self._product, "Gemm": self._product, "Conv": self._convolution, "LSTM": self._lstm}
        for planned in plan.dynamic:
            node = self.nodes[planned.name]
            if planned.form is Form.INTEGER:
                forms[planned.op_type](node)
            elif self._is_large_table(node, planned):
                self._look_up(node, self.weights[planned.name, 0])
            else:
                self._store(node, planned)

    # -- weights that are only stored as integers ----------------------------------------------------------------------

    def _store(self, node: ir.Node, planned: DynamicNode) -> None:
        for plan in planned.weights:
            weight = self.weights[planned.name, plan.index]
            node.replace_input_with(plan.index, self._widened(node.inputs[plan.index], weight))

    def _widened(self, value: ir.Value | None, weight: IntegerWeight) -> ir.Value:
        """The reals of ``weight``, as a constant expression in the graph where ``value`` is."""
        scope = _scope(value)
        key = (scope, _name(value), weight.scale.shape)
        if key not in self.reals:
            data = self._constant(scope, self._numbered("i"), weight.data)
            scale = self._constant(scope, self._numbered("f"), weight.scale)
            cast = self._node("Cast", [data], self._numbered("c"), [ir.AttrInt64("to", ir.DataType.FLOAT)])
            chain = [cast, self._node("Mul", [cast.outputs[0], scale], self._numbered("r"))]
            if weight.gain is not None:
                gain = self._constant(scope, self._numbered("g"), weight.gain)
                chain.append(self._node("Mul", [chain[-1].outputs[0], gain], self._numbered("r")))
            scope.insert_before(scope[0], chain)
            self.reals[key] = chain[-1].outputs[0]
        return self.reals[key]

    def _is_large_table(self, node: ir.Node, planned: DynamicNode) -> bool:
        """Whether a node looks up rows of a large matrix."""
        if node.op_type != "Gather" or int_attribute(node, "axis", 0) != 0:
            return False
        data = self.weights[planned.name, 0].data
        return data.ndim == 2 and data.size >= _LARGE_TABLE

    def _look_up(self, node: ir.Node, weight: IntegerWeight) -> None:
        """Let a lookup read integers, and what it finds become real."""
        table, indices, name = node.inputs[0], node.inputs[1], name_of(node)
        assert indices is not None  # as a Gather has some
        scope = _scope(table)
        rows = self._node("Gather", [self._constant(scope, f"{_name(table)}_q", weight.data), indices], f"{name}_rows")
        cast = self._node("Cast", [rows.outputs[0]], f"{name}_cast", [ir.AttrInt64("to", ir.DataType.FLOAT)])
        chain = [rows, cast]
        each_row = weight.scale.size > 1
        step = self._constant(scope, f"{_name(table)}_scale", weight.scale if each_row else weight.scale.reshape(()))
        if each_row:
            steps = self._node("Gather", [step, indices], f"{name}_steps")
            chain.append(steps)
            step = steps.outputs[0]
        chain.append(self._node("Mul", [cast.outputs[0], step], f"{name}_reals"))
        if weight.gain is not None:
            gain = self._constant(scope, f"{_name(table)}_gain", weight.gain.reshape(-1))
            chain.append(self._node("Mul", [chain[-1].outputs[0], gain], f"{name}_scaled"))
        _replace(node, chain)

    # -- ops that run on integers --------------------------------------------------------------------------------------

    def _product(self, node: ir.Node) -> None:
        weight = self.weights[name_of(node), 1]
        data = weight.data.T if is_transposed(node) else weight.data
        scale = weight.scale * np.float32(_factor(node, "alpha"))
        bias = _input(node, _BIAS)
        addend = None if bias is None else self._addend(node, bias, data.shape[1])
        self._integer_chain(node, "MatMulInteger", data, (_flat(scale), _flat(weight.zero_points)), addend)

    def _addend(self, node: ir.Node, bias: ir.Value, columns: int) -> ir.Value:
        """What is added to a product: a vector where all rows get the same, which runtimes add in the kernel."""
        array = constant(bias)
        if array is None:
            return bias
        array = array * np.float32(_factor(node, "beta"))
        if all(d == 1 for d in array.shape[:-1]):
            array = np.broadcast_to(array.reshape(-1), (columns,))
        return self._constant(_scope(bias), f"{bias.name}_addend", array)

    def _convolution(self, node: ir.Node) -> None:
        weight = self.weights[name_of(node), 1]
        ones = (1,) * (weight.data.ndim - 2)
        bias = _input(node, _BIAS)
        addend = None
        if bias is not None:
            rows = self._constant(_scope(bias), f"{node.name}_bias_shape", np.array([1, -1, *ones], np.int64))
            reshape = self._node("Reshape", [bias, rows], f"{node.name}_bias")
            _home(node).insert_before(node, reshape)
            addend = reshape.outputs[0]
        scale = weight.scale.reshape(1, -1, *ones)
        zero_point = np.array(weight.zero_point, weight.data.dtype)
        self._integer_chain(node, "ConvInteger", weight.data, (scale, zero_point), addend)

    def _integer_chain(
        self,
        node: ir.Node,
        op_type: str,
        data: NDArray[Any],
        parameters: tuple[NDArray[np.float32], NDArray[Any]],
        addend: ir.Value | None,
    ) -> None:
        """Replace ``node`` by an integer op and what makes its sums real again."""
        scale, zero_point = parameters
        x, name, scope = node.inputs[0], name_of(node), _scope(node.inputs[1])
        assert x is not None  # an op of the plan has an input
        integers, x_scale, x_zero_point = self._quantized(node, x)
        weight = self._constant(scope, f"{_name(node.inputs[1])}_q", data)
        inputs = [integers, weight, x_zero_point]
        if zero_point.any():
            inputs.append(self._constant(scope, f"{_name(node.inputs[1])}_zero_point", zero_point))
        kept = node.attributes.values() if op_type == "ConvInteger" else ()
        sums = self._node(op_type, inputs, f"{name}_sums", kept)
        cast = self._node("Cast", [sums.outputs[0]], f"{name}_cast", [ir.AttrInt64("to", ir.DataType.FLOAT)])
        w_scale = self._constant(scope, f"{_name(node.inputs[1])}_scale", scale)
        step = self._node("Mul", [x_scale, w_scale], f"{name}_step")
        chain = [sums, cast, step, self._node("Mul", [cast.outputs[0], step.outputs[0]], f"{name}_reals")]
        if addend is not None:
            chain.append(self._node("Add", [chain[-1].outputs[0], addend], f"{name}_sum"))
        _replace(node, chain)

    def _quantized(self, node: ir.Node, x: ir.Value) -> tuple[ir.Value, ...]:
        """Integers, scale and zero point of ``x``: quantized once in each graph, before its first reader."""
        key = (_home(node), x)
        if key not in self.quantized:
            suffixes = ("q", "scale", "zero_point")
            outputs = [ir.Value(name=free_name(f"{x.name}_{suffix}", self.taken)) for suffix in suffixes]
            name = free_name(f"{x.name}_quantize", self.taken)
            quantize = ir.Node("", "DynamicQuantizeLinear", [x], outputs=outputs, name=name)
            _home(node).insert_before(node, quantize)
            self.quantized[key] = tuple(outputs)
        return self.quantized[key]

    def _lstm(self, node: ir.Node) -> None:
        inputs = [_input(node, index) for index in range(_LSTM_INPUTS)]
        for index in (1, 2):
            weight, original = self.weights[name_of(node), index], node.inputs[index]
            scope, name = _scope(original), _name(original)
            directions = weight.data.shape[0]
            inputs[index] = self._constant(scope, f"{name}_q", weight.data.transpose(0, 2, 1))
            for suffix, array in (("scale", weight.scale), ("zero_point", weight.zero_points)):
                shape = (directions, -1) if array.size > directions else (directions,)
                inputs.append(self._constant(scope, f"{name}_{suffix}", array.reshape(shape)))
        outputs = [ir.Value(name=free_name(_name(out), self.taken) if out.name else "") for out in node.outputs]
        attributes = [attr for attr in node.attributes.values() if attr.name != "layout"]
        name = free_name(f"{node.name}_integer", self.taken)
        lstm = ir.Node(_CONTRIB, "DynamicQuantizeLSTM", inputs, attributes, outputs=outputs, name=name)
        self.model.opset_imports.setdefault(_CONTRIB, 1)
        _replace(node, [lstm])

    # -- nodes and constants -------------------------------------------------------------------------------------------

    def _node(self, op_type: str, inputs: Sequence[ir.Value], name: str, attributes: Iterable[ir.Attr] = ()) -> ir.Node:
        """A node with one output, both of a new name."""
        name = free_name(name, self.taken)
        return ir.Node("", op_type, inputs, attributes, outputs=[ir.Value(name=name)], name=name)

    def _constant(self, scope: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
        """An initializer of ``scope``, written once for all that have the same values."""
        array = np.asarray(array, order="C")
        key = (scope, fingerprint(array))
        if key not in self.constants:
            name = free_name(name, self.taken)
            self.constants[key] = add_initializer(scope, name, self.tensor(array, name))
        return self.constants[key]

    def _numbered(self, kind: str) -> str:
        """A short name: long ones would weigh more than the scales of a small weight."""
        self.serials[kind] += 1
        return f"{kind}{self.serials[kind]}"


def _replace(node: ir.Node, chain: Sequence[ir.Node]) -> None:
    """Put ``chain`` in the place of ``node``; the outputs of its last node take over the names and readers."""
    ir.convenience.replace_nodes_and_values(_home(node), node, [node], chain, node.outputs, chain[-1].outputs)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _factor(node: ir.Node, name: str) -> float:
    """A factor of Gemm; other products have none."""
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()


def _name(value: ir.Value | None) -> str:
    return "" if value is None else name_of(value)


def _scope(value: ir.Value | None) -> ir.Graph:
    """The graph that holds a constant: that of its reader, or one around it."""
    assert value is not None
    assert value.graph is not None  # only values that a graph holds are planned
    return value.graph


def _home(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)  # functions are inlined before
    return node.graph


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """A scale to each column as a vector, one in all as a scalar."""
    return array.reshape(-1) if array.size > 1 else array.reshape(())

"""Quantized operators in place of ops between DequantizeLinear and QuantizeLinear.

    DequantizeLinear -> op -> QuantizeLinear     becomes     QLinearOp

A model in QDQ form is rewritten, so that there is one planner and one place that inserts. What a runtime would fuse
then stands in the file: QLinearConv and QLinearMatMul are ONNX's, the others onnxruntime's (domain ``com.microsoft``,
see https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md). An op without such a form keeps its
Q and DQ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import onnx_ir as ir

from requant.onnx.passes.cleanup import drop_unused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from requant.onnx.graph import Graph

    Inputs = list[ir.Value | None]

_CONTRIB = "com.microsoft"
_BYTES = frozenset({ir.DataType.INT8, ir.DataType.UINT8})


class Operator(NamedTuple):
    """A node to be, but for its outputs."""

    op_type: str
    domain: str
    inputs: Sequence[ir.Value | None]
    attributes: Mapping[str, ir.Attr]


if TYPE_CHECKING:
    #: From a node, the DequantizeLinear of each input, and scale and zero point of its output (none: it gives float),
    #: to its operator; None where it has none.
    Form = Callable[[ir.Node, Sequence[ir.Node | None], Inputs], Operator | None]


def as_operators(graph: Graph, moves: Iterable[str]) -> Graph:
    """A copy of ``graph`` in which every op that has an operator for integers is one.

    Args:
        graph: a model in QDQ form.
        moves: op types that run on integers as they are, where input and output have the same parameters.
    """
    copy = graph.copy()
    _Rewriter(copy.model.graph, frozenset(moves)).rewrite()
    drop_unused(copy.model)
    return copy


def left_between(graph: Graph, names: Iterable[str]) -> list[str]:
    """Op types of those of the nodes called ``names`` that still read from a DequantizeLinear, in order."""
    wanted = frozenset(names)
    return [
        node.op_type
        for node in graph.nodes
        if node.name in wanted and any(_dequantizer(value) is not None for value in node.inputs)
    ]


class _Rewriter:
    def __init__(self, graph: ir.Graph, moves: frozenset[str]) -> None:
        self.graph = graph
        self.moves = moves

    def rewrite(self) -> None:
        for node in list(self.graph):
            if node.domain != "":
                continue
            if node.op_type in self.moves:
                self._move(node)
            elif node.op_type in _FORMS:
                self._replace(node, _FORMS[node.op_type])

    def _move(self, node: ir.Node) -> None:
        """Let ``node`` move integers, if all it gives is quantized as what it reads was."""
        source = _dequantizer(node.inputs[0])
        quantizers = [_quantizer(output) for output in node.outputs]
        if source is None or not all(q is not None and _same_params(q, source) for q in quantizers):
            return
        outputs = [_integers(q) for q in quantizers if q is not None]
        inputs = [source.inputs[0], *node.inputs[1:]]
        self._put(node, Operator(node.op_type, "", inputs, node.attributes), outputs)

    def _replace(self, node: ir.Node, form: Form) -> None:
        operands = [_dequantizer(value) for value in node.inputs]
        quantizer = _quantizer(node.outputs[0])
        operator = form(node, operands, [] if quantizer is None else list(quantizer.inputs[1:]))
        if operator is not None:
            self._put(node, operator, [node.outputs[0] if quantizer is None else _integers(quantizer)])

    def _put(self, node: ir.Node, operator: Operator, outputs: Sequence[ir.Value]) -> None:
        """Give ``outputs`` by a new node in the place of ``node``."""
        given = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in outputs]
        attributes = list(operator.attributes.values())
        new = ir.Node(operator.domain, operator.op_type, operator.inputs, attributes, outputs=given, name=node.name)
        self.graph.insert_after(node, new)
        for old, value in zip(outputs, given, strict=True):
            ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
            giver = old.producer()
            if giver is not None and giver is not node:
                self.graph.remove(giver, safe=True)
        self.graph.remove(node, safe=True)
        if operator.domain:
            self.graph.opset_imports.setdefault(operator.domain, 1)


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" and node.domain == "" else None


def _quantizer(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear to bytes that alone reads ``value``."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(uses)).node
    quantizes = node.op_type == "QuantizeLinear" and node.domain == "" and node.outputs[0].dtype in _BYTES
    return node if quantizes else None


def _integers(quantizer: ir.Node) -> ir.Value:
    return quantizer.outputs[0]


def _same_params(quantizer: ir.Node, dequantizer: ir.Node) -> bool:
    """Whether both have one scale and zero point; equal ones are one constant."""
    return list(quantizer.inputs[1:]) == list(dequantizer.inputs[1:])


def _operand(dequantizer: ir.Node | None) -> Inputs | None:
    """Integers of 8 bits, their scale and zero point."""
    if dequantizer is None or len(dequantizer.inputs) != 3 or dequantizer.inputs[0] is None:
        return None
    return list(dequantizer.inputs) if dequantizer.inputs[0].dtype in _BYTES else None


def _operands(dequantizers: Iterable[ir.Node | None]) -> Inputs | None:
    """The operands one after the other; None where one is none."""
    found = [_operand(dequantizer) for dequantizer in dequantizers]
    return None if any(each is None for each in found) else [value for each in found if each for value in each]


def _linear(op_type: str, **attributes: int) -> Form:
    """All inputs, and behind them the output's parameters."""

    def form(node: ir.Node, operands: Sequence[ir.Node | None], output: Inputs) -> Operator | None:
        inputs = _operands(operands)
        more = {name: ir.AttrInt64(name, value) for name, value in attributes.items()}
        return (
            Operator(op_type, _CONTRIB, [*inputs, *output], {**node.attributes, **more}) if inputs and output else None
        )

    return form


def _softmax(node: ir.Node, operands: Sequence[ir.Node | None], output: Inputs) -> Operator | None:
    imports = {} if node.graph is None else node.graph.opset_imports
    return _linear("QLinearSoftmax", axis=node.attributes.get_int("axis", -1), opset=imports.get("", 13))(
        node, operands, output
    )


def _concat(node: ir.Node, operands: Sequence[ir.Node | None], output: Inputs) -> Operator | None:
    inputs = _operands(operands)
    return Operator("QLinearConcat", _CONTRIB, [*output, *inputs], node.attributes) if inputs and output else None


def _where(node: ir.Node, operands: Sequence[ir.Node | None], output: Inputs) -> Operator | None:
    inputs = _operands(operands[1:])
    return Operator("QLinearWhere", _CONTRIB, [node.inputs[0], *inputs, *output], {}) if inputs and output else None


def _bias(node: ir.Node, operands: Sequence[ir.Node | None]) -> Inputs | None:
    """The int32 bias, if there is one; None where it is float."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return []
    dequantizer = operands[2]
    return None if dequantizer is None else [dequantizer.inputs[0]]


def _conv(node: ir.Node, operands: Sequence[ir.Node | None], output: Inputs) -> Operator | None:
    inputs, bias = _operands(operands[:2]), _bias(node, operands)
    if not inputs or bias is None or not output:
        return None
    return Operator("QLinearConv", "", [*inputs, *output, *bias], node.attributes)


def _gemm(node: ir.Node, operands: Sequence[ir.Node | None], output: Inputs) -> Operator | None:
    inputs, bias = _operands(operands[:2]), _bias(node, operands)
    if not inputs or bias is None:
        return None
    attributes = {name: value for name, value in node.attributes.items() if name in ("transA", "transB")}
    return Operator("QGemm", _CONTRIB, [*inputs, *(bias or [None]), *output], attributes)


def _matmul(_: ir.Node, operands: Sequence[ir.Node | None], output: Inputs) -> Operator | None:
    inputs = _operands(operands)
    if not inputs:
        return None
    if output:
        return Operator("QLinearMatMul", "", [*inputs, *output], {})
    a, a_scale, a_zero, b, b_scale, b_zero = inputs
    return Operator("MatMulIntegerToFloat", _CONTRIB, [a, b, a_scale, b_scale, a_zero, b_zero], {})


_FORMS: Mapping[str, Form] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _linear("QLinearAdd"),
    "Mul": _linear("QLinearMul"),
    "Where": _where,
    "Concat": _concat,
    "Sigmoid": _linear("QLinearSigmoid"),
    "LeakyRelu": _linear("QLinearLeakyRelu"),
    "Softmax": _softmax,
    "AveragePool": _linear("QLinearAveragePool"),
    "GlobalAveragePool": _linear("QLinearGlobalAveragePool"),
}

"""The graph that is written: its names, its outputs, and what else reads its tensors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.models import Net, run
from tests.quantized import Quantized, sqnr

from requant.building.resolve import resolve
from requant.config import QuantConfig
from requant.onnx.export import insert_qdq
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.planning.build import build_plan
from requant.types import Range


def test_an_inner_tensor_that_is_an_output_keeps_its_name() -> None:
    net = Net()
    inner = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4, output="inner")
    q = Quantized(net.model(inner, net.conv(net.op("Relu", inner), 4, 2, output="y")))
    assert [o.name for o in q.proto.graph.output] == ["inner", "y"]
    for real, got in zip(run(q.model, q.feeds), run(q.data, q.feeds), strict=True):
        assert sqnr(real, got) > 20


def test_an_input_that_is_an_output_too_is_passed_on_in_float() -> None:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    q = Quantized(net.model(net.conv(x, 3, 4, output="y"), net.op("Identity", x, output="z")))
    np.testing.assert_array_equal(run(q.data, q.feeds)[1], q.feeds["x"])


def chosen_names() -> list[str]:
    """The names that exporting gives to what it adds to the model below."""
    q = Quantized(renamed("unused", "tensor"))
    before = onnx.load_from_string(q.graph.to_bytes()).graph

    def names(graph: onnx.GraphProto) -> set[str]:
        nodes = {node.name for node in graph.node} | {out for node in graph.node for out in node.output}
        return nodes | {i.name for i in graph.initializer}

    return sorted(names(q.proto.graph) - names(before))


def renamed(taken: str, kind: str) -> onnx.ModelProto:
    """Two products with a clamp, beside something that is called ``taken``."""
    net = Net()
    x = net.input("x", ["n", 4])
    match kind:
        case "input":
            other = net.op("Exp", net.input(taken, ["n", 4]), output="other")
        case "initializer":
            other = net.op("Erf", net.op("Pow", x, net.const(np.full(4, 2.0), taken)), output="other")
        case "node":
            other = net.op("Erf", x, output="other", name=taken)
        case _:
            other = net.op("Erf", x, output=taken)
    hidden = net.op("Relu", net.op("Gemm", x, net.normal(4, 4, name="w"), net.normal(4, name="b")), output="h")
    inner = net.op("MatMul", hidden, net.normal(4, 4, name="v"), output="y")
    return net.model(other, inner, net.op("MatMul", inner, net.normal(4, 2, name="u"), output="z"))


@pytest.mark.parametrize("kind", ["tensor", "initializer", "node", "input"])
def test_names_that_exporting_would_choose_may_be_taken(kind: str) -> None:
    for name in chosen_names():
        model = renamed(name, kind)
        q = Quantized(model)
        onnx.checker.check_model(q.proto)
        assert [o.name for o in q.proto.graph.output] == [o.name for o in model.graph.output]
        for real, got in zip(run(q.model, q.feeds), run(q.data, q.feeds), strict=True):
            assert sqnr(real, got) > 15


def test_weights_that_two_ops_share_are_written_once_where_they_are_equal() -> None:
    net = Net()
    x, w = net.input("x", ["n", 4]), net.normal(4, 4, name="w")
    model = net.model(net.op("MatMul", net.op("MatMul", x, w), w))
    q = Quantized(model)
    assert [tuple(i.dims) for i in q.proto.graph.initializer if i.data_type == onnx.TensorProto.INT8].count((4, 4)) == 1


def test_indices_of_a_pooling_stay_integers_of_their_own() -> None:
    net = Net()
    a = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)
    pooled, where = net.ops("MaxPool", a, outputs=["pooled", "where"], kernel_shape=[2, 2])
    q = Quantized(net.model(net.conv(pooled, 4, 2), where))
    onnx.checker.check_model(q.proto, full_check=True)
    assert run(q.data, q.feeds)[1].dtype == np.int64


def test_control_flow_reads_the_tensors_it_read_before() -> None:
    net = Net()
    x, flag = net.input("x", ["n", 3, 8, 8]), net.input("flag", [], onnx.TensorProto.BOOL)
    y = net.op("Relu", net.conv(x, 3, 4), output="outer")
    bodies = {}
    for branch, op in (("then_branch", "Exp"), ("else_branch", "Neg")):
        out = onnx.helper.make_tensor_value_info(branch, 1, ["n", 4, 8, 8])
        bodies[branch] = onnx.helper.make_graph([onnx.helper.make_node(op, [y], [branch])], branch, [], [out])
    model = net.model(net.op("If", flag, **bodies))
    graph = prepare(Graph.load(model))[0]
    plan = build_plan(graph, QuantConfig())
    result = resolve(graph, plan, dict.fromkeys(plan.calibrated, Range(-3.0, 3.0)), QuantConfig())
    data = insert_qdq(graph, plan, result).to_bytes()
    for value in (True, False):
        feeds = {
            "x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32),
            "flag": np.array(value),
        }
        assert sqnr(run(model, feeds)[0], run(data, feeds)[0]) > 15

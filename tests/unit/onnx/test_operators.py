"""Models of quantized operators: results as in QDQ form, and the operators that onnxruntime would make of that."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import MODELS, Net, run, samples
from tests.quantized import Quantized
from tests.unit.onnx.test_export import KERNELS, MOVES

import requant
from requant.errors import ConfigError
from requant.onnx.export import insert_qdq
from requant.onnx.operators import as_operators, left_between
from requant.targets import get_target

if TYPE_CHECKING:
    from requant.onnx.graph import Graph

MOVED = get_target("ort-cpu").moves


def operators(q: Quantized) -> Graph:
    return as_operators(insert_qdq(q.graph, q.plan, q.resolved), MOVED)


def counts(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph.nodes)


def assert_same(q: Quantized, graph: Graph) -> None:
    """Equal to what onnxruntime makes of the QDQ model, and within a step of that run as written."""
    data = graph.to_bytes()
    onnx.checker.check_model(data)
    fused = run(q.data, q.feeds)
    for got, wanted, step in zip(run(data, q.feeds), fused, q.steps(), strict=True):
        assert np.max(np.abs(got - wanted)) <= 1.01 * step
        assert np.mean(np.abs(got - wanted) > 0.01 * step) < 0.02
    np.testing.assert_equal(run(data, q.feeds, optimize=False)[0].shape, fused[0].shape)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "symmetric": {"symmetric": True},
    "uint8 weights": {"weights": "uint8"},
    "per tensor": {"per_channel": False},
    "generic": {"target": "generic", "weights": "uint8"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_results_are_those_of_the_qdq_model(name: str, options: str) -> None:
    q = Quantized(MODELS[name](), **OPTIONS[options])
    assert_same(q, operators(q))


@pytest.mark.parametrize("op_type", KERNELS)
def test_each_op_becomes_its_operator(op_type: str) -> None:
    kernel, build = KERNELS[op_type]
    q = Quantized(build(Net(opset=17)))
    graph = operators(q)
    found = counts(graph)
    assert found[kernel] > 0, found
    assert found[op_type] == 0, found
    assert found["QuantizeLinear"] == 1, found
    assert found["DequantizeLinear"] <= 1, found
    assert left_between(graph, (node.name for node in q.plan.nodes)) == []
    assert_same(q, graph)


@pytest.mark.parametrize("op_type", MOVES)
def test_moving_ops_move_integers(op_type: str) -> None:
    net = Net(opset=17)
    y = MOVES[op_type](net, net.conv(net.input("x", ["n", 3, 8, 8]), 3, 8, 1))
    weight = net.normal(8, 4) if op_type in ("Expand", "Unsqueeze") else None
    if op_type in ("Flatten", "Squeeze"):
        y = net.gemm(y, 512 if op_type == "Flatten" else 8, 4)
    else:
        y = net.op("MatMul", y, weight) if weight else net.conv(y, 8, 4, 1)
    q = Quantized(net.model(y))
    graph = operators(q)
    assert counts(graph)["QuantizeLinear"] == 1, counts(graph)
    assert_same(q, graph)


def test_what_has_no_operator_keeps_its_conversions_and_is_told() -> None:
    net = Net()
    a = net.op("Tanh", net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4))
    model = net.model(net.conv(a, 4, 2))
    result = requant.quantize(model, [samples(model, 16)], target="generic", format="qoperator", weights="uint8")
    assert "no operator for integers, so Q and DQ stay around them: Tanh 1" in result.report.notes
    proto = onnx.load_from_string(result.data)
    assert Counter(node.op_type for node in proto.graph.node)["QLinearConv"] == 2


def test_an_op_that_someone_reads_in_float_too_stays() -> None:
    net = Net()
    inner = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4, output="inner")
    q = Quantized(net.model(inner, net.conv(net.op("Relu", inner), 4, 2, output="y")))
    graph = operators(q)
    assert [output.name for output in graph.outputs] == ["inner", "y"]
    for got, wanted in zip(run(graph.to_bytes(), q.feeds), run(q.data, q.feeds), strict=True):
        np.testing.assert_allclose(got, wanted, atol=0.05)


def test_sixteen_bits_have_no_operators() -> None:
    q = Quantized(MODELS["residual"](), activations="uint16")
    graph = operators(q)
    assert not any(op_type.startswith("QLinear") for op_type in counts(graph))
    assert_same(q, graph)


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn", "tflite", "warboy"])
def test_the_format_is_refused_where_it_is_not_read(target: str) -> None:
    with pytest.raises(ConfigError, match=f"target {target} reads qdq"):
        requant.QuantConfig(target=target, format="qoperator")

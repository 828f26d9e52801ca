"""Constants that stay float, in half precision: half the bytes, the same kernels, an error that is bounded."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from tests.models import Array, Net, run, samples, session

import requant
from requant.onnx.graph import Graph
from requant.onnx.storage import Stored, store_half

pytestmark = pytest.mark.usefixtures("quick_latency")


def adding(table: Array) -> Graph:
    net = Net()
    x = net.input("x", ["n", table.size])
    return Graph.load(net.model(net.op("Add", x, net.const(table, "table"), output="y")))


def stored_as(graph: Graph) -> dict[str, int]:
    return {t.name: t.data_type for t in onnx.load_from_string(graph.to_bytes()).graph.initializer}


def test_values_are_rounded_by_at_most_the_promised_share() -> None:
    table = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    table[0] = 1e-9  # underflows
    graph = adding(table)
    before = graph.to_bytes()
    half, stored = store_half(graph, exactly=False)
    assert graph.to_bytes() == before
    assert stored == Stored(half=("table",))
    assert stored_as(half) == {"table": TensorProto.FLOAT16}
    assert len(half.to_bytes()) < 0.55 * len(before)
    feeds = {"x": np.zeros((1, table.size), np.float32)}
    (got,) = run(half.to_bytes(), feeds)
    np.testing.assert_array_equal(got[0], table.astype(np.float16).astype(np.float32))
    assert np.abs(got[0] - table).max() <= 2.0**-11 * np.abs(table).max()


def test_bfloat16_keeps_the_range_and_rounds_each_value() -> None:
    table = (np.random.default_rng(0).normal(size=1000) * 10.0 ** np.linspace(-30, 30, 1000)).astype(np.float32)
    graph = adding(table)
    half, stored = store_half(graph, exactly=False, dtype="bfloat16")
    assert stored == Stored(half=("table",))
    assert stored_as(half) == {"table": TensorProto.BFLOAT16}
    (got,) = run(half.to_bytes(), {"x": np.zeros((1, table.size), np.float32)})
    np.testing.assert_allclose(got[0], table, rtol=2.0**-8)
    np.testing.assert_array_equal(got[0], table.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert store_half(adding(np.full(300, 3.4e38, np.float32)), exactly=False, dtype="bfloat16")[1].kept == ("table",)


@pytest.mark.parametrize("largest", [65505.0, 1e9, 1e-5, 1e-30])
def test_constants_out_of_range_stay_and_are_named(largest: float) -> None:
    table = np.linspace(0, largest, 300, dtype=np.float32)
    half, stored = store_half(adding(table), exactly=False)
    assert stored == Stored(kept=("table",))
    assert stored_as(half) == {"table": TensorProto.FLOAT}


def test_infinities_and_zeros_survive() -> None:
    for table in (np.zeros(300, np.float32), np.where(np.arange(300) < 9, -np.inf, 1.0).astype(np.float32)):
        half, stored = store_half(adding(table), exactly=False)
        assert stored.half == ("table",)
        (got,) = run(half.to_bytes(), {"x": np.zeros((1, 300), np.float32)})
        np.testing.assert_array_equal(got[0], table)


EXACT: dict[int, Any] = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


@pytest.mark.parametrize("kind", EXACT)
def test_exactly_converts_what_loses_nothing(kind: int) -> None:
    values = np.random.default_rng(0).normal(size=300).astype(np.float32)
    values[0] = 3e38 if kind == TensorProto.BFLOAT16 else 1.0009765625  # what the other type cannot hold
    table = values.astype(EXACT[kind]).astype(np.float32)
    half, stored = store_half(adding(table), exactly=True)
    assert stored == Stored(half=("table",))
    assert stored_as(half) == {"table": kind}
    (got,) = run(half.to_bytes(), {"x": np.zeros((1, 300), np.float32)})
    np.testing.assert_array_equal(got[0], table)
    assert store_half(adding(values + np.float32(1e-3)), exactly=True)[1] == Stored()


def test_scales_small_constants_and_outputs_are_left_alone() -> None:
    net = Net()
    x = net.input("x", ["n", 300])
    scales, zeros = net.const(np.full(300, 0.1), "scales"), net.const(np.zeros(300, np.int8))
    q = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scales, zeros, axis=1), scales, zeros, axis=1)
    model = net.model(net.op("Add", q, net.const(np.full(1, 0.5), "small")))
    model.graph.initializer.append(numpy_helper.from_array(np.full(300, 0.5, np.float32), "given"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("given", TensorProto.FLOAT, [300]))
    half, stored = store_half(Graph.load(model), exactly=False)
    assert stored == Stored()
    assert TensorProto.FLOAT16 not in stored_as(half).values()


def partly_float() -> onnx.ModelProto:
    """A product that becomes integer, and a constant of 300 values that no integer op takes."""
    net = Net()
    product = net.op("MatMul", net.input("x", ["n", 8]), net.normal(8, 4), output="y")
    return net.model(
        product,
        net.op("Add", net.op("Softplus", net.input("a", ["n", 300])), net.normal(300, name="shift"), output="b"),
    )


def test_the_option_stores_the_rest_and_the_report_tells(tmp_path: Any) -> None:
    model = partly_float()
    feeds = samples(model, 16)
    keep, half = (requant.quantize(model, feeds, threads=1, rest=rest) for rest in ("keep", "float16"))
    assert len(half.data) < len(keep.data) - 400
    assert "1 float constant stored in half precision" in half.report.notes
    kinds = {t.name: t.data_type for t in onnx.load_from_string(half.data).graph.initializer}
    assert kinds["shift"] == TensorProto.FLOAT16
    for got, expected in zip(run(half.data, feeds), run(keep.data, feeds), strict=True):
        np.testing.assert_allclose(got, expected, atol=4e-3)
    # The runtime casts once, when it loads the model.
    path = str(tmp_path / "optimised.onnx")
    session(half.data, save_to=path)
    assert not any(node.op_type == "Cast" for node in onnx.load(path).graph.node)


def test_what_came_in_half_precision_goes_out_so() -> None:
    model = partly_float()
    for tensor in model.graph.initializer:
        if tensor.name == "shift":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), "half"))
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["half"], ["shift"], to=TensorProto.FLOAT))
    result = requant.quantize(model, samples(model, 16), threads=1)
    kinds = [t.data_type for t in onnx.load_from_string(result.data).graph.initializer if list(t.dims) == [300]]
    assert kinds == [TensorProto.FLOAT16]

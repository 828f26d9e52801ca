"""Means and second moments of layers' inputs, and what is made of them, against sums written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import Net, run

import requant
from requant.building.noise import Noise, clearly_more
from requant.building.repair import _Rebuilt, _Walked
from requant.building.resolve import resolve
from requant.calibration.moments import Layer, layer_moments, layers
from requant.config import QuantConfig
from requant.data.grouping import Batch
from requant.onnx.export import insert_qdq
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.rows import as_rows, from_rows
from requant.planning.build import build_plan
from requant.types import QuantizedTensor, QuantParams, QuantScheme, QuantType, Range

if TYPE_CHECKING:
    from collections.abc import Callable

PARAMS = QuantParams(np.asarray(0.05, np.float32), np.asarray(128, np.uint8), QuantScheme(QuantType.UINT8))


def conv_model(
    w: np.ndarray, shape: tuple[int | None, ...], bias: np.ndarray | None = None, **attributes: Any
) -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n" if size is None else size for size in shape])
    rest = [] if bias is None else [net.const(bias)]
    return net.model(net.op("Conv", x, net.const(w), *rest, output="y", **attributes))


CASES = [
    pytest.param({"pads": [1, 1, 1, 1]}, (3, 4), 1, id="same"),
    pytest.param({"strides": [2, 1], "pads": [0, 1, 2, 1]}, (3, 4), 1, id="strides"),
    pytest.param({"dilations": [1, 2], "pads": [2, 0, 0, 1]}, (3, 4), 1, id="dilated"),
    pytest.param({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (2, 6), 2, id="groups"),
    pytest.param({"auto_pad": "VALID"}, (1, 4), 4, id="depthwise"),
]


@pytest.mark.parametrize(("attributes", "filters", "groups"), CASES)
def test_a_row_times_a_vector_is_a_value_of_the_convolution(
    attributes: dict[str, Any], filters: tuple[int, int], groups: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, filters[0] * groups, 7, 6)).astype(np.float32)
    w = rng.normal(size=(filters[1], filters[0], 3, 2)).astype(np.float32)
    model = conv_model(w, x.shape, group=groups, **attributes)
    graph = Graph.load(model)
    plan = build_plan(graph, QuantConfig())
    (layer,) = layers(graph, plan)
    vectors = layer.vectors(x, 10**6)  # [places of all images, groups, k]
    rows = as_rows(w, layer.node).reshape(groups, -1, layer.k)
    outputs = np.einsum("gnk,vgk->vgn", rows, vectors).reshape(len(vectors), -1)
    expected = run(model, {"x": x})[0]
    assert np.allclose(outputs, np.moveaxis(expected, 1, -1).reshape(outputs.shape), atol=1e-5)
    few = layer.vectors(x, 5)
    assert 0 < len(few) <= 5
    assert all((vectors == vector).all(axis=(1, 2)).any() for vector in few)


def test_moments_are_those_of_the_quantized_input() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 3, 5, 5)).astype(np.float32)
    graph = Graph.load(conv_model(rng.normal(size=(4, 3, 1, 1)).astype(np.float32), (None, 3, 5, 5)))
    plan = build_plan(graph, QuantConfig())
    batches = [Batch({"x": x[:2]}, (0, 1)), Batch({"x": x[2:]}, (2, 3, 4, 5))]
    ((_, moments),) = layer_moments(graph, plan, dict.fromkeys(plan.tensors, PARAMS), batches, threads=1)
    steps = np.clip(np.rint(x / np.float32(0.05)), -128, 127)
    flat = np.moveaxis(steps, 1, -1).reshape(-1, 3).astype(np.float64)
    assert moments.count == len(flat) == 150
    assert np.allclose(moments.second[0], flat.T @ flat / 150)
    shrunk = moments.shrunk()[0]
    assert np.allclose(np.diag(shrunk), np.diag(moments.second[0]))
    assert np.allclose(shrunk[0, 1], moments.second[0, 0, 1] * 150 / 153)


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (4, 1, 3), (6, 2, 1, 1, 2)])
def test_rows_of_convolutions_go_back(shape: tuple[int, ...]) -> None:
    graph = Graph.load(conv_model(np.zeros(shape, np.float32), (1, shape[1], *[9] * (len(shape) - 2))))
    (layer,) = layers(graph, build_plan(graph, QuantConfig()))
    w = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(from_rows(as_rows(w, layer.node), layer.node, shape), w)


@pytest.mark.parametrize(("op", "shape"), [("MatMul", (3, 5)), ("Gemm", (3, 5)), ("Gemm", (5, 3))])
def test_rows_of_matrices_go_back(op: str, shape: tuple[int, int]) -> None:
    layer = _matrix_layer(op, shape)
    w = np.arange(15).reshape(shape)
    rows = as_rows(w, layer.node)
    assert rows.shape == (5, 3)
    assert np.array_equal(from_rows(rows, layer.node, shape), w)


def _matrix_layer(op: str, shape: tuple[int, int]) -> Layer:
    attributes: dict[str, Any] = {"transB": 1} if shape == (5, 3) else {}
    net = Net()
    graph = Graph.load(net.model(net.op(op, net.input("x", [2, 3]), net.normal(*shape), output="y", **attributes)))
    (layer,) = layers(graph, build_plan(graph, QuantConfig()))
    assert layer.k == 3
    return layer


def _correlated(samples: int) -> np.ndarray:
    """Images whose channels go up and down together, never negative."""
    rng = np.random.default_rng(2)
    return (rng.gamma(2.0, size=(samples, 1, 6, 6)) + 0.1 * rng.random((samples, 8, 6, 6))).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("saturation", ["safe", "full"])
def test_repairs_lower_the_error_on_samples_that_were_not_seen(bias: bool, saturation: str) -> None:
    rng = np.random.default_rng(3)
    w, b = rng.normal(size=(16, 8, 3, 3)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    model = conv_model(w, (None, 8, 6, 6), bias=b if bias else None, pads=[1, 1, 1, 1])
    calib, fresh = _correlated(48), _correlated(96)[48:]
    expected = run(model, {"x": fresh})[0]

    def error(**options: Any) -> tuple[float, float]:
        data = requant.quantize(model, calib, saturation=saturation, **options).data
        got = run(data, {"x": fresh})[0]
        shift = np.mean(got - expected, axis=(0, 2, 3))
        return float(np.mean((got - expected) ** 2)), float(np.abs(shift).mean())

    nearest, reconstructed = error(rounding="nearest"), error()
    assert reconstructed[0] < nearest[0]
    corrected = error(rounding="nearest", bias_correction=True)
    assert corrected[1] < 0.5 * nearest[1]


def test_safe_weights_stay_safe() -> None:
    rng = np.random.default_rng(4)
    model = conv_model(rng.laplace(size=(16, 8, 3, 3)).astype(np.float32), (None, 8, 6, 6))
    quantized = onnx.load_from_string(requant.quantize(model, _correlated(32)).data)
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in quantized.graph.initializer}
    (w,) = [a for a in arrays.values() if a.dtype == np.int8 and a.ndim == 4]
    pairs = np.moveaxis(w, 1, -1).reshape(16, -1, 2).astype(np.int32)
    assert np.abs(w.astype(np.int32)).max() <= 127
    assert max(np.maximum(pairs, 0).sum(-1).max(), np.maximum(-pairs, 0).sum(-1).max()) <= 128


def test_threads_and_batches_change_nothing() -> None:
    rng = np.random.default_rng(5)
    model = conv_model(rng.normal(size=(4, 8, 3, 3)).astype(np.float32), (None, 8, 6, 6))
    calib = _correlated(24)
    whole = requant.quantize(model, calib, bias_correction=True, threads=1).data
    assert requant.quantize(model, calib, bias_correction=True, threads=2).data == whole


def test_without_samples_weights_are_rounded_to_nearest() -> None:
    rng = np.random.default_rng(6)
    model = conv_model(rng.normal(size=(4, 8, 3, 3)).astype(np.float32), (None, 8, 6, 6))
    table = requant.calibrate(model, _correlated(24))
    alone = requant.quantize(model, table=table)
    assert alone.data == requant.quantize(model, table=table, rounding="nearest").data
    assert any("rounded to nearest" in note for note in alone.report.notes)


def test_a_large_bias_keeps_its_scale() -> None:
    """Where int32 sets the scale, a smaller one is no choice."""
    model = conv_model(np.full((1, 8, 1, 1), 1e-3, np.float32), (None, 8, 6, 6), bias=np.full(1, 1e6, np.float32))
    prepared, _ = prepare(Graph.load(model))
    assert prepared.nodes
    quantized = requant.quantize(model, _correlated(16)).data
    x = _correlated(2)
    expected = run(model, {"x": x})[0]
    got = run(quantized, {"x": x})[0]
    assert np.allclose(got, expected, rtol=1e-2)


def test_more_noise_is_clear_where_chance_does_not_explain_it() -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        samples = int(rng.integers(1, 40))
        noise, other = rng.gamma(1.0, size=(2, samples))
        noise += rng.choice([0.0, 0.5, 5.0])
        d = [float(a) - float(b) for a, b in zip(noise, other, strict=True)]
        mean = sum(d) / samples
        spread = sum((each - mean) ** 2 for each in d) / max(samples - 1, 1)
        tenfold = sum(noise) > 10 * sum(other) and sum(noise) > 0.01 * samples
        assert clearly_more(noise, other) == (tenfold or (samples >= 8 and mean > 2 * (spread / samples) ** 0.5))
    once = np.array([100.0, *[1.0] * 15])
    assert not clearly_more(once, np.full(16, 2.0))  # one sample proves nothing
    assert clearly_more(np.array([np.inf, 1.0]), np.ones(2))
    assert clearly_more(np.array([0.02]), np.array([0.001]))  # of -30 dB, -17 dB
    assert not clearly_more(np.array([0.002]), np.array([0.0001]))  # still -27 dB


def changing(count: int) -> np.ndarray:
    """Rows that point in one direction at first, and in all of them later."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(count, 20, 24))
    x[:40] = 0.2 * rng.normal(size=(40, 20, 1)) + 0.001 * x[:40]
    return x.astype(np.float32)


WEIGHT = np.random.default_rng(9).normal(size=(24, 8)).astype(np.float32)


def product() -> onnx.ModelProto:
    net = Net()
    return net.model(net.op("MatMul", net.input("x", ["n", 20, 24]), net.const(WEIGHT), output="y"))


def product_in_a_branch() -> onnx.ModelProto:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", floats, [1, 20, 24]),
    ]
    bodies = {}
    for branch, op in (("then_branch", ("MatMul", ["x", "w"])), ("else_branch", ("ReduceSum", ["x"]))):
        y = helper.make_tensor_value_info(branch, floats, None)
        bodies[branch] = helper.make_graph([helper.make_node(*op, [branch])], branch, [], [y])
    y = helper.make_tensor_value_info("y", floats, None)
    weight = [onnx.numpy_helper.from_array(WEIGHT, "w")]
    graph = helper.make_graph([helper.make_node("If", ["flag"], ["y"], **bodies)], "g", inputs, [y], weight)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("build", [product, product_in_a_branch])
def test_weights_that_err_more_on_held_back_samples_are_not_kept(build: Callable[[], onnx.ModelProto]) -> None:
    options: dict[str, Any] = {"smooth": "none", "batch_size": 4, "activations": "uint16"}
    data: Any = changing(256)
    if build is product_in_a_branch:
        data = [{"flag": np.array(True), "x": row[None]} for row in data]
    kept = requant.quantize(build(), data, **options)
    assert any("clearly erred more" in line for line in kept.report.prepared)
    assert kept.data == requant.quantize(build(), data, rounding="nearest", **options).data
    alike = requant.quantize(build(), data[40:], **options)
    assert any("rounded by the error" in line for line in alike.report.prepared)


def test_outputs_without_a_sample_axis_are_shared_out() -> None:
    """A batch is judged whole by an output that sums over it, beside one with a row for each sample."""
    net = Net()
    x = net.gemm(net.input("x", ["n", 8]), 8, 8)
    y = net.gemm(net.op("Relu", x), 8, 4)
    model = net.model(y, net.op("ReduceMean", y, keepdims=0))
    data = np.random.default_rng(0).standard_normal((4, 16, 8)).astype(np.float32)
    graph = prepare(Graph.load(model))[0]
    config = QuantConfig(threads=1)
    plan = build_plan(graph, config)
    ranges = {name: Range(-8.0, 8.0) for name in plan.tensors}
    resolved = resolve(graph, plan, ranges, config)
    batches = [Batch({"x": part}, tuple(range(16))) for part in data]
    noise = Noise(graph, batches, threads=1).of(insert_qdq(graph, plan, resolved))
    exact = [run(model, {"x": part}) for part in data]
    got = [run(insert_qdq(graph, plan, resolved).to_bytes(), {"x": part}) for part in data]
    for i, part in enumerate(data):
        for j in range(len(part)):
            total = 0.0
            for k, shared in ((0, False), (1, True)):
                error = np.square(got[i][k].astype(np.float64) - exact[i][k])
                share = error / 16 if shared else error[j]
                signal = sum(np.square(each[k].astype(np.float64)).sum() for each in exact) / 64
                total += float(np.sum(share) / signal)
            assert noise[16 * i + j] == pytest.approx(total, rel=1e-5)


def test_biases_are_corrected_in_the_model_whose_earlier_ones_are() -> None:
    """One walk through the model finds what a model for each layer finds, to the rounding of the runtime's kernels."""
    net = Net(seed=3)
    x = net.op("Relu", net.conv(net.input("x", ["n", 4, 8, 8]), 4, 8))
    skipped = net.op("Relu", net.op("Conv", x, net.normal(8, 8, 3, 3), pads=[1, 1, 1, 1]))
    y = net.op("GlobalAveragePool", net.op("Add", x, skipped))
    model = net.model(net.gemm(net.op("Flatten", y), 8, 3, output="y"))
    graph = prepare(Graph.load(model))[0]
    config = QuantConfig(threads=1)
    plan = build_plan(graph, config)
    resolved = resolve(graph, plan, {name: Range(-4.0, 4.0) for name in plan.tensors}, config)
    found = [layer for layer in layers(graph, plan) if layer.node.name in resolved.biases]
    assert len(found) == 2
    data = np.random.default_rng(0).normal(size=(4, 4, 4, 8, 8)).astype(np.float32)
    batches = [Batch({"x": part}, tuple(range(4))) for part in data]
    walked, rebuilt = (kind(graph, plan, resolved, batches, 1) for kind in (_Walked, _Rebuilt))
    biases = dict(resolved.biases)
    for layer in found:
        here, there = (each.means(layer, biases) for each in (walked, rebuilt))
        step = float(resolved.activations[layer.reads].scale)
        assert here is not None
        assert there is not None
        np.testing.assert_allclose(here, there, atol=0.01 * step)
        if layer is found[-1]:
            apart = _Rebuilt(graph, plan, resolved, batches, 1).means(layer, resolved.biases)
            assert apart is not None
            assert not np.allclose(apart, there, atol=0.1 * step)
        before = biases[layer.node.name]
        moved = before.data + np.rint(1 / before.params.scale).astype(
            np.int32
        )  # all that follows sees a bias of 1 more
        biases[layer.node.name] = QuantizedTensor(moved, before.params)

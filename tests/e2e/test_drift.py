"""Drift is what quantizing live values with frozen and with fresh ranges really costs; monitors add up."""

from __future__ import annotations

import json
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import Net, depthwise, run, samples, two_gemm
from tests.unit.onnx import test_bodies as bodies
from tests.unit.onnx.test_bodies import MODELS, samples as in_bodies

import requant
from requant import Verdict
from requant.cli.render import drift as show
from requant.errors import ConfigError, DataError, ModelError
from requant.onnx.frozen import frozen_ranges
from requant.onnx.graph import Graph
from requant.runtime import joined, open_runner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from requant.runtime import Runner

pytestmark = pytest.mark.usefixtures("quick_latency")

RNG = np.random.default_rng(0)
CALIBRATION = RNG.standard_normal((512, 8)).astype(np.float32)
LIVE = RNG.standard_normal((400, 8)).astype(np.float32)
CUBED = (LIVE**3).astype(np.float32)
SPIKES = np.where(RNG.random(LIVE.shape) < 0.003, 15 * LIVE, LIVE).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> bytes:
    return requant.quantize(two_gemm(), {"x": CALIBRATION}, method="minmax", threads=1).data


def watched(model: bytes, x: NDArray[np.float32], requests: int = 10, **options: Any) -> requant.DriftMonitor:
    monitor = requant.DriftMonitor(model, **{"every": 1, **options})
    for request in np.split(x, requests):
        monitor.observe({"x": request})
    return monitor


def squared_error(x: NDArray[np.float32], scale: float, zero_point: int) -> NDArray[np.float64]:
    """Of uint8, one value at a time."""
    q = np.clip(np.rint(x.astype(np.float64) / scale) + zero_point, 0, 255)
    error: NDArray[np.float64] = np.square((q - zero_point) * scale - x.astype(np.float64))
    return error


def dynamic_error(x: NDArray[np.float32]) -> NDArray[np.float64]:
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = float(np.float32((hi - lo) / 255))
    return squared_error(x, scale, round(-lo / scale))


@pytest.mark.parametrize(
    ("x", "verdict", "least", "most"),
    [
        (LIVE, Verdict.MATCHES, 1, 4),
        (LIVE / 3, Verdict.NARROWER, 5, 20),
        (LIVE * 3, Verdict.WIDER, 500, 5000),
        (SPIKES, Verdict.OUTLIERS, 100, 1000),
    ],
    ids=["matched", "narrow", "wide", "outliers"],
)
def test_the_four_regimes(model: bytes, x: NDArray[np.float32], verdict: Verdict, least: float, most: float) -> None:
    found = watched(model, x).drift()
    (tensor,) = found.tensors
    frozen = frozen_ranges(Graph.load(model))[0]["x"]
    static = squared_error(x, frozen.scale, frozen.zero_point).mean()
    dynamic = np.mean([dynamic_error(request).mean() for request in np.split(x, 10)])
    assert tensor.static_error == pytest.approx(static, rel=0.03)
    assert tensor.dynamic_error == pytest.approx(dynamic, rel=1e-3)
    assert least < (tensor.ratio or 0) < most
    assert tensor.clipped == pytest.approx(
        np.mean((x < frozen.lo - frozen.scale / 2) | (x > frozen.hi + frozen.scale / 2)), abs=1e-3
    )
    assert (found.verdict, tensor.verdict) == (verdict, verdict)
    assert (tensor.min, tensor.max, tensor.values) == (x.min(), x.max(), x.size)


def test_what_few_values_and_few_clipped_requests_say_may_be_chance() -> None:
    """Traffic from the distribution of calibration, with heavy tails: by far most of it matches, however little."""
    rng = np.random.default_rng(11)
    verdicts = []
    for _ in range(30):
        both = rng.exponential(size=(2, 32, 8)) * rng.choice([-1, 1], size=(2, 32, 8))
        data = requant.quantize(two_gemm(), {"x": both[0].astype(np.float32)}, smooth="none", rounding="nearest").data
        verdicts.append(watched(data, both[1].astype(np.float32), requests=32).drift().verdict)
    assert verdicts.count(Verdict.MATCHES) >= 29, verdicts


def test_the_share_that_is_chance_is_that_of_the_requests_that_are_clipped(model: bytes) -> None:
    live = np.clip(LIVE, -2, 2)
    frozen = frozen_ranges(Graph.load(model))[0]["x"]
    near, far = 1.5 * frozen.hi, 10 * frozen.hi
    for value, clipped, requests in (
        (far, 1, 20),
        (far, 10, 20),
        (far, 20, 20),
        (far, 1, 1),
        (near, 12, 20),
        (near, 13, 20),
    ):
        x = live.reshape(requests, -1, 8).copy()
        x[:clipped, 0, 0] = value
        (tensor,) = watched(model, x.reshape(-1, 8), requests=requests).drift().tensors
        share = min(2 * (1 / clipped - 1 / requests) ** 0.5, 1) if value == far or clipped > 12 else 1
        assert tensor.chance == pytest.approx(share * tensor.overload)
        assert tensor.verdict == (Verdict.MATCHES if share == 1 else Verdict.OUTLIERS)


def test_equal_values_between_two_steps_are_not_narrower(model: bytes) -> None:
    frozen = frozen_ranges(Graph.load(model))[0]["x"]
    x = LIVE.copy()
    x[:, 1:] = 0.5 * frozen.scale
    (tensor,) = watched(model, x).drift().tensors
    assert tensor.granular > 2 * frozen.scale**2 / 12
    assert tensor.verdict == Verdict.MATCHES


def test_one_request_in_so_many_is_looked_at(model: bytes) -> None:
    monitor = requant.DriftMonitor(model, every=7)
    looked = [monitor.observe({"x": LIVE[:1]}) for _ in range(30)]
    assert looked == [i % 7 == 0 for i in range(30)]
    assert (monitor.requests, monitor.sampled, monitor.drift().tensors[0].values) == (30, 5, 40)


def test_a_monitor_says_what_it_has_seen(model: bytes) -> None:
    monitor = watched(model, LIVE, every=4)
    assert repr(monitor) == "DriftMonitor(model: 1 tensor, 10 requests, 3 looked at)"


def test_merged_monitors_are_one_that_saw_all(model: bytes) -> None:
    whole = watched(model, LIVE).drift()
    parts = [watched(model, x, 2) for x in np.split(LIVE, 5)]
    first, *rest = parts
    for part in rest:
        first.merge(pickle.loads(pickle.dumps(part)))
    merged = first.drift()
    (a,), (b,) = whole.tensors, merged.tensors
    assert merged.requests == whole.requests == 10
    assert b.dynamic_error == pytest.approx(a.dynamic_error, rel=1e-12)
    assert (b.static_error, b.clipped, b.min, b.max, b.values) == (
        a.static_error,
        a.clipped,
        a.min,
        a.max,
        a.values,
    )


def test_threads_share_a_monitor(model: bytes) -> None:
    monitor = requant.DriftMonitor(model, every=3, tensors="all", threads=1)

    def serve(part: NDArray[np.float32]) -> None:
        for row in part:
            monitor.run({"x": row[np.newaxis]})

    threads = [threading.Thread(target=serve, args=(part,)) for part in np.split(LIVE[:96], 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = monitor.drift()
    assert (found.requests, found.sampled) == (96, 32)
    serial = requant.DriftMonitor(model, every=1, tensors="all", threads=1)
    for row in LIVE[:32]:
        serial.run({"x": row[np.newaxis]})
    assert {t.name: t.values for t in found.tensors} == {t.name: t.values for t in serial.drift().tensors}


def test_inner_tensors_are_read_from_the_run_that_answers(model: bytes) -> None:
    monitor = requant.DriftMonitor(model, tensors="all", every=2, threads=1)
    assert len(monitor.tensors) > 1
    for i in range(4):
        (got,) = monitor.run({"x": LIVE[i : i + 1]})
        np.testing.assert_allclose(got, run(model, {"x": LIVE[i : i + 1]})[0], atol=0.1)
    assert {tensor.name for tensor in monitor.drift().tensors} == set(monitor.tensors)
    assert monitor.sampled == 2


def test_inner_tensors_are_read_as_rarely_as_keeps_it_cheap(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which reading them takes three times as long as a request alone: 2 requests more, of 1 % of 200."""
    now = 0.0

    def clock() -> float:
        return now

    class Timed:
        def __init__(self, runner: Runner, seconds: float) -> None:
            self.runner, self.seconds = runner, seconds

        def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            nonlocal now
            now += self.seconds
            return self.runner.run(feeds)

    monkeypatch.setattr("requant.drift.monitor.perf_counter", clock)
    for every, sampled in ((None, 4), (50, 8)):
        monitor = requant.DriftMonitor(model, tensors="all", every=every, threads=1)
        for inner, seconds in ((False, 1.0), (True, 3.0)):
            monitor._runners[inner] = Timed(monitor._open(inner=inner), seconds)  # type: ignore[assignment]
        for _ in range(400):
            monitor.run({"x": LIVE[:1]})
        assert (monitor.every, monitor.sampled) == (every or 200, sampled)  # it looked at 0, 50, 100, 300


def test_what_a_clamp_cut_off_is_no_drift() -> None:
    """Quantizing takes over Relu6: beyond 0 and 6 the convolution gives what the float model never passes on."""
    net = Net()
    x = net.input("x", ["n", 4, 8, 8])
    a = net.op("Clip", net.conv(x, 4, 4, name="first"), net.const(0.0), net.const(0.5), output="clamped")
    made = net.model(net.conv(a, 4, 6, 1, name="second", output="y"))
    data = samples(made, 256)
    quantized = requant.quantize(made, data, threads=1).data
    frozen = frozen_ranges(Graph.load(quantized))[0]["clamped"]
    assert (frozen.low, frozen.high) == (0.0, 0.5)
    found = {t.name: t for t in requant.measure_drift(quantized, samples(made, 64, seed=3)).tensors}["clamped"]
    assert (found.min, found.max) == (0.0, 0.5)
    assert found.verdict is Verdict.MATCHES


def test_what_a_clamp_at_the_end_cut_off_is_no_drift() -> None:
    """The tensor that is quantized gives its name to the output, and takes another."""
    net = Net()
    a = net.conv(net.input("x", ["n", 4, 8, 8]), 4, 4, name="first")
    made = net.model(net.op("Clip", a, net.const(0.0), net.const(0.5), output="clamped"))
    quantized = requant.quantize(made, samples(made, 256), threads=1).data
    inner = [frozen for name, frozen in frozen_ranges(Graph.load(quantized))[0].items() if name != "x"]
    assert [(frozen.low, frozen.high) for frozen in inner] == [(0.0, 0.5)]
    assert requant.measure_drift(quantized, samples(made, 64, seed=3)).verdict is Verdict.MATCHES


def test_matching_traffic_matches_everywhere(digits: Path) -> None:
    quantized = requant.quantize(digits / "digits.onnx", digits / "calib.npz", threads=1).data
    found = requant.measure_drift(quantized, digits / "eval.npz", data_options=requant.DataOptions(samples=100))
    assert found.verdict is Verdict.MATCHES
    assert (found.requests, found.sampled, len(found.tensors)) == (100, 100, 16)


def test_a_range_that_clips_on_purpose_is_judged_by_its_table() -> None:
    data = {"x": (CALIBRATION**3).astype(np.float32)}
    table = requant.calibrate(two_gemm(), data, threads=1)
    options: dict[str, Any] = {"table": table, "method": "percentile", "percentile": 95.0, "threads": 1}
    quantized = requant.quantize(two_gemm(), **options).data
    monitor = watched(quantized, CUBED)
    assert monitor.drift().verdict is Verdict.WIDER
    assert monitor.drift(table).verdict is Verdict.MATCHES
    assert watched(quantized, CUBED * 20).drift(table).verdict is Verdict.WIDER


def test_counters_are_those_of_prometheus(model: bytes) -> None:
    counters = watched(model, LIVE * 3).counters()
    assert counters["requant_drift_requests_total"] == 10
    assert counters['requant_drift_values_total{tensor="x"}'] == LIVE.size
    assert counters['requant_drift_verdict{tensor="x",verdict="wider"}'] == 1
    assert counters['requant_drift_verdict{tensor="x",verdict="matches"}'] == 0
    assert sum(key.startswith("requant_drift_verdict") for key in counters) == 4
    assert requant.DriftMonitor(model).counters() == {
        "requant_drift_requests_total": 0,
        "requant_drift_sampled_total": 0,
    }


def test_labels_are_escaped() -> None:
    net = Net()
    x = net.input('a"b\\c\nd', ["n", 8])
    quantized = requant.quantize(net.model(net.gemm(x, 8, 4, output="y")), {x: CALIBRATION}, threads=1).data
    monitor = requant.DriftMonitor(quantized, every=1)
    monitor.observe({x: LIVE})
    assert r'requant_drift_values_total{tensor="a\"b\\c\nd"}' in monitor.counters()


def test_nan_infinities_and_constants_are_taken(model: bytes) -> None:
    x = LIVE[:4].copy()
    x[0, 0], x[1, 1] = np.nan, np.inf
    monitor = watched(model, x, 1)
    monitor.observe({"x": np.zeros((0, 8), np.float32)})
    monitor.observe({"x": np.zeros((2, 8), np.float64)})
    (tensor,) = monitor.drift().tensors
    assert (tensor.not_finite, tensor.values) == (2, 30 + 16)
    json.dumps(monitor.drift().to_dict(), allow_nan=False)
    zeros = watched(model, np.zeros((4, 8), np.float32), 1).drift().tensors[0]
    assert (zeros.ratio, zeros.gain, zeros.verdict) == (1.0, 1.0, Verdict.MATCHES)
    only = watched(model, np.full((4, 8), 0.3, np.float32), 1).drift()
    json.dumps(only.to_dict(), allow_nan=False)


def test_bad_input_is_refused(model: bytes, digits: Path) -> None:
    with pytest.raises(ConfigError, match="every is 0"):
        requant.DriftMonitor(model, every=0)
    with pytest.raises(ConfigError, match="has no frozen range for 'X'"):
        requant.DriftMonitor(model, tensors=["X"])
    with pytest.raises(ModelError, match="has no frozen ranges"):
        requant.DriftMonitor(digits / "digits.onnx")
    with pytest.raises(ModelError, match="has no frozen ranges"):
        requant.DriftMonitor(requant.quantize(two_gemm(), dynamic=True).data)
    with pytest.raises(DataError, match="none of x was seen yet"):
        requant.DriftMonitor(model).drift()
    with pytest.raises(TypeError):
        requant.DriftMonitor(model).observe({"x": np.array(["a"])})
    other = requant.quantize(depthwise(), samples(depthwise(), 32), threads=1).data
    with pytest.raises(ConfigError, match="cannot be merged"):
        requant.DriftMonitor(model).merge(requant.DriftMonitor(other))
    with pytest.raises(ModelError, match="pickled cannot run"):
        pickle.loads(pickle.dumps(requant.DriftMonitor(model))).run({"x": LIVE})


@pytest.mark.parametrize("name", MODELS)
def test_tensors_in_bodies_are_watched(name: str) -> None:
    proto = MODELS[name]().SerializeToString()
    graph = Graph.load(proto)
    quantized = requant.quantize(proto, in_bodies(graph, 64), threads=1).data
    live = in_bodies(graph, 40)
    found = requant.measure_drift(quantized, live, threads=1)
    names = [tensor.name for tensor in found.tensors]
    assert names == list(frozen_ranges(Graph.load(quantized))[0])
    assert found.unwatched == ()
    assert {node.name for node in Graph.load(quantized).nodes}.isdisjoint(names)
    assert found.verdict == "matches"
    runner = open_runner(Graph.load(quantized).serialize(names), threads=1)
    for place, tensor in enumerate(found.tensors):
        arrays = [joined(runner.run(feeds)[place]) for feeds in live]
        assert tensor.values == sum(array.size for array in arrays)  # of all iterations, none of a branch not taken
        assert tensor.max == max(array.max() for array in arrays if array.size)
    louder = [{key: 30 * x if x.dtype.kind == "f" else x for key, x in feeds.items()} for feeds in live]
    verdicts = {tensor.name: tensor.verdict for tensor in requant.measure_drift(quantized, louder, threads=1).tensors}
    assert verdicts["r" if "r" in verdicts else "row"] == "wider"


def test_what_is_not_watched_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = MODELS["branching"]().SerializeToString()
    graph = Graph.load(proto)
    quantized = requant.quantize(proto, in_bodies(graph, 64), threads=1).data
    found = requant.measure_drift(quantized, in_bodies(graph, 32, flag=False), threads=1)
    assert [(each.name, each.reason) for each in found.unwatched] == [("r", "no request took its branch")]
    assert "no request took its branch" in found.to_html()
    show(found)
    assert "not watched: 1 more tensor, since no request took its branch" in capsys.readouterr().out
    own = requant.DriftMonitor(quantized, every=1)
    own.observe(in_bodies(graph, 1)[0])
    assert own.drift().unwatched == ()  # only the model's inputs were to be watched


QUANTIZING = [
    bodies.node("Relu", "s", "v"),
    bodies.node("QuantizeLinear", "v scale", "vq"),
    bodies.node("DequantizeLinear", "vq scale", "then"),
]


def with_scale(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A model of ``nodes`` from ``x``, which is quantized as ``start``, to ``y``."""
    first = [bodies.node("QuantizeLinear", "x scale", "xq"), bodies.node("DequantizeLinear", "xq scale", "start")]
    model = bodies.model([*first, *nodes], [bodies.FLAG, bodies.info("x", bodies.STATE)], ["y"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.05, np.float32), "scale"))
    return model


def test_a_branch_in_a_loop_is_watched() -> None:
    then = bodies.body(QUANTIZING, [], [bodies.info("then", bodies.STATE)])
    other = bodies.body([bodies.node("Identity", "s", "else")], [], [bodies.info("else", bodies.STATE)])
    inner = [
        bodies.node("If", "flag", "u", then_branch=then, else_branch=other),
        bodies.node("Identity", "cond", "go"),
    ]
    go = onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])
    state = bodies.info("s", bodies.STATE)
    body = bodies.body(inner, [bodies.STEP, bodies.COND, state], [go, bodies.info("u", bodies.STATE)])
    three = bodies.node("Constant", "", "three", value=onnx.numpy_helper.from_array(np.array(3)))
    loop = onnx.helper.make_node("Loop", ["three", "", "start"], ["y"], name="loop", body=body)
    monitor = requant.DriftMonitor(with_scale([three, loop]), tensors="all", every=1)
    assert monitor.tensors == ("x", "v")
    x = np.ones((1, 16), np.float32)
    monitor.run({"x": x, "flag": np.array(False)})
    assert [each.name for each in monitor.drift().tensors] == ["x"]
    monitor.run({"x": x, "flag": np.array(True)})
    assert {each.name: each.values for each in monitor.drift().tensors} == {"x": 2 * 16, "v": 3 * 16}


def test_what_cannot_be_seen_is_refused() -> None:
    inner = bodies.body(QUANTIZING, [bodies.info("s", bodies.STATE)], [bodies.info("then", bodies.STATE)])
    nodes = [
        bodies.node("SequenceConstruct", "start", "rows"),
        onnx.helper.make_node("SequenceMap", ["rows"], ["ys"], name="map", body=inner),
        bodies.node("ConcatFromSequence", "ys", "y", axis=0),
    ]
    model = with_scale(nodes)
    monitor = requant.DriftMonitor(model, tensors="all", every=1)
    assert monitor.tensors == ("x",)
    monitor.run({"x": np.ones((1, 16), np.float32), "flag": np.array(True)})
    assert [(each.name, each.reason) for each in monitor.drift().unwatched] == [("v", "it stands inside SequenceMap")]
    with pytest.raises(ConfigError, match=r"'v' of .* cannot be watched: it stands inside SequenceMap"):
        requant.DriftMonitor(model, tensors=["v"])
    del model.graph.node[:2]
    model.graph.node[0].input[0] = "x"
    with pytest.raises(ModelError, match=r"none of the 1 frozen ranges .* can be watched: 'v': it stands") as caught:
        requant.DriftMonitor(model, tensors="all")
    assert len(str(caught.value).splitlines()) <= 5


def test_tensors_of_one_name_in_two_branches_are_told() -> None:
    branches = {
        f"{which}_branch": bodies.body(QUANTIZING, [], [bodies.info("then", bodies.STATE)])
        for which in ("then", "else")
    }
    nodes = [bodies.node("Identity", "start", "s"), bodies.node("If", "flag", "y", **branches)]
    found, hidden = frozen_ranges(Graph.load(with_scale(nodes)))
    assert list(found) == ["x"]
    assert hidden == {"v": "another tensor in another body has its name"}

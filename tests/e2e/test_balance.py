"""Channels of unlike magnitude before convolutions, and what balancing makes of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import Array, Net, run, samples, session

import requant
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.rescale import rescale
from requant.onnx.sites import find_sites
from requant.transforms.balance import choose
from requant.transforms.level import Ends, Reader, level

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")

CHANNELS = 16
SPREAD = np.geomspace(1.0, 1 / 64, CHANNELS)


def swish(net: Net, x: str) -> str:
    return net.op("HardSwish", x)


def slow_swish(net: Net, x: str) -> str:
    """With other constants, and the gate as the first factor."""
    return net.op("Mul", net.op("HardSigmoid", x, alpha=0.25, beta=0.4), x)


def relu(net: Net, x: str) -> str:
    return net.op("Relu", x)


def silu(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def network(activation: Any, *, group: int = CHANNELS, output: bool = False, spread: Array = SPREAD) -> onnx.ModelProto:
    """Convolution, activation, depthwise convolution that brings all channels to one magnitude, and another."""
    net = Net(opset=17)
    x = net.input("x", ["n", 3, 12, 12])
    weight = net.rng.standard_normal((CHANNELS, 3, 3, 3)) * spread[:, None, None, None] * 2
    bias = net.const(net.rng.standard_normal(CHANNELS) * spread)
    x = net.op("Conv", x, net.const(weight), bias, pads=[1] * 4, name="first")
    active = x = activation(net, x)
    weight = net.rng.standard_normal((CHANNELS, CHANNELS // group, 3, 3)) / spread[:, None, None, None] / 3
    x = net.op("Conv", x, net.const(weight), net.normal(CHANNELS), pads=[1] * 4, group=group, name="depthwise")
    x = net.op("Conv", x, net.normal(8, CHANNELS, 1, 1, scale=0.25), net.normal(8), name="last")
    return net.model(net.op("Identity", x, output="y"), *([active] if output else []))


def decibels(model: onnx.ModelProto, result: requant.QuantizedModel, feeds: dict[str, Array]) -> float:
    wanted, got = run(model, feeds)[0], run(result.data, feeds)[0]
    return float(10 * np.log10(np.sum(np.square(wanted)) / np.sum(np.square(got - wanted))))


def quantize(model: onnx.ModelProto, **options: Any) -> requant.QuantizedModel:
    return requant.quantize(model, samples(model, 24), threads=1, rounding="nearest", **options)


@pytest.mark.parametrize("activation", [swish, slow_swish, relu])
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"format": "qoperator"}], ids=["", "symmetric", "qop"])
def test_balancing_saves_small_channels(activation: Any, options: dict[str, Any]) -> None:
    model, feeds = network(activation), samples(network(activation), 8, seed=9)
    plain, balanced = (quantize(model, balance=on, **options) for on in (False, True))
    gain = decibels(model, balanced, feeds) - decibels(model, plain, feeds)
    assert gain > 6, gain
    assert any("balanced" in line for line in balanced.report.prepared)
    assert not any("balanced" in line for line in plain.report.prepared)
    assert balanced.report.quantized["Conv"] == 3


def shared(group: int, *, pooled: bool = False, spread: Array = SPREAD) -> onnx.ModelProto:
    """Convolution, ReLU, a convolution that adds up channels of unlike magnitude, and a linear layer that does so."""
    net = Net(opset=17)
    x = net.input("x", ["n", 3, 12, 12])
    for inputs, groups, before, after in ((3, 1, 1 / np.ones(3), spread), (CHANNELS, group, spread, spread[::-1])):
        weight = net.rng.standard_normal((CHANNELS, inputs // groups, 3, 3)) / np.sqrt(4.5 * inputs / groups)
        each = before.reshape(groups, 1, -1).repeat(CHANNELS // groups, axis=1).reshape(CHANNELS, -1)
        weight *= (after[:, None] / each)[:, :, None, None]
        bias = net.const(net.rng.standard_normal(CHANNELS) * after)
        x = net.op("Relu", net.op("Conv", x, net.const(weight), bias, pads=[1] * 4, group=groups))
    if pooled:
        x = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
        return net.model(net.op("MatMul", x, net.const(net.rng.standard_normal((CHANNELS, 8)) / spread[::-1, None])))
    weight = net.rng.standard_normal((8, CHANNELS, 1, 1)) / spread[::-1][:, None, None]
    return net.model(net.op("Conv", x, net.const(weight), net.normal(8)))


@pytest.mark.parametrize(("group", "pooled"), [(1, False), (1, True), (4, False)])
def test_balancing_saves_small_channels_that_are_added_up(group: int, *, pooled: bool) -> None:
    model = shared(group, pooled=pooled)
    feeds = samples(model, 8, seed=9)
    integer = [{"match": "Conv|MatMul", "quantize": True}]
    plain, balanced = (quantize(model, balance=on, rules=integer) for on in (False, True))
    assert decibels(model, balanced, feeds) - decibels(model, plain, feeds) > 6
    assert any("balanced" in line for line in balanced.report.prepared)


def test_channels_alike_that_are_added_up_stay() -> None:
    model = shared(1, spread=np.ones(CHANNELS))
    assert not any("balanced" in line for line in quantize(model).report.prepared)


def test_the_gate_costs_no_op(tmp_path: Path) -> None:
    """The product that multiplies back takes the place of the addition that a HardSigmoid is otherwise."""
    ran = []
    for on in (False, True):
        session(quantize(network(swish), balance=on).data, save_to=str(tmp_path / "ran.onnx"))
        ops = Counter(node.op_type for node in onnx.load(tmp_path / "ran.onnx").graph.node)
        ran.append({op: count for op, count in ops.items() if op.startswith("QLinear")})
    assert ran == [{"QLinearConv": 3, "QLinearAdd": 1, "QLinearMul": 1}, {"QLinearConv": 3, "QLinearMul": 2}]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (network(silu), {}),
        (network(swish, output=True), {}),
        (network(swish, group=1), {"rules": [{"match": "last", "quantize": False}]}),
        (network(swish, spread=np.ones(CHANNELS)), {}),
        (network(swish), {"per_channel": False}),
        (network(swish), {"activations": "uint16"}),
        (network(swish), {"rules": [{"match": "depthwise", "quantize": False}]}),
        (network(swish), {"rules": [{"match": "HardSwish|Mul|first", "range": [-4.0, 4.0]}]}),
    ],
    ids=[
        "silu",
        "an output",
        "a gate before sums",
        "alike already",
        "one scale",
        "16 bits",
        "float",
        "a range of its own",
    ],
)
def test_what_cannot_gain_stays(model: onnx.ModelProto, options: dict[str, Any]) -> None:
    assert not any("balanced" in line for line in quantize(model, **options).report.prepared)


@pytest.mark.parametrize("activation", [swish, slow_swish, relu])
def test_the_float_outputs_stay_the_same_bits(activation: Any) -> None:
    model = network(activation)
    graph = prepare(Graph.load(model))[0]
    (site, *_), _ = find_sites(graph, gates=True)
    assert bool(site.gates) == (activation is not relu)
    factors = np.exp2(np.arange(CHANNELS) % 7 - 6).astype(np.float32)
    rescaled = rescale(graph, {site.tensor: factors}).to_bytes()
    feeds = samples(model, 1, seed=3)
    assert run(model, feeds)[0].tobytes() == run(rescaled, feeds)[0].tobytes()


@pytest.mark.parametrize("activation", [swish, slow_swish, relu])
def test_what_saturates_on_purpose_does_not_drift(activation: Any) -> None:
    model = network(activation)
    found = requant.measure_drift(quantize(model, method="minmax").data, samples(model, 24))
    assert found.verdict is requant.Verdict.MATCHES


def test_a_table_repeats_it() -> None:
    model = network(swish)
    table = requant.calibrate(model, samples(model, 24), threads=1)
    assert quantize(model).data == requant.quantize(model, table=table, threads=1, rounding="nearest").data


def test_factors_are_the_best_of_a_family() -> None:
    """Against the power written out for each widening, by channel; no tensor grows beyond its largest reach."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 9))
        ends = [Ends(*np.exp(rng.normal(0, 2, (3, count)))) for _ in range(int(rng.integers(1, 3)))]
        weights = np.exp(rng.normal(0, 2, count))
        factors, gain = choose(ends, weights, 6)
        assert gain >= 1
        assert np.all(np.isin(factors, np.exp2(np.arange(-6.0, 1))))
        for each in ends:
            reach = max(each.below.max(), each.above.max())
            assert np.all(each.below / factors <= reach * (1 + 1e-6))
            assert np.all(each.above / factors <= reach * (1 + 1e-6))
        least = min(_power(ends, weights, 2.0**widening) for widening in range(7))
        before = _power(ends, weights, None)
        assert before / min(least, before) == pytest.approx(gain, rel=1e-9)


def _power(ends: list[Ends], weights: Array, widening: float | None) -> float:
    """Rounding behind the convolution, channel by channel, with the bounds that a widening allows."""
    total = 0.0
    factors = []
    for i in range(len(weights)):
        needed = [0.0]
        for each in ends:
            reach = max(*each.below, *each.above)
            sides = (each.below, each.above)
            needed += [side[i] / min(max(side) * (widening or 1), reach) for side in sides]
        factors.append(1.0 if widening is None else min(1.0, max(2.0**-6, 2.0 ** np.ceil(np.log2(max(needed))))))
    for each in ends:
        width = max(b / f for b, f in zip(each.below, factors, strict=True))
        width += max(a / f for a, f in zip(each.above, factors, strict=True))
        total += sum(width**2 * w * f**2 for w, f in zip(weights, factors, strict=True))
    return total


@pytest.mark.parametrize("rounds", [False, True])
def test_levelled_channels_lose_as_much_as_is_said(*, rounds: bool) -> None:
    """Against the power written out weight by weight."""
    rng = np.random.default_rng(1)
    for groups, outputs, inputs in ((1, 5, 6), (3, 6, 2), (4, 4, 1)):
        channels = groups * inputs
        ends = Ends(*np.exp(rng.normal(0, 2, (3, channels))))
        weight = np.exp(rng.normal(0, 2, (outputs, inputs, 3, 1))) * rng.choice([-1.0, 1.0], (outputs, inputs, 3, 1))
        factors, gain = level([ends], [Reader.of(weight, groups, ends.power, rounds=rounds)])
        before = _power_of_sums(ends, weight, groups, np.ones(channels), rounds=rounds)
        after = _power_of_sums(ends, weight, groups, factors, rounds=rounds)
        assert before / after == pytest.approx(gain, rel=1e-6)
        assert gain >= 1
        assert np.array_equal(np.exp2(np.rint(np.log2(factors))), factors)


def _power_of_sums(ends: Ends, weight: Array, groups: int, factors: Array, *, rounds: bool) -> float:
    width = max(ends.below / factors) + max(ends.above / factors)
    outputs, inputs = weight.shape[:2]
    total = 0.0
    for o in range(outputs):
        first = o // (outputs // groups) * inputs
        read = range(first, first + inputs)
        scale = max(abs(w) * factors[c] for c, window in zip(read, weight[o], strict=True) for w in window.flat) / 127
        noise = signal = 0.0
        for c, window in zip(read, weight[o], strict=True):
            for w in window.flat:
                noise += scale**2 * ends.power[c] / factors[c] ** 2
                noise += rounds * (width / 255) ** 2 * (w * factors[c]) ** 2
                signal += w**2 * ends.power[c]
        total += noise / signal
    return float(total)


def test_dead_channels_keep_their_factor() -> None:
    ends = Ends(np.zeros(4), np.array([0.0, 1.0, 1e-3, 1.0]), np.array([0.0, 1.0, 1e-6, 1.0]))
    weight = np.array([[1.0, 0.0, 1e3, 1.0]]).reshape(1, 4, 1, 1)
    factors, gain = level([ends], [Reader.of(weight, 1, ends.power, rounds=True)])
    assert gain > 2
    assert list(factors[:2]) == [1.0, 1.0]
    assert factors[2] < factors[3]
    assert level([Ends(*np.zeros((3, 4)))], [Reader.of(weight, 1, np.zeros(4), rounds=True)])[1] == 1.0

"""What stays float because integers would be slower, and that the runtime leaves it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import Net, run
from tests.quantized import Quantized

from requant.config import QuantConfig
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.planning import build_plan
from requant.runtime import optimized
from requant.serialized import SerializedModel
from requant.targets import Cost
from requant.worth import estimate

if TYPE_CHECKING:
    from collections.abc import Callable

FASTER = "it is faster in float"


def skipped(model: onnx.ModelProto, **options: object) -> dict[str, str]:
    plan = build_plan(prepare(Graph.load(model))[0], QuantConfig().with_options(**options))
    return {skip.node: skip.reason for skip in plan.skipped}


def stem(size: int | str, channels: int = 3, out: int = 16) -> onnx.ModelProto:
    """A convolution of few channels before two of many."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", ["n", channels, size, size]), channels, out, name="stem"))
    x = net.op("Relu", net.conv(x, out, 64, name="next", strides=[2, 2]))
    return net.model(net.conv(x, 64, 64, name="last"))


@pytest.mark.parametrize(
    ("shape", "options", "stays"),
    [
        ({"size": 96}, {}, True),
        ({"size": 96, "channels": 1}, {}, True),
        ({"size": 16}, {}, False),
        ({"size": "h"}, {}, True),
        ({"size": 96, "channels": 16}, {}, False),
        ({"size": 96, "out": 96}, {}, False),
        ({"size": 96}, {"target": "generic"}, False),
        ({"size": 96}, {"optimize": "latency"}, False),
        ({"size": 96}, {"include": ("Conv",)}, False),
        ({"size": 96}, {"rules": ({"match": "stem", "quantize": True},)}, False),
        ({"size": 96}, {"rules": ({"match": "next", "quantize": True},)}, True),
    ],
)
def test_a_first_convolution_of_few_channels_over_many_places_stays_float(
    shape: dict[str, Any], options: dict[str, Any], *, stays: bool
) -> None:
    assert skipped(stem(**shape), **options).get("stem") == (FASTER if stays else None)


def test_where_nothing_else_is_to_be_quantized_it_is_integer_all_the_same() -> None:
    net = Net()
    model = net.model(net.op("Exp", net.conv(net.input("x", ["n", 3, 96, 96]), 3, 16, name="stem")))
    assert "stem" not in skipped(model)


def between_convolutions(op: Callable[[Net, str], str], size: int = 56, channels: int = 64) -> onnx.ModelProto:
    """What ``op`` adds between two convolutions that are worth their integers."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", [1, channels, size, size]), channels, channels))
    return net.model(net.conv(op(net, x), channels, channels, name="after"))


def averaged(net: Net, x: str) -> str:
    return net.op("AveragePool", x, name="it", kernel_shape=[3, 3], pads=[1] * 4)


def narrowed(net: Net, x: str) -> str:
    """Through four channels over large windows, and back."""
    return net.op("Relu", net.conv(net.op("Relu", net.conv(x, 64, 4, 5, name="it")), 4, 64, name="back"))


def chained(net: Net, x: str) -> str:
    """Depthwise convolutions, each a little slower in integers than in float, and between much that is faster."""
    return net.op("Relu", net.conv(x, 64, 64, name="it", group=64))


@pytest.mark.parametrize(
    ("op", "size", "in_float"),
    [(averaged, 56, True), (averaged, 2, False), (narrowed, 56, False), (chained, 56, False)],
)
def test_what_loses_more_than_its_conversions_cost_stays_float(
    op: Callable[[Net, str], str], size: int, *, in_float: bool
) -> None:
    assert ("it" in skipped(between_convolutions(op, size))) == in_float


def test_a_part_never_has_more_than_the_whole() -> None:
    model = stem(96, out=8)
    graph = prepare(Graph.load(model))[0]
    whole = build_plan(graph, QuantConfig())
    planned = {node.name for node in whole.nodes}
    assert planned
    assert "stem" not in planned
    for name in ("next", "last"):
        part = build_plan(graph, QuantConfig(), {name: "a test"})
        assert {node.name for node in part.nodes} < planned
    assert not build_plan(graph, QuantConfig(), dict.fromkeys(planned, "a test")).nodes


def test_costs_are_those_of_the_shapes() -> None:
    """By hand: 8 x 8 places, 9 taps, 6 input channels to each of 2 groups, 5 outputs each, taken 8 at a time."""
    net = Net()
    model = net.model(net.conv(net.input("x", ["n", 12, 8, 8]), 12, 10, group=2))
    (node,) = prepare(Graph.load(model))[0].nodes
    places, taps = 64, 9
    expected = places * (10 * 2.0 + taps * (3.0 + 12 * 0.5 + 6 * 16 * 0.25))
    assert estimate(node, Cost(output=2.0, tap=3.0, window=0.5, product=0.25, lanes=8)) == pytest.approx(expected / 1e3)


def pooled(between: Callable[[Net, str], str], size: int) -> onnx.ModelProto:
    """A MaxPool between two convolutions, and what stands before it."""
    net = Net()
    x = net.conv(net.input("x", [2, 8, size, size]), 8, 8, name="before")
    return net.model(net.conv(net.op("MaxPool", between(net, x), name="pool", kernel_shape=[2, 2]), 8, 4))


def straight(_: Net, x: str) -> str:
    return x


def turned(net: Net, x: str) -> str:
    return net.op("Transpose", x, perm=[0, 1, 3, 2])


def added(net: Net, x: str) -> str:
    return net.op("Add", x, net.op("Mul", x, net.op("Sigmoid", x)))


@pytest.mark.parametrize(
    ("between", "size", "options", "in_float"),
    [
        (turned, 48, {}, True),
        (straight, 48, {"exclude": ("before",)}, True),
        (turned, 48, {"include": (".*",)}, False),
        (turned, 24, {}, False),
        (added, 48, {}, False),
        (straight, 48, {}, False),
    ],
)
def test_a_max_pool_is_integer_only_in_the_layout_of_convolutions(
    between: Callable[[Net, str], str], size: int, options: dict[str, Any], *, in_float: bool
) -> None:
    q = Quantized(pooled(between, size), **options)
    assert ("pool" in {skip.node for skip in q.plan.skipped}) == in_float
    assert pools_in_float(q.data) == in_float
    (exact,), (got,) = run(q.data, q.feeds, optimize=False), run(q.data, q.feeds)
    (step,) = q.steps()
    assert np.max(np.abs(exact - got)) <= 1.01 * step


def pools_in_float(data: bytes) -> bool:
    """Whether the runtime pools floats: the op before it that makes one of the other tells."""
    proto = optimized(SerializedModel(data))
    assert proto is not None
    graph = onnx.load_from_string(proto).graph
    producers = {output: node for node in graph.node for output in node.output}
    node = next(node for node in graph.node if node.op_type.endswith("MaxPool"))
    while node.op_type not in ("Conv", "DequantizeLinear", "QLinearConv", "QuantizeLinear"):
        node = next(producers[name] for name in node.input if name in producers)
    return node.op_type in ("Conv", "DequantizeLinear")

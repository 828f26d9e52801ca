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

if TYPE_CHECKING:
    from collections.abc import Callable

FASTER = "it is faster in float"


def skipped(model: onnx.ModelProto, **options: object) -> dict[str, str]:
    plan = build_plan(prepare(Graph.load(model))[0], QuantConfig().with_options(**options))
    return {skip.node: skip.reason for skip in plan.skipped}


def stem(size: int | str, channels: int = 3, out: int = 16) -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", channels, size, size])
    return net.model(net.conv(net.op("Relu", net.conv(x, channels, out, name="stem")), out, 4, name="next"))


@pytest.mark.parametrize(
    ("shape", "options", "stays"),
    [
        ({"size": 96}, {}, True),
        ({"size": 96, "channels": 1}, {}, False),
        ({"size": 160, "channels": 1}, {}, True),
        ({"size": 32}, {}, False),
        ({"size": "h"}, {}, True),
        ({"size": 96, "channels": 4}, {}, False),
        ({"size": 96, "out": 64}, {}, False),
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


def test_behind_integers_a_convolution_of_few_channels_is_integer() -> None:
    net = Net()
    x = net.conv(net.input("x", ["n", 8, 96, 96]), 8, 3, name="before")
    assert "stem" not in skipped(net.model(net.conv(x, 3, 16, name="stem")))


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

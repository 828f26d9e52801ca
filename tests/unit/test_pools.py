"""A MaxPool is integer only in the layout of integer convolutions, and the runtime leaves it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.models import Net, run
from tests.quantized import Quantized

from requant.runtime import optimized
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Callable


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


def padded(net: Net, x: str) -> str:
    """By sizes that are computed, so that no other size is known, nor the number of channels."""
    zero = net.op("Cast", net.op("ReduceMin", net.op("Mul", x, net.const(0.0)), keepdims=0), to=TensorProto.INT64)
    return net.op("Pad", x, net.op("Add", zero, net.const(np.array([0, 0, 0, 0, 0, 0, 1, 1]))))


@pytest.mark.parametrize(
    ("between", "size", "options", "in_float"),
    [
        (turned, 48, {}, True),
        (padded, 48, {}, True),
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

"""Transposes that undo each other meet and go, and the function stays the same; onnxruntime is the oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, strategies as st
from tests.models import Net
from tests.preparing import op_types, prepared_equals

from requant.onnx.graph import Graph
from requant.onnx.passes import layout

if TYPE_CHECKING:
    from collections.abc import Callable


LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
CHANNELS = 6


def conv(net: Net, x: str) -> str:
    """A convolution of channels that stand last."""
    y = net.conv(net.op("Transpose", x, perm=FIRST), CHANNELS, CHANNELS, bias=False)
    return net.op("Transpose", y, perm=LAST)


#: What frameworks with channels last put between two convolutions.
BETWEEN: dict[str, Callable[[Net, str], str]] = {
    "gain of channels": lambda net, x: net.op("Mul", x, net.normal(CHANNELS)),
    "shift of channels": lambda net, x: net.op("Add", net.normal(CHANNELS), x),
    "one number": lambda net, x: net.op("Sub", x, net.const(np.float32(0.5))),
    "a number to each place": lambda net, x: net.op("Add", x, net.normal(4, 1, CHANNELS)),
    "clamp": lambda net, x: net.op("Clip", x, net.const(np.float32(0)), net.const(np.float32(6))),
    "slopes": lambda net, x: net.op("PRelu", x, net.normal(CHANNELS)),
    "gate": lambda net, x: net.op("Mul", net.op("Sigmoid", x), x),
    "residual": lambda net, x: net.op("Add", x, conv(net, net.op("Relu", x))),
    "softmax": lambda net, x: net.op("Softmax", x, axis=-1),
    "softmax over rows": lambda net, x: net.op("Softmax", x, axis=1),
    "concatenated rows": lambda net, x: net.op("Concat", x, net.op("Tanh", x), axis=1),
}


@given(between=st.lists(st.sampled_from(sorted(BETWEEN)), max_size=4))
def test_what_stands_between_convolutions_works_on_their_layout(between: list[str]) -> None:
    net = Net()
    x = conv(net, net.op("Transpose", net.input("x", ["n", CHANNELS, 4, 5]), perm=LAST))
    for name in between:
        x = BETWEEN[name](net, x)
    y = net.op("Relu", net.op("Transpose", conv(net, x), perm=FIRST), output="y")
    assert op_types(prepared_equals(net.model(y), rtol=1e-4))["Transpose"] == 0


def test_folding_sees_through_the_transposes_of_frameworks_with_channels_last() -> None:
    net = Net()
    x = conv(net, net.op("Transpose", net.input("x", ["n", CHANNELS, 4, 5]), perm=LAST))
    x = net.op("Relu", net.op("Add", net.op("Mul", x, net.normal(CHANNELS)), net.normal(CHANNELS)))
    assert op_types(prepared_equals(net.model(net.op("Flatten", conv(net, x))))) == {
        "Conv": 2,
        "Relu": 1,
        "Transpose": 1,
        "Reshape": 1,
    }


def test_transposes_that_meet_no_inverse_stay_where_they_are() -> None:
    net = Net()
    x = net.op("Transpose", net.input("x", ["n", CHANNELS, 4, 5]), perm=LAST)
    rows = net.op("Transpose", net.op("Relu", x), perm=[0, 2, 1, 3])
    graph = Graph.load(net.model(net.op("Flatten", net.op("Exp", x)), net.op("Flatten", net.op("Tanh", rows))))
    before = [node.op_type for node in graph.nodes]
    assert layout.sink_transposes(graph.model) == 0
    assert [node.op_type for node in graph.nodes] == before


def test_tensors_that_the_model_gives_keep_their_layout() -> None:
    net = Net()
    x = net.op("Transpose", net.input("x", ["n", CHANNELS, 4, 5]), perm=LAST)
    y = net.op("Relu", x, output="y")
    z = net.op("Transpose", net.op("Tanh", x), perm=FIRST)
    assert op_types(prepared_equals(net.model(y, net.op("Exp", z))))["Transpose"] == 1

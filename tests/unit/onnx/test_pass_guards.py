"""Passes leave alone what only looks like theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.models import Net, run

from requant.onnx.graph import Graph
from requant.onnx.ops import OPS, Kind
from requant.onnx.passes import prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx


def resized(mode: str, **attributes: str) -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.input("x", ["n", 3, 6, 6]), 3, 4)
    scales = net.const(np.array([1, 1, 2, 2], np.float32))
    x = net.op("Resize", x, "", scales, mode=mode, **attributes)
    return net.model(net.conv(net.op("Relu", x), 4, 2))


def moved(op: Callable[[Net, str], str]) -> onnx.ModelProto:
    net = Net()
    x = op(net, net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4))
    return net.model(net.op("Clip", x, net.const(np.float32(-0.2)), net.const(np.float32(0.3))))


def same_function(model: onnx.ModelProto) -> Graph:
    graph, _ = prepare(Graph.load(model))
    shape = [d if isinstance(d, int) else 2 for d in graph.inputs[0].shape]
    feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(graph.inputs[0].dtype)}
    for before, after in zip(run(model.SerializeToString(), feeds), run(graph.to_bytes(), feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    return graph


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizing_and_clamping_keep_their_function(mode: str) -> None:
    graph = same_function(resized(mode))
    order = [node.op_type for node in graph.nodes]
    assert (order.index("Relu") < order.index("Resize")) == (mode == "nearest")


@pytest.mark.parametrize(
    "op",
    [
        lambda n, x: n.op("MaxPool", x, kernel_shape=[2, 2]),
        lambda n, x: n.op("Transpose", x, perm=[0, 2, 3, 1]),
        lambda n, x: n.op("Flatten", x),
        lambda n, x: n.op("DepthToSpace", x, blocksize=2),
        lambda n, x: n.op("SpaceToDepth", x, blocksize=2),
        lambda n, x: n.op("Slice", x, n.const(np.array([1])), n.const(np.array([3])), n.const(np.array([1]))),
        lambda n, x: n.op("Gather", x, n.const(np.array([0, 2])), axis=1),
    ],
)
def test_moves_and_clamps_swap_without_changing_the_function(op: Callable[[Net, str], str]) -> None:
    graph = same_function(moved(op))
    kinds = [OPS[node.op_type].kind for node in graph.nodes if node.op_type in OPS]
    assert kinds.index(Kind.CLAMP) < kinds.index(Kind.MOVE)


def test_a_clamp_whose_bound_is_computed_stays_where_it_is() -> None:
    net = Net()
    x = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2])
    bound = net.op("ReduceMax", pooled, keepdims=0)
    same_function(net.model(net.op("Clip", pooled, "", bound)))


def test_the_mean_of_integers_is_no_pooling() -> None:
    net = Net()
    x = net.op("Cast", net.input("x", ["n", 3, 8, 8]), to=6)
    model = net.model(net.op("Cast", net.op("ReduceMean", x, axes=[2, 3]), to=1))
    assert "GlobalAveragePool" not in [node.op_type for node in same_function(model).nodes]


@pytest.mark.parametrize(("axes", "keepdims", "pooling"), [([2, 3], 1, True), ([-1, -2], 1, True), ([2, 3], 0, True),
                                                           ([2], 1, False), ([1, 2, 3], 1, False)])  # fmt: skip
def test_the_mean_over_all_space_is_pooling(axes: list[int], keepdims: int, *, pooling: bool) -> None:
    net = Net()
    model = net.model(net.op("ReduceMean", net.input("x", ["n", 3, 8, 8]), axes=axes, keepdims=keepdims))
    assert ("GlobalAveragePool" in [node.op_type for node in same_function(model).nodes]) == pooling


def test_the_mean_of_a_token_is_no_pooling() -> None:
    net = Net()
    model = net.model(net.op("ReduceMean", net.input("x", ["n", 5, 8]), axes=[2], keepdims=1))
    assert "GlobalAveragePool" not in [node.op_type for node in same_function(model).nodes]


def padded(pool: str, around: list[int], *, fill: float | None = 0.0, clamp: str = "Relu", **attributes: Any) -> Graph:
    """Prepare a convolution, clamp, Pad and pool, whose function must stay."""
    net = Net()
    x = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)
    x = net.op(clamp, x) if clamp else x
    inputs = [net.const(np.array(around, np.int64)), *([] if fill is None else [net.const(np.float32(fill))])]
    return same_function(net.model(net.op(pool, net.op("Pad", x, *inputs), kernel_shape=[3, 3], **attributes)))


SPACE = [0, 0, 1, 1, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("pool", "options"),
    [
        ("MaxPool", {"fill": None}),
        ("MaxPool", {"pads": [1, 1, 0, 0]}),
        ("MaxPool", {"strides": [2, 2]}),
        ("MaxPool", {"clamp": "Sigmoid"}),
        ("MaxPool", {"clamp": "", "fill": -np.inf}),
    ],
)
def test_pads_become_those_of_the_pool_behind(pool: str, options: dict[str, Any]) -> None:
    graph = padded(pool, [*SPACE[:-1], 1] if "pads" in options else SPACE, **options)
    assert "Pad" not in [node.op_type for node in graph.nodes]


@pytest.mark.parametrize(
    ("pool", "around", "options"),
    [
        ("AveragePool", SPACE, {}),
        ("MaxPool", SPACE, {"ceil_mode": 1, "strides": [2, 2]}),
        ("MaxPool", [0, 1, 1, 1, 0, 0, 1, 1], {}),
        ("MaxPool", [0, 0, 3, 1, 0, 0, 1, 1], {}),
        ("MaxPool", [0, 0, -1, 1, 0, 0, 1, 1], {}),
        ("MaxPool", SPACE, {"clamp": ""}),
        ("MaxPool", SPACE, {"fill": 0.5}),
        ("MaxPool", SPACE, {"dilations": [2, 2]}),
    ],
)
def test_pads_that_pools_cannot_have_stay(pool: str, around: list[int], options: dict[str, Any]) -> None:
    graph = padded(pool, around, **options)
    assert "Pad" in [node.op_type for node in graph.nodes]


@pytest.mark.parametrize(("op", "constant"), [("Add", 1e-9), ("Sub", 1e-9), ("Mul", 1.000001), ("Div", 1.000001)])
def test_what_is_almost_neutral_stays(op: str, constant: float) -> None:
    """A logarithm of ``x + 1e-9`` is finite where ``x`` is 0."""
    net = Net()
    model = net.model(net.op(op, net.op("Relu", net.input("x", ["n", 8])), net.const(constant)))
    assert op in [node.op_type for node in prepare(Graph.load(model))[0].nodes]


@pytest.mark.parametrize(("op", "constant"), [("Add", 0.0), ("Sub", 0.0), ("Mul", 1.0), ("Div", 1.0)])
def test_what_is_neutral_goes(op: str, constant: float) -> None:
    net = Net()
    model = net.model(net.op(op, net.op("Relu", net.input("x", ["n", 8])), net.const(constant)))
    assert op not in [node.op_type for node in prepare(Graph.load(model))[0].nodes]

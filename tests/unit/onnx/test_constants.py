"""Factors and subnormal numbers in constants, and weights that are computed from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tests.models import Net, run, samples
from tests.preparing import op_types, prepared_equals

from requant.api import inspect
from requant.onnx.graph import Graph
from requant.onnx.nodes import constant
from requant.onnx.passes import prepare

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("bias", [None, (), (1,), (5,)])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (1.0, -2.0), (0.25, 0.0), (3.0, 1.0)])
def test_gemm_loses_its_factors_and_keeps_its_function(alpha: float, beta: float, bias: tuple[int, ...] | None) -> None:
    net = Net()
    rest = [] if bias is None else [net.const(np.full(bias, 1.5, np.float32))]
    y = net.op("Gemm", net.input("x", ["n", 6]), net.normal(6, 5), *rest, alpha=alpha, beta=beta)
    model = net.model(y)
    prepared, _ = prepare(Graph.load(model))
    (node,) = prepared.nodes
    if bias is not None or alpha != 1.0:
        assert not {"alpha", "beta"} & node.attributes.keys()
    feeds = samples(model, 3)
    np.testing.assert_allclose(run(prepared.to_bytes(), feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-6)
    assert inspect(model).plan.nodes


def test_factors_of_what_is_computed_at_run_time_stay() -> None:
    net = Net()
    y = net.op("Gemm", net.input("x", [3, 6]), net.input("w", [6, 5]), alpha=0.5)
    prepared, _ = prepare(Graph.load(net.model(y)))
    assert prepared.nodes[0].attributes["alpha"].as_float() == 0.5


def test_factors_that_would_overflow_stay() -> None:
    net = Net()
    y = net.op("Gemm", net.input("x", [3, 2]), net.const(np.full((2, 2), 3e38, np.float32)), alpha=2.0)
    prepared, _ = prepare(Graph.load(net.model(y)))
    assert prepared.nodes[0].attributes["alpha"].as_float() == 2.0


def test_subnormal_weights_become_zero_and_are_reported() -> None:
    net = Net()
    w = np.asarray([[1e-40, 0.5], [-1e-42, 0.0], [2.0**-126, -3.0]], np.float32)
    model = net.model(net.op("MatMul", net.input("x", ["n", 3]), net.const(w, "w")))
    prepared, changes = prepare(Graph.load(model))
    flushed = constant(prepared.model.graph.initializers["w"])
    np.testing.assert_array_equal(flushed, np.asarray([[0, 0.5], [0, 0], [2.0**-126, -3]], np.float32))
    assert "1 tensor freed of subnormal numbers" in map(str, changes)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), w)


def test_a_large_weight_is_found_behind_what_rearranges_it() -> None:
    """As recurrent weights of PyTorch are, whose gates ONNX has in another order."""
    net = Net()
    gates = net.normal(512, 256, scale=0.1)
    one, zero, half, full = (net.const(np.array([i])) for i in (1, 0, 256, 512))
    parts = [net.op("Slice", gates, start, end, zero) for start, end in ((half, full), (zero, half))]
    weight = net.op("Transpose", net.op("Concat", *parts, axis=0), perm=[1, 0])
    weight = net.op("Squeeze", net.op("Unsqueeze", weight, one), one)
    prepared = prepared_equals(net.model(net.op("MatMul", net.input("x", ["n", 256]), weight)))
    assert op_types(prepared) == {"MatMul": 1}
    assert [value.shape for value in prepared.model.graph.initializers.values()] == [(256, 512)]


def standardized(net: Net, weight: str, outputs: int) -> str:
    """As exporters standardize the weights of a convolution: a normalization in training, and what it gives besides."""
    flat = net.op("Reshape", weight, net.const(np.array([1, outputs, -1])))
    names = [f"standard{i}" for i in range(3)]
    inputs = (flat, net.normal(outputs), *(net.const(np.full(outputs, value)) for value in (0.5, 0.0, 1.0)))
    normal = net.ops("BatchNormalization", *inputs, outputs=names, training_mode=1, epsilon=1e-3)[0]
    return net.op("Reshape", normal, net.const(np.array([outputs, -1, 3, 3])))


def normed(net: Net, weight: str, outputs: int) -> str:
    """A direction and a length, as of weight normalization."""
    length = net.op("ReduceL2", weight, axes=[1, 2, 3], keepdims=1)
    return net.op("Mul", net.op("Div", weight, length), net.normal(outputs, 1, 1, 1))


@pytest.mark.parametrize("made", [standardized, normed])
@pytest.mark.parametrize("channels", [8, 400])
def test_a_weight_is_found_behind_what_normalizes_it(made: Callable[[Net, str, int], str], channels: int) -> None:
    net = Net()
    outputs = 96
    weight = made(net, net.normal(outputs, channels, 3, 3), outputs)
    prepared = prepared_equals(net.model(net.op("Conv", net.input("x", ["n", channels, 5, 5]), weight)))
    assert op_types(prepared) == {"Conv": 1}
    assert [value.shape for value in prepared.model.graph.initializers.values()] == [(outputs, channels, 3, 3)]


@pytest.mark.parametrize(("samples", "used"), [(2, False), (1, True)])
def test_a_normalization_in_training_stays_where_it_is_no_instance_normalization(*, samples: int, used: bool) -> None:
    net = Net()
    zeros, ones = net.const(np.zeros(4)), net.const(np.ones(4))
    x = net.input("x", [samples, 4, 6])
    y, *running = net.ops("BatchNormalization", x, ones, zeros, zeros, ones, outputs=["a", "b", "c"], training_mode=1)
    model = net.model(y, *(running if used else ()))
    assert op_types(prepare(Graph.load(model))[0]) == {"BatchNormalization": 1}


def test_a_small_network_of_constants_is_computed_to_its_end() -> None:
    """As of relative positions: what lies halfway may be larger than what it gives, and than the weights."""
    net = Net()
    positions = net.const(np.random.default_rng(0).normal(size=(15, 15, 2)))
    hidden = net.op("Relu", net.op("Add", net.op("MatMul", positions, net.normal(2, 128)), net.normal(128)))
    bias = net.op("Reshape", net.op("MatMul", hidden, net.normal(128, 4)), net.const(np.array([1, -1])))
    model = net.model(net.op("Add", net.input("x", ["n", 900]), bias, output="y"))
    prepared, _ = prepare(Graph.load(model))
    assert op_types(prepared) == {"Add": 1}
    assert len(prepared.to_bytes()) < 900 * 4 + 300
    feeds = samples(model, 3)
    np.testing.assert_allclose(run(prepared.to_bytes(), feeds)[0], run(model, feeds)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2, 300])
def test_sizes_filled_with_zeros_are_computed_where_they_are_few(size: int) -> None:
    """As exporters make the sizes of a Pad."""
    net = Net()
    zeros = net.op("ConstantOfShape", net.const(np.array([size])), value=onnx.helper.make_tensor("z", 7, [1], [0]))
    some = net.op("Slice", zeros, *(net.const(np.array([i])) for i in (0, 2)))
    sizes = net.op("Concat", some, net.const(np.array([0, 0, 0, 0, 1, 1])), axis=0)
    model = net.model(net.conv(net.op("Pad", net.input("x", ["n", 3, 8, 8]), sizes), 3, 4))
    graph = prepared_equals(model)
    assert ("ConstantOfShape" in op_types(graph)) == (size > 256)
    assert ("Pad" in op_types(graph)) == (size > 256), "a Pad of known sizes is one of the convolution"

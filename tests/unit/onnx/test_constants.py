"""Factors and subnormal numbers in constants."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.models import Net, run, samples

from requant.api import inspect
from requant.onnx.graph import Graph, constant
from requant.onnx.passes import prepare


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (1.0, -2.0), (0.25, 0.0), (3.0, 1.0)])
def test_gemm_loses_its_factors_and_keeps_its_function(alpha: float, beta: float, bias: bool) -> None:
    net = Net()
    rest = [net.normal(5)] if bias else []
    y = net.op("Gemm", net.input("x", ["n", 6]), net.normal(6, 5), *rest, alpha=alpha, beta=beta)
    model = net.model(y)
    prepared, _ = prepare(Graph.load(model))
    (node,) = prepared.nodes
    if bias or alpha != 1.0:
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

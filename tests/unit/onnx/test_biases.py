"""Vectors that are added to integer products: where onnxruntime would make one float op of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tests.models import Net, run, samples, session

from requant import quantize
from requant.onnx.biases import keep_apart
from requant.onnx.graph import Graph

if TYPE_CHECKING:
    from pathlib import Path


def projections(*, vector_first: bool = False, batch: int | str = 1) -> onnx.ModelProto:
    """Two products with one bias between them, as the linear layers of a transformer with fixed shapes are exported."""
    net = Net()
    x = net.input("x", [batch, 6, 32])
    bias = net.normal(32, name="bias")
    for number in range(2):
        product = net.op("MatMul", x, net.normal(32, 32, scale=0.2), name=f"product{number}")
        x = net.op("Relu", net.op("Add", *((bias, product) if vector_first else (product, bias))))
    return net.model(x)


@pytest.mark.parametrize("vector_first", [False, True])
@pytest.mark.parametrize("batch", [1, "n"])
def test_every_product_runs_on_integers(vector_first: bool, batch: int | str, tmp_path: Path) -> None:
    model = projections(vector_first=vector_first, batch=batch)
    feeds = samples(model)
    data = quantize(model, [{"x": row[None]} for row in feeds["x"]]).data
    session(data, save_to=str(tmp_path / "optimized.onnx"))
    ops = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ops.count("MatMulIntegerToFloat") == 2, ops
    one = {name: array[:1] for name, array in feeds.items()}
    real, got = run(model, one)[0], run(data, one)[0]
    np.testing.assert_allclose(got, real, atol=0.05 * np.abs(real).max())


def test_the_sums_are_the_same_and_nothing_is_left_over() -> None:
    model = projections()
    one = {name: array[:1] for name, array in samples(model).items()}
    apart = keep_apart(Graph.load(model), {"product0", "product1"}).to_bytes()
    np.testing.assert_array_equal(run(apart, one, optimize=False)[0], run(model, one, optimize=False)[0])
    assert "bias" not in {tensor.name for tensor in onnx.ModelProto.FromString(apart).graph.initializer}


def test_what_needs_no_change_is_not_copied() -> None:
    graph = Graph.load(projections())
    assert keep_apart(graph, set()) is graph

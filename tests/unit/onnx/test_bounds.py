"""Clamps behind products that give float: where onnxruntime would make a float op of the product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tests.models import Net, run, samples, session

from requant import quantize
from requant.onnx.bounds import spell_clamps
from requant.onnx.graph import Graph

if TYPE_CHECKING:
    from pathlib import Path

CLAMPS = {
    "Relu": (),
    "Clip": (np.float32(-0.25), np.float32(0.5)),
    "Clip from below": (np.float32(0.1),),
    "Clip from above": (None, np.float32(0.25)),
}


def clamped(kind: str, *, op_type: str = "MatMul") -> onnx.ModelProto:
    """A product whose clamped result a logarithm reads, and no integer op."""
    net = Net(opset=17)
    x = net.input("x", ["n", 32])
    bias = (net.normal(48),) if op_type == "Gemm" else ()
    product = net.op(op_type, x, net.normal(32, 48, scale=0.2), *bias, name="product")
    bounds = ["" if bound is None else net.const(bound) for bound in CLAMPS[kind]]
    return net.model(net.op("Exp", net.op(kind[:4], product, *bounds)))


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
@pytest.mark.parametrize("kind", CLAMPS)
def test_the_product_runs_on_integers(kind: str, op_type: str, tmp_path: Path) -> None:
    model = clamped(kind, op_type=op_type)
    data = quantize(model, samples(model)).data
    session(data, save_to=str(tmp_path / "optimized.onnx"))
    ops = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert {"QGemm", "MatMulIntegerToFloat"} & set(ops), ops
    real, got = run(model, samples(model))[0], run(data, samples(model))[0]
    np.testing.assert_allclose(got, real, rtol=0.1)


@pytest.mark.parametrize("kind", CLAMPS)
def test_the_numbers_are_the_same(kind: str) -> None:
    model = clamped(kind)
    graph = Graph.load(model)
    spelled = spell_clamps(graph, {"product"})
    ops = [node.op_type for node in spelled.nodes]
    assert not {"Relu", "Clip"} & set(ops)
    feeds = samples(model)
    feeds["x"][0, 0] = np.nan
    wanted, got = (run(each, feeds, optimize=False)[0] for each in (model, spelled.to_bytes()))
    np.testing.assert_array_equal(got, wanted)


def test_new_names_are_free() -> None:
    net = Net(opset=17)
    x = net.input("x", ["n", 32])
    other = net.op("Neg", x, name="other", output="clamp_max")
    bounds = (net.const(np.float32(bound)) for bound in (-0.25, 0.5))
    clamp = net.op("Clip", net.op("MatMul", x, net.normal(32, 32), name="product"), *bounds, name="clamp")
    model = net.model(net.op("Add", net.op("Exp", clamp), other))
    spelled = spell_clamps(Graph.load(model), {"product"})
    names = [name for node in spelled.nodes for name in (value.name for value in node.outputs)]
    assert len(names) == len(set(names))
    np.testing.assert_array_equal(run(spelled.to_bytes(), samples(model))[0], run(model, samples(model))[0])


def test_what_needs_no_change_is_not_copied() -> None:
    graph = Graph.load(clamped("Relu"))
    assert spell_clamps(graph, set()) is graph
    net = Net()
    product = net.op("MatMul", net.input("x", ["n", 8]), net.normal(8, 8), name="product")
    for model in (
        net.model(net.op("Relu", product)),  # the clamp gives an output of the model
        net.model(net.op("Exp", net.op("Relu", product)), net.op("Exp", product)),  # it is not alone
    ):
        graph = Graph.load(model)
        assert spell_clamps(graph, {"product"}) is graph

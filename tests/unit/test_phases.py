"""Fourier features: what makes phases of few coordinates stays float, and its weights too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.models import Net, run

import requant
from requant.building.dynamic import plan_whole
from requant.config import QuantConfig
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.planning.phases import REASON

if TYPE_CHECKING:
    import onnx

pytestmark = pytest.mark.usefixtures("quick_latency")


def features(op_type: str = "MatMul", terms: int = 2, frequency: float = 12.0) -> onnx.ModelProto:
    """Phases of ``terms`` coordinates, their sines and cosines, and two layers behind."""
    net = Net()
    if op_type == "Conv":
        x = net.input("x", ["n", terms, 1, 1])
        phases = net.conv(x, terms, 32, 1, name="phases")
        phases = net.op("Flatten", phases)
    elif op_type == "Gemm":
        phases = net.gemm(net.input("x", ["n", terms]), terms, 32, trans_b=1, name="phases")
    else:
        phases = net.op("MatMul", net.input("x", ["n", terms]), net.normal(terms, 32), name="phases")
    phases = net.op("Mul", phases, net.const(frequency * np.pi), name="turns")
    both = net.op("Concat", net.op("Sin", phases), net.op("Cos", phases), axis=1)
    hidden = net.op("Relu", net.gemm(both, 64, 64, name="behind"))
    return net.model(net.gemm(hidden, 64, 8, name="last", output="y"))


def reasons(model: onnx.ModelProto, **options: object) -> dict[str, str]:
    plan = plan_whole(prepare(Graph.load(model))[0], QuantConfig().with_options(**options))
    return {skip.node: skip.reason for skip in plan.skipped}


@pytest.mark.parametrize("options", [{}, {"target": "generic"}, {"dynamic": True}])
@pytest.mark.parametrize("op_type", ["MatMul", "Gemm", "Conv"])
def test_what_makes_phases_of_coordinates_stays_float(op_type: str, options: dict[str, object]) -> None:
    found = reasons(features(op_type), **options)
    assert found["phases"] == REASON
    assert found.get("behind") != REASON


def test_products_of_many_terms_may_become_integer() -> None:
    assert reasons(features(terms=17)).get("phases") != REASON
    assert reasons(features(terms=16))["phases"] == REASON


def test_a_rule_that_names_a_node_has_the_last_word() -> None:
    assert reasons(features(), rules=({"match": "phases", "quantize": True},)).get("phases") != REASON


@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
def test_the_outputs_survive(target: str) -> None:
    model = features(frequency=40.0)
    x = {"x": np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)}
    quantized = requant.quantize(model, x, target=target)
    (real,), (got,) = run(model, x), run(quantized.data, x)
    assert 10 * np.log10(np.sum(real**2) / np.sum((real - got) ** 2)) > 25

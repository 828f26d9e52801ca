"""Activations that are spelt out become the ops that runtimes know, and stay what they compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tests.models import Net, run, samples, session

import requant
from requant.config import QuantConfig
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.passes.activations import fuse_gelus
from requant.planning.build import build_plan

if TYPE_CHECKING:
    from pathlib import Path

Build = Callable[[Net, str], str]
SHAPE: list[int | str] = ["n", 4, 6, 6]


def clip(net: Net, x: str, low: float, top: float) -> str:
    return net.op("Clip", x, net.const(low), net.const(top))


def shifted(net: Net, x: str, shift: float = 3.0, top: float = 6.0) -> str:
    return clip(net, net.op("Add", net.const(shift), x), 0.0, top)


SIGMOIDS: dict[str, Build] = {
    "divided": lambda n, x: n.op("Div", shifted(n, x), n.const(6.0)),
    "multiplied": lambda n, x: n.op("Mul", n.const(1 / 6), shifted(n, x)),
    "other constants": lambda n, x: n.op("Div", shifted(n, x, 2.5, 5.0), n.const(5.0)),
}
SWISHES: dict[str, Build] = {
    "divided last": lambda n, x: n.op("Div", n.op("Mul", x, shifted(n, x)), n.const(6.0)),
    "multiplied last": lambda n, x: n.op("Mul", n.op("Mul", shifted(n, x), x), n.const(1 / 6)),
    "divided first": lambda n, x: n.op("Mul", x, n.op("Div", shifted(n, x), n.const(6.0))),
    "one op": lambda n, x: n.op("HardSwish", x),
}
OTHERS: dict[str, Build] = {
    "another divisor": lambda n, x: n.op("Div", shifted(n, x), n.const(5.0)),
    "a negative shift": lambda n, x: n.op("Div", shifted(n, x, -1.0), n.const(6.0)),
    "no lower end": lambda n, x: n.op(
        "Div", n.op("Clip", n.op("Add", x, n.const(3.0)), "", n.const(6.0)), n.const(6.0)
    ),
    "a lower end that is not 0": lambda n, x: n.op(
        "Div", clip(n, n.op("Add", x, n.const(3.0)), 1.0, 6.0), n.const(6.0)
    ),
    "a divisor for each channel": lambda n, x: n.op("Div", shifted(n, x), n.const(np.full((4, 1, 1), 6.0))),
    "divided by it": lambda n, x: n.op("Div", n.const(6.0), n.op("Add", n.const(1.0), shifted(n, x))),
    "times another tensor": lambda n, x: n.op("Div", n.op("Mul", n.op("Exp", x), shifted(n, x)), n.const(6.0)),
    "clipped for others too": lambda n, x: n.op("Add", gate := shifted(n, x), n.op("Div", gate, n.const(6.0))),
}


def prepared(build: Build) -> Counter[str]:
    """The ops that remain of ``build``; its outputs must, too."""
    net = Net()
    model = net.model(net.op("Neg", build(net, net.op("Sin", net.input("x", SHAPE)))))
    graph, _ = prepare(Graph.load(model))
    feeds = {name: 8 * value for name, value in samples(model).items()}
    for want, got in zip(run(model, feeds, optimize=False), run(graph.to_bytes(), feeds, optimize=False), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    return Counter(node.op_type for node in graph.nodes)


@pytest.mark.parametrize("name", SIGMOIDS)
def test_a_hard_sigmoid_is_one_op(name: str) -> None:
    assert prepared(SIGMOIDS[name]) == {"Sin": 1, "HardSigmoid": 1, "Neg": 1}


@pytest.mark.parametrize("name", SWISHES)
def test_a_hard_swish_is_a_product_with_a_hard_sigmoid(name: str) -> None:
    assert prepared(SWISHES[name]) == {"Sin": 1, "HardSigmoid": 1, "Mul": 1, "Neg": 1}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_hard_sigmoid_stays(name: str) -> None:
    assert prepared(OTHERS[name])["HardSigmoid"] == 0


def convolved(build: Build) -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.input("x", ["n", 3, 6, 6]), 3, 4)
    return net.model(net.conv(build(net, x), 4, 2, output="y"))


def kernels(data: bytes, folder: Path) -> Counter[str]:
    path = folder / "optimized.onnx"
    session(data, save_to=str(path))
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", SWISHES)
def test_a_hard_swish_runs_on_integers(name: str, tmp_path: Path) -> None:
    model = convolved(SWISHES[name])
    result = requant.quantize(model, [{"x": 3 * value} for value in samples(model, 32)["x"][:, None]])
    counts = kernels(result.data, tmp_path)
    assert counts["QLinearAdd"] == counts["QLinearMul"] == 1, counts
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 1, counts
    assert result.report.quantized["HardSigmoid"] == 1


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (0.5, 0.01), (3.0, 7.0)])
def test_a_hard_sigmoid_saturates_where_it_should(alpha: float, beta: float) -> None:
    """As the only op between two of the identity, so that its own rounding is all that can be seen."""
    net = Net()
    eye = np.eye(4, dtype=np.float32)[..., None, None]
    x = net.op("Conv", net.input("x", SHAPE), net.const(eye))
    y = net.op("Conv", net.op("HardSigmoid", x, alpha=alpha, beta=beta), net.const(eye))
    model = net.model(y)
    feeds = {"x": (samples(model)["x"] * 2 / alpha).astype(np.float32)}
    result = requant.quantize(model, [{"x": row[None]} for row in feeds["x"]], method="minmax")
    step = alpha * np.ptp(feeds["x"]) / 255
    for optimize in (False, True):
        error = np.abs(run(result.data, feeds, optimize=optimize)[0] - run(model, feeds)[0])
        assert error.max() <= 1.5 * step + 2 / 255, f"optimize={optimize}: {error.max() / step} steps of the input"


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.0), (0.2, -0.5), (-1.0, 0.5)])
def test_a_hard_sigmoid_that_no_addition_computes_stays_float(alpha: float, beta: float) -> None:
    model = convolved(lambda n, x: n.op("HardSigmoid", x, alpha=alpha, beta=beta))
    plan = build_plan(prepare(Graph.load(model))[0], QuantConfig())
    assert [skip.op_type for skip in plan.skipped] == ["HardSigmoid"]
    assert "alpha or beta" in plan.skipped[0].reason


# -- GELU ------------------------------------------------------------------------------------------------------------


def erf_gelu(net: Net, x: str) -> str:
    grown = net.op("Add", net.op("Erf", net.op("Div", x, net.const(np.sqrt(2.0)))), net.const(1.0))
    return net.op("Mul", net.op("Mul", x, grown), net.const(0.5))


def test_a_gelu_between_integer_ops_is_one_op_of_the_runtime(tmp_path: Path) -> None:
    model = convolved(erf_gelu)
    data = [{"x": value} for value in samples(model, 32)["x"][:, None]]
    counts = kernels(requant.quantize(model, data).data, tmp_path)
    assert counts["Gelu"] == 1, counts
    assert counts["Erf"] == 0, counts
    plain = requant.quantize(model, data, target="generic")
    assert not any(node.domain for node in onnx.load_from_string(plain.data).graph.node)


def test_fusing_gelus_keeps_the_function_and_the_graph_that_has_none() -> None:
    graph = Graph.load(convolved(erf_gelu))
    fused = fuse_gelus(graph)
    assert [node.op_type for node in fused.nodes] == ["Conv", "Gelu", "Conv"]
    feeds = samples(convolved(erf_gelu))
    np.testing.assert_allclose(run(fused.to_bytes(), feeds)[0], run(graph.to_bytes(), feeds)[0], rtol=1e-4, atol=1e-5)
    assert fuse_gelus(fused) is fused

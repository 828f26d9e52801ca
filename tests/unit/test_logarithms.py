"""What a Log reads stays float, back to a bias, and its weights too."""

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
from requant.planning.logarithms import REASON

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx


def spectrogram(floor: float = 0.0) -> onnx.ModelProto:
    """Two filters behind a third, none with a bias, the logarithm of the sum of their squares, and a layer behind."""
    net = Net()
    x = net.conv(net.input("x", ["n", 1, 8, 64]), 1, 8, name="first", bias=False)
    filtered = [net.conv(x, 8, 32, name=name, bias=False) for name in ("real", "imaginary")]
    squares = [net.op("Mul", y, y) for y in (filtered[0], net.op("Neg", filtered[1]))]
    power = net.op("Transpose", net.op("Add", *squares), perm=[0, 1, 3, 2])
    if floor:
        power = net.op("Max", power, net.const(floor))
    return net.model(net.conv(net.op("Log", net.op("Sqrt", power)), 32, 8, name="behind"))


def reasons(model: onnx.ModelProto, **options: object) -> dict[str, str]:
    plan = plan_whole(prepare(Graph.load(model))[0], QuantConfig().with_options(**options))
    return {skip.node: skip.reason for skip in plan.skipped}


FRONT = {"first", "real", "imaginary"}


@pytest.mark.parametrize("floor", [0.0, 1e-10])
@pytest.mark.parametrize("options", [{}, {"target": "generic"}, {"optimize": "latency"}, {"dynamic": True}])
def test_filters_before_a_logarithm_stay_float_with_their_weights(floor: float, options: dict[str, object]) -> None:
    found = reasons(spectrogram(floor), **options)
    assert {name for name in (*FRONT, "behind") if found.get(name) == REASON} == FRONT


def test_a_rule_that_names_a_node_has_the_last_word() -> None:
    found = reasons(spectrogram(), rules=({"match": "real", "quantize": True},))
    assert {name for name in FRONT if found.get(name) == REASON} == FRONT - {"real"}


def softmax(net: Net, x: str) -> str:
    return net.op("Log", net.op("Softmax", x, axis=1))


def exponents(net: Net, x: str) -> str:
    return net.op("Log", net.op("Add", net.op("Exp", x), net.const(1.0)))


def straight(net: Net, x: str) -> str:
    return net.op("Log", net.op("Clip", x, net.const(1e-3)))


def one_more(net: Net, x: str) -> str:
    return net.op("Log", net.op("Add", net.op("Relu", x), net.const(1.0)))


@pytest.mark.parametrize(
    ("logarithm", "in_float"), [(softmax, set()), (exponents, set()), (one_more, set()), (straight, {"last"})]
)
def test_a_bias_ends_what_is_small_for_its_input_and_so_does_what_makes_other_numbers(
    logarithm: Callable[[Net, str], str], in_float: set[str]
) -> None:
    net = Net()
    x = net.conv(net.input("x", ["n", 8, 8, 8]), 8, 16, name="first")
    found = reasons(net.model(logarithm(net, net.conv(x, 16, 8, name="last"))))
    assert {name for name, reason in found.items() if reason == REASON and name in {"first", "last"}} == in_float


@pytest.mark.parametrize("op", ["Softmax", "Sigmoid"])
def test_probabilities_stay_float_and_what_they_are_computed_from_does_not(op: str) -> None:
    net = Net()
    x = net.op(op, net.gemm(net.input("x", ["n", 16]), 16, 16, bias=False, name="logits"), name="chances")
    found = reasons(net.model(net.op("Log", x)), target="generic")
    assert {name for name, reason in found.items() if reason == REASON} == {"chances"}


def test_quiet_bins_stay_finite_and_exact() -> None:
    rng = np.random.default_rng(5)
    data = (rng.standard_normal((24, 1, 8, 64)) * 10 ** rng.uniform(-5, 0, (24, 1, 1, 64))).astype(np.float32)
    model = spectrogram()
    result = requant.quantize(model, data, rounding="nearest")
    for sample in data[:4]:
        (exact,), (got,) = (run(m, {"x": sample[None]}) for m in (model.SerializeToString(), result.data))
        assert np.isfinite(got).all()
        assert np.sqrt(np.mean((exact - got) ** 2)) < 0.03 * np.std(exact)

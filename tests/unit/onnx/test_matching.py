"""Which tensors of two models are the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tests.models import Net, samples, two_gemm

import requant
from requant.onnx.graph import Graph
from requant.onnx.matching import Match, match_tensors

pytestmark = pytest.mark.usefixtures("quick_latency")


def quantized_pair(scale: Any, zero_point: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """``relu -> neg``, and the same with the tensor between quantized."""
    models = []
    for quantize in (False, True):
        net = Net()
        x = net.op("Relu", net.input("x", ["n", 2]), output="h")
        if quantize:
            parameters = [
                net.const(np.asarray(scale, np.float32)),
                *([] if zero_point is None else [net.const(zero_point)]),
            ]
            x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, *parameters), *parameters, output="back")
        models.append(net.model(net.op("Neg", net.op("Abs", x, output="a"), output="y")))
    return models[0], models[1]


def matches(reference: onnx.ModelProto, other: onnx.ModelProto | bytes) -> tuple[Match, ...]:
    return match_tensors(Graph.load(reference), Graph.load(other))


@pytest.mark.parametrize(
    ("zero_point", "lo", "hi"),
    [
        (np.uint8(3), (0 - 3 - 0.5) * 0.5, (255 - 3 + 0.5) * 0.5),
        (np.int8(-128), -0.25, (255 + 0.5) * 0.5),
        (None, -0.25, 255.5 * 0.5),  # uint8, says the specification
    ],
)
def test_a_quantized_tensor_is_stood_for_by_its_reals(zero_point: Any, lo: float, hi: float) -> None:
    assert matches(*quantized_pair(0.5, zero_point)) == (Match("h", "back", lo, hi), Match("a", "a"))


def test_several_scales_have_no_ends() -> None:
    float_model, quantized = quantized_pair([0.5, 1.0], np.zeros(2, np.uint8))
    assert matches(float_model, quantized)[0] == Match("h", "back")


def test_an_untouched_model_matches_itself_but_for_inputs_and_outputs() -> None:
    model = two_gemm()
    inner = [out for node in model.graph.node for out in node.output if out != "y"]
    assert matches(model, model) == tuple(Match(name, name) for name in inner)


def test_what_requant_makes_matches_all_it_quantized() -> None:
    model = two_gemm()
    result = requant.quantize(model, samples(model, 16), threads=1)
    found = {match.name: match for match in matches(model, result.data)}
    assert set(result.plan.tensors) <= {*found, "y"}
    assert result.table is not None
    for name, tensor in result.plan.tensors.items():
        reach = found[name]
        assert reach.stand_in.startswith("dq")
        chosen = tensor.fixed or result.table.ranges(result.plan, requant.QuantConfig())[tensor.source or name]
        step = (chosen.hi - chosen.lo) / 255
        assert reach.lo is not None
        assert reach.hi is not None
        assert abs(reach.lo - chosen.lo) < 1.01 * step + 1e-6
        assert abs(reach.hi - chosen.hi) < 1.01 * step + 1e-6


def test_constants_are_no_tensors_to_compare() -> None:
    """A Constant node of one model may be an initializer of the other."""
    models = []
    for node in (True, False):
        net = Net()
        array = np.ones(2, np.float32)
        c = net.op("Constant", output="c", value=onnx.numpy_helper.from_array(array)) if node else net.const(array, "c")
        models.append(net.model(net.op("Add", net.input("x", ["n", 2]), c, output="y")))
    assert matches(models[0], models[1]) == matches(models[1], models[0]) == matches(models[0], models[0]) == ()


def test_models_without_common_names_match_nothing() -> None:
    model = two_gemm()
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{n}_" if n.startswith("t") else n for n in names]
    del other.graph.value_info[:]
    assert matches(model, other) == ()

"""Activations of 16 bits, all of them or some, in standard ops or onnxruntime's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.models import MODELS, Net, run, samples
from tests.quantized import Quantized

import requant
from requant.errors import ConfigError
from requant.types import FixedParams


def network(opset: int) -> onnx.ModelProto:
    net = Net(opset=opset, ir_version=10 if opset >= 21 else 8)
    a = net.op("Relu", net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4, name="stem"), output="a")
    b = net.op("Sigmoid", net.conv(a, 4, 4, name="body"), name="gate", output="b")
    return net.model(net.conv(net.op("MaxPool", b, kernel_shape=[2, 2], output="c"), 4, 4, name="last", output="y"))


def relative(real: Any, got: Any) -> float:
    return float(np.sqrt(np.sum((real - got) ** 2) / np.sum(real**2)))


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize(("opset", "domain"), [(17, "com.microsoft"), (21, "")])
def test_all_activations_have_16_bits(opset: int, domain: str, dtype: str) -> None:
    q = Quantized(network(opset), activations=dtype, symmetric=dtype == "int16")
    onnx.checker.check_model(q.proto)
    zero_points = {i.name: numpy_helper.to_array(i) for i in q.proto.graph.initializer}
    quantizers = [node for node in q.proto.graph.node if node.op_type == "QuantizeLinear"]
    assert {node.domain for node in quantizers} == {domain}
    assert {zero_points[node.input[2]].dtype.name for node in quantizers} == {dtype}
    assert {o.domain for o in q.proto.opset_import} == {"", domain}
    wanted = run(q.model, q.feeds)[0]
    coarse = relative(wanted, run(Quantized(network(opset)).data, q.feeds)[0])
    for optimize in (False, True):
        # Weights have 8 bits all the same.
        assert relative(wanted, run(q.data, q.feeds, optimize=optimize)[0]) < 0.8 * coarse


@pytest.mark.parametrize("name", MODELS)
def test_any_model_runs(name: str) -> None:
    q = Quantized(MODELS[name](), activations="uint16")
    for real, got in zip(run(q.model, q.feeds), run(q.data, q.feeds), strict=True):
        assert relative(real, got) < 0.03


def test_a_rule_gives_some_tensors_16_bits_and_all_that_share_their_parameters() -> None:
    q = Quantized(network(17), rules=[{"match": "gate", "dtype": "int16"}])
    kinds = Counter(tensor.scheme.dtype.value for tensor in q.plan.tensors.values())
    assert kinds == {"uint8": 4, "int16": 2}, kinds
    assert q.plan.tensors["c"].scheme.dtype == "int16"  # MaxPool only moves values
    assert relative(run(q.model, q.feeds)[0], run(q.data, q.feeds)[0]) < 0.05


@pytest.mark.parametrize(
    ("rule", "params"),
    [
        ({"scale": 0.02}, FixedParams(0.02, 128)),
        ({"scale": 0.02, "zero_point": 7}, FixedParams(0.02, 7)),
        ({"scale": 0.001, "zero_point": -300, "dtype": "int16"}, FixedParams(0.001, -300)),
    ],
)
def test_a_rule_gives_scale_and_zero_point(rule: dict[str, Any], params: FixedParams) -> None:
    q = Quantized(network(17), rules=[{"match": "b", **rule}])
    assert q.plan.tensors["b"].params == q.plan.tensors["c"].params == params
    found = q.resolved.activations["b"]
    assert float(found.scale) == np.float32(params.scale)
    assert int(found.zero_point) == params.zero_point
    assert not {"b", "c"} & set(q.plan.calibrated)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"scale": -1.0}, "scale is -1.0, expected a number above 0"),
    ({"scale": "wide"}, "scale is 'wide'"),
    ({"zero_point": 3}, "a zero_point was given without a scale"),
    ({"scale": 0.1, "zero_point": 0.5}, "zero_point is 0.5, expected an integer"),
    ({"scale": 0.1, "range": [0.0, 1.0]}, "a range and a scale were given"),
    ({"dtype": "int4"}, "dtype is 'int4'"),
    ({"scale": 0.1, "zero_point": 300}, "zero_point is 300, expected one of uint8: 0..255"),
]


@pytest.mark.parametrize(("rule", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_parameters_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Quantized(network(17), rules=[{"match": "b", **rule}])


def test_the_report_says_what_the_runtime_does_with_them() -> None:
    model = network(17)
    result = requant.quantize(model, [samples(model, 16)], activations="uint16")
    assert any("computes with uint16 activations in float, between Q and DQ" in note for note in result.report.notes)
    assert result.report.config["activations"] == "uint16"

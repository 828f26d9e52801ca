"""Every model that is made for a target obeys it: checked on the file alone, and run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.models import MODELS, Net, run, samples
from tests.quantized import Quantized

import requant
from requant import QuantConfig
from requant.errors import ConfigError
from requant.onnx.graph import Graph
from requant.runtime import saturates
from requant.targets import TARGETS, get_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from requant.planning.plan import QuantPlan
    from requant.targets import Target


class Written:
    """A quantized model as a reader of the file sees it."""

    def __init__(self, data: bytes) -> None:
        self.graph = onnx.load_from_string(data).graph
        self.constants = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        self.producer = {out: node for node in self.graph.node for out in node.output}

    def source(self, name: str) -> onnx.NodeProto | None:
        """The node behind ``name``, looking through clamps."""
        node = self.producer.get(name)
        while node is not None and node.op_type in ("Relu", "Clip"):
            node = self.producer.get(node.input[0])
        return node

    def params(self, node: onnx.NodeProto) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
        scale, *zero_point = (self.constants[name] for name in node.input[1:])
        return scale, zero_point[0] if zero_point else None

    def dequantized(self, name: str) -> onnx.NodeProto | None:
        node = self.producer.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def quantizers(self) -> Iterator[onnx.NodeProto]:
        return (node for node in self.graph.node if node.op_type == "QuantizeLinear")


def violations(data: bytes, target: Target, plan: QuantPlan) -> Iterator[str]:
    """What in a model ``target`` does not allow."""
    model = Written(data)
    planned = {node.name for node in plan.nodes}
    for node in model.quantizers():
        scale, zero_point = model.params(node)
        assert zero_point is not None
        if scale.shape != () or zero_point.dtype.name not in target.activations:
            yield f"{node.input[0]}: {zero_point.dtype}, scale of shape {scale.shape}"
        if target.symmetric and zero_point != 0:
            yield f"{node.input[0]}: zero point {zero_point}"
        giver = model.source(node.input[0])
        wanted = target.fixed_outputs.get(giver.op_type) if giver is not None else None
        if wanted is not None and (float(scale), int(zero_point)) != wanted:
            yield f"{node.input[0]}: {scale}, {zero_point} instead of {wanted}"
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            yield from _weights(model, node, target)
        if node.op_type in target.one_scale and node.name in planned:
            yield from _one_scale(model, node)


def _weights(model: Written, node: onnx.NodeProto, target: Target) -> Iterator[str]:
    weight = model.dequantized(node.input[1])
    if weight is None or weight.input[0] not in model.constants:
        return
    integers, (scale, zero_point) = model.constants[weight.input[0]], model.params(weight)
    assert zero_point is not None
    if integers.dtype.name not in target.weights or np.any(zero_point != (0 if integers.dtype == np.int8 else 128)):
        yield f"{node.name}: weight {integers.dtype}, zero point {zero_point}"
    if integers.dtype == np.int8 and integers.min() < -127:
        yield f"{node.name}: weight holds {integers.min()}"
    channels = target.per_channel is None or node.op_type in target.per_channel
    if (scale.ndim == 1) != channels:
        yield f"{node.name}: weight scale of shape {scale.shape}"
    if len(node.input) > 2:
        bias = model.dequantized(node.input[2])
        if (bias is not None) != target.quantizes_bias:
            yield f"{node.name}: bias is {'int32' if bias is not None else 'float'}"
        if bias is not None:
            step, _ = model.params(bias)
            x, _ = model.params(model.dequantized(node.input[0]))  # type: ignore[arg-type]
            if model.constants[bias.input[0]].dtype != np.int32 or not np.array_equal(step, x * scale):
                yield f"{node.name}: bias in steps of {step}"


def _one_scale(model: Written, node: onnx.NodeProto) -> Iterator[str]:
    inputs = [model.dequantized(name) for name in node.input if name in model.producer]
    outputs = [q for q in model.quantizers() if model.source(q.input[0]) is node]
    found = {tuple(map(float, model.params(n))) for n in (*inputs, *outputs) if n is not None}  # type: ignore[arg-type]
    if len(found) != 1:
        yield f"{node.name} ({node.op_type}): {len(found)} scales"


def head() -> onnx.ModelProto:
    """conv -> average pool -> concat of two -> tanh -> conv -> softmax over channels."""
    net = Net()
    a = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)
    b = net.op("AveragePool", net.op("Relu", a), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    joined = net.op("Concat", b, net.conv(a, 4, 4), net.op("MaxPool", b, kernel_shape=[1, 1]), axis=1)
    c = net.conv(net.op("Tanh", joined), 12, 4)
    return net.model(net.op("Softmax", c, axis=1, output="y"))


def gates() -> onnx.ModelProto:
    """Two bounded functions and an open one are joined: one scale is possible only without the last."""
    net = Net()
    a = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)
    left = net.op("Concat", net.op("Sigmoid", a), net.op("Softmax", a, axis=1), axis=1)
    right = net.op("Concat", net.op("Tanh", a), net.op("MaxPool", a, kernel_shape=[1, 1]), axis=1)
    return net.model(net.conv(net.op("Mul", left, right), 8, 2, output="y"))


def upscale() -> onnx.ModelProto:
    net = Net()
    a = net.op("LeakyRelu", net.conv(net.input("x", ["n", 3, 4, 4]), 3, 4), alpha=0.1)
    b = net.op("ConvTranspose", a, net.normal(4, 5, 2, 2, scale=0.3), net.normal(5), strides=[2, 2], name="up")
    return net.model(net.op("Sub", b, net.conv(b, 5, 5), output="y"))


BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    **MODELS,
    **{build.__name__: build for build in (head, gates, upscale)},
}
TARGET = pytest.mark.parametrize("target", TARGETS)


@TARGET
@pytest.mark.parametrize("name", BUILDERS)
def test_models_obey_their_target_and_run(target: str, name: str) -> None:
    q = Quantized(BUILDERS[name](), target=target)
    assert list(violations(q.data, get_target(target), q.plan)) == []
    for optimize in (False, True):
        # Other targets use all 8 bits of weights, with which onnxruntime saturates on CPUs before VNNI.
        saturated = optimize and saturates() and not get_target(target).pair_products
        for real, got in zip(run(q.model, q.feeds), run(q.data, q.feeds, optimize=optimize), strict=True):
            assert sqnr(real, got) > (8 if saturated else 18), f"optimize={optimize}"


def sqnr(real: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    noise = float(np.sum((real - got) ** 2))
    return 10 * math.log10(float(np.sum(real**2)) / noise) if noise else math.inf


@pytest.mark.parametrize("target", ["tflite", "warboy", "qnn", "generic"])
def test_devices_get_whole_models(target: str) -> None:
    """What is float would run elsewhere."""
    assert Quantized(head(), target=target).plan.skipped == ()


def test_one_scale_covers_all_that_is_joined() -> None:
    """The range is that of all that enters: of the first convolution and of the second."""
    q = Quantized(head(), target="tflite")
    (lead,) = [tensor for tensor in q.plan.tensors.values() if tensor.joined]
    assert len(lead.joined) == 1
    assert {tensor.name for tensor in q.plan.tensors.values() if tensor.source == lead.name} >= set(lead.joined)
    values = run(q.graph.to_bytes([lead.name, *lead.joined]), q.feeds)
    params = q.resolved.activations[lead.name]
    reach = (np.iinfo(np.int8).max - int(params.zero_point)) * float(params.scale)
    assert reach == pytest.approx(max(float(value.max()) for value in values), abs=float(params.scale))


def test_statistics_are_joined_too() -> None:
    model = head()
    result = requant.quantize(model, [samples(model, 16)], method="minmax", target="tflite")
    (lead,) = [tensor for tensor in result.plan.tensors.values() if tensor.joined]
    found = {t.name: t for t in result.report.tensors}
    assert len({(found[name].scale, found[name].zero_point) for name in (lead.name, *lead.joined)}) == 1
    assert all(found[name].clipped == 0 for name in (lead.name, *lead.joined))


def test_what_cannot_have_one_scale_stays_float() -> None:
    plan = Quantized(gates(), target="tflite").plan
    (skip,) = [skip for skip in plan.skipped if skip.op_type == "Concat"]
    assert skip.reason == "tflite wants one scale here, and fixes that of one of its inputs"
    assert plan.op_types.count("Concat") == 1


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"target": "tensorrt", "activations": "uint8"}, "target tensorrt takes int8 activations only"),
    ({"target": "tensorrt", "symmetric": False}, "target tensorrt has no zero points but 0"),
    ({"target": "tensorrt", "rules": [{"match": "x", "scale": 0.1, "zero_point": 3}]}, "tensorrt has none but 0"),
    ({"target": "tflite", "weights": "uint8"}, "target tflite takes int8 weights only"),
    ({"target": "warboy", "rules": [{"match": "x", "dtype": "int16"}]}, "rule 'x': dtype is int16, and target warboy"),
    ({"target": "qnn", "activations": "int8"}, "takes uint8 or uint16 activations only"),
]


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS, ids=lambda value: str(value)[:50])
def test_options_that_contradict_the_target_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        QuantConfig().with_options(**options)
    assert "another target" in str(caught.value)


def test_a_rule_that_contradicts_a_fixed_output_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fixes the output of Tanh at scale 0\.0078125, zero point 0"):
        Quantized(head(), target="tflite", rules=[{"match": "Tanh", "range": [-1.0, 1.0]}])


@TARGET
def test_the_target_alone_decides_the_type_of_activations(target: str) -> None:
    scheme = QuantConfig(target=target).activation_scheme
    assert scheme.dtype == get_target(target).activations[0]
    assert scheme.symmetric == get_target(target).symmetric


def test_models_for_warboy_take_and_give_integers() -> None:
    editor = requant.ModelEditor(Quantized(head(), target="warboy").data)
    assert editor.convert_input_type("x", "uint8").exact
    assert editor.convert_output_type("y", "int8").exact
    edited = Graph.load(editor.finish().data)
    assert [i.dtype for i in edited.inputs] == [np.uint8]
    assert [o.dtype for o in edited.outputs] == [np.int8]

"""Half floats and doubles become float32: the same interface, and integer kernels for them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import MODELS, Net, run, samples

import requant
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.passes.widen import runnable

pytestmark = pytest.mark.usefixtures("quick_latency")

NUMPY: dict[int, Any] = {
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.DOUBLE: np.float64,
}
#: A tree that is one leaf.
LEAF: dict[str, Any] = {
    **{f"nodes_{key}s": [0] for key in ("treeid", "nodeid", "featureid", "truenodeid", "falsenodeid")},
    **{f"target_{key}s": [0] for key in ("id", "nodeid", "treeid")},
    "nodes_modes": ["LEAF"],
    "nodes_values": [0.0],
    "target_weights": [1.5],
    "n_targets": 1,
}
NARROWED = "computed in float32 instead of float64"


def in_kind(model: onnx.ModelProto, kind: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """``model`` with every float32 constant, input and output of another precision."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(NUMPY[kind])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = kind
    return half


def element_types(data: bytes) -> set[int]:
    graph = onnx.load_from_string(data).graph
    return {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}


@pytest.mark.parametrize("name", MODELS)
def test_a_float16_model_is_quantized_as_its_float32_twin(name: str) -> None:
    """The constants and samples are the same numbers, so the integers are the same too."""
    model = in_kind(MODELS[name]())
    twin = MODELS[name]()
    for tensor, half in zip(twin.graph.initializer, model.graph.initializer, strict=True):
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(half).astype(np.float32), tensor.name))
    feeds = {key: value.astype(np.float16) for key, value in samples(model, 16).items()}
    real = {key: value.astype(np.float32) for key, value in feeds.items()}
    result = requant.quantize(model, feeds, threads=1)
    assert element_types(result.data) == {TensorProto.FLOAT16}
    assert any("half floats widened" in line for line in result.report.prepared)
    expected = requant.quantize(twin, real, threads=1)
    assert result.report.quantized == expected.report.quantized
    for got, wanted in zip(run(result.data, feeds), run(expected.data, real), strict=True):
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, wanted.astype(np.float16))


@pytest.mark.parametrize("name", MODELS)
def test_a_bfloat16_model_is_quantized_with_float32_inputs_and_outputs(name: str) -> None:
    """No CPU runtime runs the model itself; its float32 form is the reference."""
    model = in_kind(MODELS[name](), TensorProto.BFLOAT16)
    feeds = samples(model, 16)
    result = requant.quantize(model, feeds, threads=1)
    assert element_types(result.data) == {TensorProto.FLOAT}
    assert any(note.startswith("bfloat16 inputs and outputs became float32: x, y") for note in result.report.notes)
    assert all(out.sqnr_db is None or out.sqnr_db > 15 for out in result.report.outputs)


def test_bfloat16_between_casts_is_found() -> None:
    """As automatic mixed precision exports it: nothing but Casts names the type."""
    net = Net(22, ir_version=10)
    x, w = (net.op("Cast", t, to=TensorProto.BFLOAT16) for t in (net.input("x", ["n", 8]), net.normal(8, 4)))
    model = net.model(net.op("Cast", net.op("MatMul", x, w), to=TensorProto.FLOAT, output="y"))
    result = requant.quantize(model, samples(model, 16), threads=1)
    assert result.report.quantized["MatMul"] == 1
    assert not any("bfloat16" in note for note in result.report.notes)
    ints = [t for t in onnx.load_from_string(result.data).graph.initializer if t.data_type == TensorProto.INT8]
    assert any(list(t.dims) == [8, 4] for t in ints)


def test_casts_constants_and_bodies_are_widened() -> None:
    """A float32 model that is float16 inside: a Constant, a ConstantOfShape and both branches of an If."""
    net = Net()
    x = net.input("x", ["n", 4])
    half = net.op("Cast", x, to=TensorProto.FLOAT16)
    one = net.op("Constant", value=numpy_helper.from_array(np.full(1, 1.5, np.float16)))
    filled = net.op("ConstantOfShape", net.op("Shape", x), value=numpy_helper.from_array(np.full(1, 0.25, np.float16)))
    summed = net.op("Add", net.op("Add", half, one), filled)
    branches = {}
    for name, op_type in (("then_branch", "Sin"), ("else_branch", "Cos")):
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT16, ["n", 4])
        branches[name] = helper.make_graph([helper.make_node(op_type, [summed], [out.name])], name, [], [out])
    condition = net.op("Greater", net.op("Size", x), net.const(np.int64(3)))
    chosen = net.op("If", condition, **branches)
    model = net.model(net.op("Cast", chosen, to=TensorProto.FLOAT, output="y"))
    prepared, changes = prepare(Graph.load(model))
    assert any("half floats widened" in str(change) for change in changes)
    kinds = {v.dtype.name for node in prepared.all_nodes() for v in node.outputs if v.dtype is not None}
    assert "FLOAT16" not in kinds
    feeds = samples(model, 8)
    np.testing.assert_allclose(run(prepared.to_bytes(), feeds)[0], run(model, feeds)[0], atol=5e-3)


def test_what_reads_the_bits_of_half_floats_keeps_them() -> None:
    net = Net(26, ir_version=13)
    x = net.input("x", ["n", 4], TensorProto.FLOAT16)
    doubled = net.op("Add", x, net.const(np.ones(1, np.float16)))
    model = net.model(net.op("BitCast", doubled, to=TensorProto.INT16, output="y"))
    _, changes = prepare(Graph.load(model))
    assert not any("half floats" in str(change) for change in changes)


def test_a_model_without_half_floats_is_left_as_it_is() -> None:
    graph = Graph.load(MODELS["conv_relu"]())
    assert runnable(graph) is graph
    assert graph.retyped() == []
    assert runnable(Graph.load(in_kind(MODELS["conv_relu"]()))).retyped() == []


def wide(value: Any, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, np.float64), name)


def doubles(scale: float = 1.0) -> onnx.ModelProto:
    """A classifier in float64 as scikit-learn's converters write one: standardised, a hidden layer, a label."""
    rng = np.random.default_rng(0)
    net = Net(ir_version=8)
    x = net.input("x", ["n", 8], TensorProto.DOUBLE)
    for name, shape in (("mean", 8), ("w", (8, 32)), ("b", 32), ("v", (32, 4))):
        net.initializers.append(wide(rng.standard_normal(shape) * scale, name))
    net.initializers.append(numpy_helper.from_array(np.array([10, 20, 30, 40]), "classes"))
    hidden = net.op("Relu", net.op("Add", net.op("MatMul", net.op("Sub", x, "mean"), "w"), "b"))
    scores = net.op("Softmax", net.op("MatMul", hidden, "v"), axis=-1, output="scores")
    place = net.op("ArgMax", scores, axis=1, keepdims=0)
    net.opsets.append(helper.make_opsetid("ai.onnx.ml", 3))
    return net.model(scores, net.op("ArrayFeatureExtractor", "classes", place, domain="ai.onnx.ml", output="label"))


def double_samples(count: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((count, 8))}


def test_a_model_of_doubles_is_quantized_and_told_so() -> None:
    model, feeds = doubles(), double_samples(256)
    result = requant.quantize(model, feeds, threads=1)
    assert result.report.quantized["MatMul"] + result.report.quantized.get("Gemm", 0) == 2
    assert any("doubles rounded to float32" in line for line in result.report.prepared)
    proto = onnx.load_from_string(result.data)
    assert [v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)] == [
        TensorProto.DOUBLE,
        TensorProto.DOUBLE,
        TensorProto.INT64,
    ]
    scores, labels = run(model, feeds)
    got, found = run(result.data, feeds)
    assert got.dtype == np.float64
    assert 10 * np.log10(np.mean(scores**2) / np.mean((got - scores) ** 2)) > 25
    assert np.mean(labels == found) > 0.95
    (note,) = (note for note in result.report.notes if NARROWED in note)
    level = float(note.split("within ")[1].split(" dB")[0])
    prepared = prepare(Graph.load(model))[0]
    (rounded, _) = run(prepared.to_bytes(), feeds)
    assert abs(level - 10 * np.log10(np.mean(scores**2) / np.mean((rounded - scores) ** 2))) < 6
    assert level > 120


@pytest.mark.parametrize("name", ["two_gemm", "mlp"])
def test_a_model_of_doubles_is_quantized_as_its_float32_twin(name: str) -> None:
    twin = MODELS[name]()
    model = in_kind(twin, TensorProto.DOUBLE)
    real = samples(twin, 16)
    result, expected = (
        requant.quantize(each, feeds, threads=1)
        for each, feeds in ((model, {key: x.astype(np.float64) for key, x in real.items()}), (twin, real))
    )
    assert element_types(result.data) == {TensorProto.DOUBLE}
    assert result.report.quantized == expected.report.quantized
    for got, wanted in zip(
        run(result.data, {key: x.astype(np.float64) for key, x in real.items()}), run(expected.data, real), strict=True
    ):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, wanted)
    assert any(NARROWED in note for note in result.report.notes)
    assert not any(NARROWED in note for note in expected.report.notes)


@pytest.mark.parametrize("options", [{"dynamic": True}, {"weight_only": "int4"}])
def test_doubles_without_samples_are_not_measured(options: dict[str, Any]) -> None:
    net = Net()
    model = net.model(net.op("MatMul", net.input("x", ["n", 64]), net.normal(64, 256), output="y"))
    result = requant.quantize(in_kind(model, TensorProto.DOUBLE), **options, threads=1)
    assert any(NARROWED in note and "was not measured" in note for note in result.report.notes)


@pytest.mark.parametrize("why", ["large", "small", "integers", "trees", "nothing to multiply"])
def test_doubles_that_may_be_needed_as_they_are_stay(why: str) -> None:
    net = Net()
    x = net.input("x", ["n", 4], TensorProto.DOUBLE)
    net.initializers += [wide(np.eye(4), "w"), wide({"large": 1e300, "small": 1e-300}.get(why, 1.0), "one")]
    y = net.op("Mul", net.op("MatMul" if why != "nothing to multiply" else "Sub", x, "w"), "one", output="y")
    outputs = [y]
    if why == "integers":
        outputs.append(net.op("Cast", y, to=TensorProto.INT64, output="count"))
    if why == "trees":
        net.opsets.append(helper.make_opsetid("ai.onnx.ml", 3))
        outputs.append(net.op("TreeEnsembleRegressor", y, domain="ai.onnx.ml", output="leaf", **LEAF))
    model = net.model(*outputs)
    prepared, changes = prepare(Graph.load(model))
    assert not any("doubles" in str(change) for change in changes)
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 4))}
    for got, wanted in zip(run(prepared.to_bytes(), feeds), run(model, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


def gelu() -> onnx.ModelProto:
    """An Erf between two products, as exporters spell GELU."""
    net = Net()
    x = net.gemm(net.input("x", ["n", 8]), 8, 16)
    return net.model(net.gemm(net.op("Mul", x, net.op("Erf", x)), 16, 4, output="y"))


@pytest.mark.parametrize("twin", [MODELS["conv_relu"](), gelu()], ids=["convolution", "activation"])
def test_doubles_that_have_no_kernel_are_compared_in_float32(twin: onnx.ModelProto) -> None:
    """No CPU runtime runs the model itself; its float32 form is the reference."""
    model, real = in_kind(twin, TensorProto.DOUBLE), samples(twin, 16)
    feeds = {key: x.astype(np.float64) for key, x in real.items()}
    result, expected = requant.quantize(model, feeds, threads=1), requant.quantize(twin, real, threads=1)
    assert element_types(result.data) == {TensorProto.DOUBLE}
    assert result.report.quantized == expected.report.quantized
    assert result.report.outputs == expected.report.outputs
    assert any("lacks kernels for this model's float64" in note for note in result.report.notes)
    np.testing.assert_array_equal(run(result.data, feeds)[0], run(expected.data, real)[0])
    assert requant.compare(model, result.data, feeds, measure=False).outputs[0].cosine > 0.99

"""Half floats become float32: the same constants, the same interface, and integer kernels for them."""

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
from requant.onnx.passes.widen import without_bfloat16

pytestmark = pytest.mark.usefixtures("quick_latency")

NUMPY: dict[int, Any] = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def in_half(model: onnx.ModelProto, kind: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """``model`` with every float32 constant, input and output in half precision."""
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
    model = in_half(MODELS[name]())
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
    model = in_half(MODELS[name](), TensorProto.BFLOAT16)
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
    assert without_bfloat16(graph) is graph
    assert graph.retyped() == []
    assert without_bfloat16(Graph.load(in_half(MODELS["conv_relu"]()))).retyped() == []

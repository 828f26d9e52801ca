"""ONNX's own node tests, and onnxruntime on random and adversarial data: bit for bit."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.conformance.cases import assert_same

from requant.arrays import affine, packing
from requant.arrays.slices import scale_shape
from requant.types import PerBlock, PerChannel, PerTensor, QuantizedTensor, QuantParams, QuantScheme, QuantType

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx.backend.test.case.test_case import TestCase

    from requant.types import Granularity

# Types that requant does not quantize to.
SKIPPED = {
    "test_quantizelinear_e4m3fn",
    "test_quantizelinear_e5m2",
    "test_quantizelinear_float4e2m1",
    "test_quantizelinear_int2",
    "test_quantizelinear_uint2",
    "test_dequantizelinear_e4m3fn",
    "test_dequantizelinear_e4m3fn_float16",
    "test_dequantizelinear_e4m3fn_zero_point",
    "test_dequantizelinear_e5m2",
    "test_dequantizelinear_float4e2m1",
    "test_dequantizelinear_int2",
    "test_dequantizelinear_uint2",
}
ONE_OP = [["QuantizeLinear"], ["DequantizeLinear"], ["DynamicQuantizeLinear"]]


def collect() -> dict[str, TestCase]:
    """The cases of the three operators; importing the module of an operator adds its cases to onnx's list."""
    node = importlib.import_module("onnx.backend.test.case.node")
    for (op,) in ONE_OP:
        importlib.import_module(f"{node.__name__}.{op.lower()}")
    # An operator that is a function has its cases again with its nodes instead of itself.
    return {case.name: case for case in node._NodeTestCases if [n.op_type for n in case.model.graph.node] in ONE_OP}


CASES = collect()


def array(value: NDArray[Any] | TensorProto) -> NDArray[Any]:
    """4-bit tensors come as protobuf; widen them to the byte that requant holds them in."""
    if not isinstance(value, TensorProto):
        return np.asarray(value)
    return numpy_helper.to_array(value).astype(TYPES[value.data_type].numpy)


TYPES: dict[int, QuantType] = {
    TensorProto.INT2: QuantType.INT2,
    TensorProto.UINT2: QuantType.UINT2,
    TensorProto.INT4: QuantType.INT4,
    TensorProto.UINT4: QuantType.UINT4,
    TensorProto.INT8: QuantType.INT8,
    TensorProto.UINT8: QuantType.UINT8,
    TensorProto.INT16: QuantType.INT16,
    TensorProto.UINT16: QuantType.UINT16,
}


def granularity(attributes: dict[str, int], scale: NDArray[Any]) -> Granularity:
    axis = attributes.get("axis", 1)
    if attributes.get("block_size"):
        return PerBlock(axis, attributes["block_size"])
    return PerChannel(axis) if scale.ndim else PerTensor()


def test_the_list_of_skipped_cases_is_true() -> None:
    assert set(CASES) > SKIPPED


@pytest.mark.parametrize("name", sorted(set(CASES) - SKIPPED))
def test_node(name: str) -> None:
    case = CASES[name]
    assert case.model
    assert case.data_sets
    graph, (inputs, outputs) = case.model.graph, case.data_sets[0]
    if graph.node[0].op_type == "DynamicQuantizeLinear":
        params = affine.params_from_data(inputs[0], QuantScheme(QuantType.UINT8))
        results = (affine.quantize_array(inputs[0], params).data, params.scale, params.zero_point)
        for got, expected in zip(results, outputs, strict=True):
            assert_same(got, np.asarray(expected))
        return
    attributes = {attribute.name: attribute.i for attribute in graph.node[0].attribute}
    quantizes = graph.node[0].op_type == "QuantizeLinear"
    dtype = TYPES[(graph.output if quantizes else graph.input)[0].type.tensor_type.elem_type]
    scale = np.asarray(inputs[1])
    # Two cases give a scalar scale a zero point of shape [1].
    zero_point = array(inputs[2]).reshape(scale.shape) if len(inputs) > 2 else np.zeros(scale.shape, dtype.numpy)
    params = QuantParams(scale, zero_point, QuantScheme(dtype, granularity=granularity(attributes, scale)))
    if quantizes:
        assert_same(affine.quantize_array(inputs[0], params).data, array(outputs[0]))
    else:
        assert_same(affine.dequantize_array(QuantizedTensor(array(inputs[0]), params)), array(outputs[0]))


def adversarial(shape: tuple[int, ...], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Random values, half of them moved onto or one bit beside a tie, with infinities, huge and subnormal ones."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * 60 * scale.max()).astype(np.float32)
    ties = (np.round(x / scale.flat[0]) + np.float32(0.5)) * scale.flat[0]
    beside = np.nextafter(ties, np.float32(rng.choice([-1e30, 1e30])))
    x = np.asarray(np.select([rng.random(shape) < 0.25, rng.random(shape) < 0.33], [ties, beside], x), np.float32)
    special = [np.inf, -np.inf, 3e9, -3e9, 3.4e38, -3.4e38, 1e-45, -1e-39, 0.0, -0.0]
    x.reshape(-1)[: len(special)] = special
    return x


def run(op: str, inputs: list[onnx.TensorProto], attributes: dict[str, int], output: int) -> NDArray[Any]:
    """One node in onnxruntime, its inputs being constants so that 4-bit ones need no Python type."""
    ort = pytest.importorskip("onnxruntime")
    node = helper.make_node(op, [tensor.name for tensor in inputs], ["y"])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    # onnxruntime gives 4-bit outputs as bytes only after a cast.
    wide: dict[int, int] = {TensorProto.INT4: TensorProto.INT8, TensorProto.UINT4: TensorProto.UINT8}
    cast = helper.make_node("Cast", ["y"], ["z"], to=wide.get(output, output))
    z = helper.make_tensor_value_info("z", wide.get(output, output), None)
    graph = helper.make_graph([node, cast], op, [], [z], initializer=inputs)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {})
    return np.asarray(result)


def integers(values: NDArray[Any], name: str, dtype: QuantType) -> onnx.TensorProto:
    data_type = {named: data_type for data_type, named in TYPES.items()}[dtype]
    if dtype.bits == 4:
        return helper.make_tensor(name, data_type, values.shape, packing.pack_int4(values).tobytes(), raw=True)
    return numpy_helper.from_array(values, name)


#: Those that onnxruntime's QuantizeLinear knows.
RUN_BY_ONNXRUNTIME = [dtype for dtype in QuantType if dtype.bits > 2]


@pytest.mark.parametrize("dtype", RUN_BY_ONNXRUNTIME)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1), PerChannel(2), PerBlock(1, 16)])
def test_equals_onnxruntime(dtype: QuantType, granularity: Granularity) -> None:
    rng = np.random.default_rng(1)
    shape = (6, 32, 35)
    params_shape = scale_shape(shape, granularity)
    scale = (rng.random(params_shape, np.float32) + np.float32(0.01)).astype(np.float32)
    zero_point = rng.integers(dtype.min, dtype.max, params_shape, endpoint=True).astype(dtype.numpy)
    params = QuantParams(np.asarray(scale), np.asarray(zero_point), QuantScheme(dtype, granularity=granularity))
    x = adversarial(shape, params.scale)
    attributes = {
        **({"axis": granularity.axis} if isinstance(granularity, PerChannel | PerBlock) else {}),
        **({"block_size": granularity.block_size} if isinstance(granularity, PerBlock) else {}),
    }
    common = [numpy_helper.from_array(params.scale, "scale"), integers(params.zero_point, "zero_point", dtype)]
    q = affine.quantize_array(x, params)
    output = common[1].data_type
    expected = run("QuantizeLinear", [numpy_helper.from_array(x, "x"), *common], attributes, output)
    # In blocks, and of 4 bits along the last axis, onnxruntime converts to int32 before it clamps, and 3e9 wraps.
    beyond = np.abs(x) > 1e8
    assert_same(q.data[~beyond], expected[~beyond])
    np.testing.assert_array_equal(q.data[beyond], np.where(x[beyond] > 0, dtype.max, dtype.min))
    expected = run("DequantizeLinear", [integers(q.data, "q", dtype), *common], attributes, TensorProto.FLOAT)
    assert_same(q.dequantize(), expected)


@pytest.mark.parametrize("seed", range(8))
def test_dynamic_quantization_equals_onnxruntime(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(1000) * 10.0 ** rng.integers(-20, 20) + rng.standard_normal()).astype(np.float32)
    ort = pytest.importorskip("onnxruntime")
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero_point"])
    kinds = {"y": TensorProto.UINT8, "scale": TensorProto.FLOAT, "zero_point": TensorProto.UINT8}
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1000])], outputs)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    params = affine.params_from_data(x, QuantScheme(QuantType.UINT8))
    results = (affine.quantize_array(x, params).data, params.scale, params.zero_point)
    for got, expected in zip(results, session.run(None, {"x": x}), strict=True):
        assert_same(got, np.asarray(expected))

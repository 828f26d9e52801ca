"""ConvInteger, QLinearConv and the layers beside them: ONNX's node tests; onnxruntime on random models, to the bit.

onnxruntime's u8 x s8 kernels add pairs of products in saturating 16 bits on x86 without VNNI; signed weights are kept
within -63..63 here, for which no pair saturates (2 * 255 * 63 < 2**15), so that both give the exact sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from tests.conformance.cases import assert_same, collect, flat, op_type

from requant.arrays.conv import PackedConv, qconv2d
from requant.arrays.epilogue import Requantizer
from requant.arrays.layers import qadd, qaverage_pool, qglobal_average_pool, qmax_pool
from requant.types import QuantizedTensor, QuantParams, QuantScheme, QuantType

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPS = ["ConvInteger", "QLinearConv"]
TYPES = {np.uint8: QuantType.UINT8, np.int8: QuantType.INT8}


CASES = collect(OPS)


def last(x: NDArray[Any]) -> NDArray[Any]:
    """Channels last."""
    return np.moveaxis(x, 1, -1)


def first(x: NDArray[Any]) -> NDArray[Any]:
    """Channels first."""
    return np.moveaxis(x, -1, 1)


def packed(w: NDArray[Any], zero_point: NDArray[Any], attributes: dict[str, Any]) -> PackedConv:
    names = {"strides": "strides", "dilations": "dilations", "pads": "pads", "group": "groups"}
    known = {names[name]: value for name, value in attributes.items() if name in names}
    return PackedConv(w, zero_point=flat(zero_point), **known)


def conv_integer(inputs: list[NDArray[Any]], attributes: dict[str, Any]) -> NDArray[Any]:
    x, w, *zero_points = inputs
    x_zero_point, w_zero_point = zero_points + [np.zeros((), np.uint8)] * (2 - len(zero_points))
    return first(qconv2d(last(x), packed(w, w_zero_point, attributes), x_zero_point=x_zero_point.item()))


def qlinear(inputs: list[NDArray[Any]], attributes: dict[str, Any]) -> NDArray[Any]:
    x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, *bias = inputs
    requantizer = Requantizer(
        x_scale.item(),
        w_scale,
        y_scale.item(),
        y_zero_point=y_zero_point.item(),
        dtype=y_zero_point.dtype.name,  # type: ignore[arg-type]
        bias=bias[0] if bias else None,
    )
    filters = packed(w, w_zero_point, attributes)
    return first(qconv2d(last(x), filters, x_zero_point=x_zero_point.item(), requantizer=requantizer))


def test_the_cases_are_there() -> None:
    assert {op_type(case) for case in CASES.values()} == set(OPS)


@pytest.mark.parametrize("name", CASES)
def test_node(name: str) -> None:
    case = CASES[name]
    assert case.model
    assert case.data_sets
    inputs, outputs = map(list, case.data_sets[0])
    attributes = {a.name: helper.get_attribute_value(a) for a in case.model.graph.node[0].attribute}
    convolve = conv_integer if op_type(case) == "ConvInteger" else qlinear
    assert_same(convolve(inputs, attributes), outputs[0])


def run(
    op: str, inputs: list[Any], output: type[np.generic], attributes: dict[str, Any] | None = None, domain: str = ""
) -> NDArray[Any]:
    """One node in onnxruntime; all inputs but the first are constants, as weights are."""
    ort = pytest.importorskip("onnxruntime")
    kind = helper.np_dtype_to_tensor_dtype
    arrays = [np.asarray(value) for value in inputs]
    names = [f"i{i}" for i in range(len(arrays))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain=domain, **(attributes or {}))],
        op,
        [helper.make_tensor_value_info("i0", kind(arrays[0].dtype), list(arrays[0].shape))],
        [helper.make_tensor_value_info("y", kind(np.dtype(output)), None)],
        [numpy_helper.from_array(value, name) for name, value in zip(names[1:], arrays[1:], strict=True)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"i0": arrays[0]})
    return np.asarray(result)


#: Images, filters, attributes.
MODELS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 11, 9), (8, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((2, 16, 7, 6), (21, 16, 3, 3), {"pads": [0, 1, 2, 0]}),
    ((1, 40, 9, 8), (33, 40, 1, 1), {}),
    ((1, 12, 9, 8), (18, 4, 3, 3), {"group": 3, "dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    ((1, 35, 10, 11), (35, 1, 3, 3), {"group": 35, "pads": [1, 1, 1, 1]}),
    ((1, 16, 10, 11), (16, 1, 5, 5), {"group": 16, "pads": [2, 2, 2, 2], "strides": [2, 2]}),
    ((1, 6, 10, 8), (12, 1, 3, 3), {"group": 6}),
    ((2, 6, 30), (9, 6, 5), {"pads": [4, 0], "dilations": [2]}),
]


def integers(
    rng: np.random.Generator, dtype: type[Any], shape: tuple[int, ...] | int, limit: int = 128
) -> NDArray[Any]:
    low, high = (0, 256) if dtype is np.uint8 else (-limit, limit)
    return rng.integers(low, high, shape, dtype)


@pytest.mark.parametrize("w_type", [np.uint8, np.int8])
@pytest.mark.parametrize("model", range(len(MODELS)))
def test_convinteger_equals_onnxruntime(model: int, w_type: type[Any]) -> None:
    (x_shape, w_shape, attributes), rng = MODELS[model], np.random.default_rng(model)
    x, w = integers(rng, np.uint8, x_shape), integers(rng, w_type, w_shape, 63)
    inputs = [x, w, np.asarray(rng.integers(0, 256), np.uint8), np.asarray(7 if w_type is np.int8 else 131, w_type)]
    assert_same(conv_integer(inputs, attributes), run("ConvInteger", inputs, np.int32, attributes))


@pytest.mark.parametrize("w_type", [np.uint8, np.int8])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("model", range(len(MODELS)))
def test_qlinearconv_equals_onnxruntime(model: int, w_type: type[Any], each: bool, ties: bool) -> None:
    (x_shape, w_shape, attributes), rng = MODELS[model], np.random.default_rng(model)
    x, w = integers(rng, np.uint8, x_shape), integers(rng, w_type, w_shape, 63)
    filters = w_shape[0]
    count = filters if each else 1
    spread = 100 * (74 if w_type is np.uint8 else 36) * np.prod(w_shape[1:]) ** 0.5
    # Powers of two make ties of many sums; random scales make none.
    w_scale = 2.0 ** rng.integers(-2, 2, count) if ties else rng.random(count) + 0.5
    y_scale = 2.0 ** np.round(np.log2(spread / 60)) if ties else spread / 60 * 0.77
    w_zero_point = np.full(count, 120 if w_type is np.uint8 else 0, w_type)
    if not each:
        w_scale, w_zero_point = w_scale.reshape(()), w_zero_point.reshape(())
    inputs = [
        x, np.float32(1.0 if ties else 0.713), np.uint8(131), w, w_scale.astype(np.float32), w_zero_point,
        np.float32(y_scale), np.uint8(99), rng.integers(-3000, 3000, filters, np.int32),
    ]  # fmt: skip
    arrays = [np.asarray(value) for value in inputs]
    got = qlinear(arrays, attributes)
    assert_same(got, run("QLinearConv", arrays, np.uint8, attributes))
    assert np.mean((got > 0) & (got < 255)) > 0.5, "most results lie within the range"


@pytest.mark.parametrize("model", range(len(MODELS)))
def test_signed_qlinearconv_equals_onnxruntime(model: int) -> None:
    (x_shape, w_shape, attributes), rng = MODELS[model], np.random.default_rng(model)
    x, w = integers(rng, np.int8, x_shape), integers(rng, np.int8, w_shape, 63)
    y_scale = 100 * 36 * np.prod(w_shape[1:]) ** 0.5 / 60
    scales = [np.float32(0.713), np.float32(0.9), np.float32(y_scale)]
    inputs = [x, scales[0], np.int8(-9), w, scales[1], np.int8(0), scales[2], np.int8(5)]
    arrays = [np.asarray(value) for value in inputs]
    assert_same(qlinear(arrays, attributes), run("QLinearConv", arrays, np.int8, attributes))


def params(dtype: type[Any], scale: Any, zero_point: Any) -> QuantParams:
    scheme = QuantScheme(TYPES[dtype])
    return QuantParams(np.asarray(scale, np.float32), np.asarray(zero_point, dtype), scheme)


def draw(rng: np.random.Generator, dtype: type[Any], count: int) -> list[QuantParams]:
    """Scales of few digits, which have ties."""
    limits = np.iinfo(dtype)
    return [
        params(dtype, rng.integers(1, 50) / rng.choice([10, 64]), rng.integers(limits.min, limits.max + 1))
        for _ in range(count)
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("seed", range(6))
def test_addition_equals_onnxruntime(seed: int, dtype: type[Any]) -> None:
    """Every pair of integers. onnxruntime fuses multiplication and addition where the CPU does."""
    rng = np.random.default_rng(seed)
    every = np.arange(256, dtype=np.uint8).view(dtype)
    a, b = (np.ascontiguousarray(grid.reshape(-1)) for grid in np.meshgrid(every, every))
    of_a, of_b, of_y = draw(rng, dtype, 3)
    inputs = [a, of_a.scale, of_a.zero_point, b, of_b.scale, of_b.zero_point, of_y.scale, of_y.zero_point]
    expected = run("QLinearAdd", inputs, dtype, domain="com.microsoft")
    assert_same(qadd(QuantizedTensor(a, of_a), QuantizedTensor(b, of_b), of_y).data, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_average_pool_equals_onnxruntime(seed: int, include_pad: bool, dtype: type[Any]) -> None:
    rng = np.random.default_rng(seed)
    of_x, of_y = draw(rng, dtype, 2)
    x = integers(rng, dtype, (2, 40, 12, 11))
    kernel, strides = [[3, 3], [2, 2], [2, 3]][seed % 3], [1 + seed % 2, 1 + seed // 3]
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": [1, 0, 1, 1]}
    expected = run(
        "QLinearAveragePool",
        [x, of_x.scale, of_x.zero_point, of_y.scale, of_y.zero_point],
        dtype,
        {**attributes, "count_include_pad": int(include_pad)},
        "com.microsoft",
    )
    got = qaverage_pool(
        QuantizedTensor(last(x), of_x), of_y, kernel, strides=strides, pads=[1, 0, 1, 1], include_pad=include_pad
    )
    assert_same(first(got.data), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("seed", range(6))
def test_global_average_pool_equals_onnxruntime(seed: int, dtype: type[Any]) -> None:
    rng = np.random.default_rng(seed)
    of_x, of_y = draw(rng, dtype, 2)
    x = integers(rng, dtype, (3, 67, 2 + seed, 7))
    inputs = [x, of_x.scale, of_x.zero_point, of_y.scale, of_y.zero_point]
    expected = run("QLinearGlobalAveragePool", inputs, dtype, {"channels_last": 0}, "com.microsoft")
    assert_same(first(qglobal_average_pool(QuantizedTensor(last(x), of_x), of_y).data), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_max_pool_equals_onnxruntime(dtype: type[Any]) -> None:
    x = integers(np.random.default_rng(0), dtype, (2, 37, 11, 12))
    attributes = {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [1, 2], "pads": [1, 1, 0, 1]}
    expected = run("MaxPool", [x], dtype, attributes)
    got = qmax_pool(last(x), [3, 2], strides=[2, 1], dilations=[1, 2], pads=[1, 1, 0, 1])
    assert_same(first(got), expected)

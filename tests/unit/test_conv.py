from __future__ import annotations

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from requant.arrays.conv import PackedConv, qconv2d
from requant.arrays.epilogue import Requantizer
from requant.arrays.layers import LookupTable, qadd, qaverage_pool, qglobal_average_pool, qmax_pool
from requant.errors import ConfigError
from requant.types import PerChannel, QuantizedTensor, QuantParams, QuantScheme, QuantType

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (2, 7, 6, 20), np.uint8)
W = RNG.integers(-128, 128, (9, 20, 3, 2), np.int8)
FILTERS = PackedConv(W, pads=(1, 0, 1, 1))


def exact(
    x: np.ndarray,
    w: np.ndarray,
    *,
    x_zero_point: int,
    zero_point: Any,
    strides: Any,
    dilations: Any,
    pads: Any,
    groups: int,
) -> np.ndarray:
    """By definition, in int64: for each tap, a strided part of the padded image times the tap's weights."""
    n, h, width, _ = x.shape
    m, channels, kh, kw = w.shape
    padded = np.zeros((n, h + pads[0] + pads[2], width + pads[1] + pads[3], x.shape[3]), np.int64)
    padded[:, pads[0] : pads[0] + h, pads[1] : pads[1] + width] = x.astype(np.int64) - x_zero_point
    centred = w.astype(np.int64) - np.broadcast_to(zero_point, (m,))[:, None, None, None]
    rows = max(0, (padded.shape[1] - dilations[0] * (kh - 1) - 1) // strides[0] + 1)
    columns = max(0, (padded.shape[2] - dilations[1] * (kw - 1) - 1) // strides[1] + 1)
    out = np.zeros((n, rows, columns, m), np.int64)
    each = m // groups
    for i in range(kh if rows and columns else 0):
        for j in range(kw):
            top, left = i * dilations[0], j * dilations[1]
            part = padded[
                :, top : top + rows * strides[0] : strides[0], left : left + columns * strides[1] : strides[1]
            ]
            part = part[:, :rows, :columns]
            for group in range(groups):
                taps = centred[group * each : (group + 1) * each, :, i, j]
                seen = part[..., group * channels : (group + 1) * channels]
                out[..., group * each : (group + 1) * each] += seen @ taps.T
    return out


ATTRIBUTES = st.fixed_dictionaries(
    {
        "strides": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "dilations": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "pads": st.tuples(*[st.integers(0, 3)] * 4),
    }
)
#: Groups, and channels and filters of each; depthwise as often as not.
LAYERS = st.tuples(st.integers(1, 4), st.integers(1, 18), st.integers(1, 18)) | st.tuples(
    st.integers(1, 40), st.just(1), st.just(1)
)


@given(
    sizes=st.tuples(*[st.integers(0, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)]),
    layer=LAYERS,
    attributes=ATTRIBUTES,
    threads=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_convolution_is_exact(
    sizes: tuple[int, ...], layer: tuple[int, ...], attributes: dict[str, Any], threads: int | None, seed: int
) -> None:
    (groups, channels, each), rng = layer, np.random.default_rng(seed)
    x_type, w_type = ("int8" if signed else "uint8" for signed in rng.integers(0, 2, 2))
    x = rng.integers(0, 256, (*sizes[:3], groups * channels), np.uint8).view(x_type)
    w = rng.integers(0, 256, (groups * each, channels, *sizes[3:]), np.uint8).view(w_type)
    x_zero_point = rng.integers(0, 256, 1, np.uint8).view(x_type).item()
    attributes |= {"zero_point": rng.integers(0, 256, groups * each, np.uint8).view(w_type), "groups": groups}
    filters = PackedConv(w, **attributes)
    got = qconv2d(x, filters, x_zero_point=x_zero_point, threads=threads)
    want = exact(x, w, x_zero_point=x_zero_point, **attributes)
    assert got.dtype == np.int32
    assert got.shape == want.shape == filters.output_shape(x.shape)
    np.testing.assert_array_equal(got, want)


def test_sequences_are_images_of_height_1() -> None:
    sequence = PackedConv(W[:, :, 0], pads=(2, 0), strides=[2], dilations=[3])
    image = PackedConv(W[:, :, :1], pads=(0, 2, 0, 0), strides=[1, 2], dilations=[1, 3])
    got = qconv2d(X[:, 0], sequence, x_zero_point=9)
    assert (sequence.shape, got.shape) == ((9, 20, 2), sequence.output_shape((2, 6, 20)))
    np.testing.assert_array_equal(got, qconv2d(X[:, :1], image, x_zero_point=9)[:, 0])
    np.testing.assert_array_equal(sequence.unpack(), W[:, :, 0])


def test_memory_layout_does_not_matter() -> None:
    want = qconv2d(X, FILTERS)
    np.testing.assert_array_equal(qconv2d(np.asfortranarray(X), FILTERS), want)
    np.testing.assert_array_equal(
        qconv2d(np.ascontiguousarray(X.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1), FILTERS), want
    )
    np.testing.assert_array_equal(qconv2d(X, PackedConv(np.asfortranarray(W), pads=(1, 0, 1, 1))), want)


def test_scales_give_reals() -> None:
    sums = qconv2d(X, FILTERS, x_zero_point=3).astype(np.float32)
    w_scale, bias = RNG.random(9, np.float32), RNG.standard_normal(9).astype(np.float32)
    got = qconv2d(X, FILTERS, x_zero_point=3, x_scale=0.3, w_scale=w_scale, bias=bias)
    np.testing.assert_array_equal(got, sums * (np.float32(0.3) * w_scale) + bias)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_requantizer_gives_8_bits(dtype: Any) -> None:
    sums = qconv2d(X, FILTERS, x_zero_point=3)
    bias = RNG.integers(-5000, 5000, 9)
    requantizer = Requantizer(0.5, 0.25, 300.0, y_zero_point=20, dtype=dtype, bias=bias, clamp=(20, 100))
    out = np.empty(sums.shape, dtype)
    assert qconv2d(X, FILTERS, x_zero_point=3, requantizer=requantizer, out=out) is out
    scale = np.float32(0.125) / np.float32(300)
    np.testing.assert_array_equal(out, np.clip(np.rint((sums + bias).astype(np.float32) * scale) + 20, 20, 100))


def test_filters_describe_and_unpack_and_pickle_themselves() -> None:
    filters = PackedConv(W, zero_point=np.arange(9), strides=(2, 1), groups=1)
    copy = pickle.loads(pickle.dumps(filters))
    for it in (filters, copy):
        assert (it.shape, it.dtype) == (W.shape, W.dtype)
        np.testing.assert_array_equal(it.unpack(), W)
        np.testing.assert_array_equal(it.zero_point, np.arange(9))
        np.testing.assert_array_equal(qconv2d(X, it), qconv2d(X, filters))
    assert repr(filters) == f"PackedConv(int8 [9, 20, 3, 2] for {filters.kernel})"


def test_many_threads_share_filters() -> None:
    want = qconv2d(X, FILTERS)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: qconv2d(X, FILTERS, threads=2), range(32)):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, "expected x of shape (N, H, W, C), got (7, 6, 20)"),
        ({"x": X[..., :19]}, "expected 20 channels"),
        ({"threads": -1}, "expected threads of at least 0"),
        ({"x_zero_point": 256}, "zero_point 256"),
        ({"x_zero_point": 2**31}, "expected x_zero_point within int32"),
        ({"out": np.empty((2, 7, 5, 9), np.int32)}, "expected out of shape"),
        ({"x_scale": 1.0, "w_scale": np.ones(8)}, "expected b_scale to be a scalar or of shape (9,)"),
    ],
)
def test_misfits_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": X, "filters": FILTERS, **change}
    with pytest.raises(ConfigError, match=re.escape(message)):
        qconv2d(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": W[0, 0]}, "expected w of shape"),
        ({"strides": (1,)}, "expected strides of length 2"),
        ({"strides": (0, 1)}, "strides is [0, 1]"),
        ({"pads": (0, -1, 0, 0)}, "got -1"),
        ({"groups": 2}, "expected a divisor of the 9 filters"),
        ({"zero_point": 200}, "zero_point 200"),
    ],
)
def test_filters_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        PackedConv(**{"w": W, **change})


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="int8 or uint8"):
        qconv2d(X.astype(np.int32), FILTERS)
    with pytest.raises(TypeError, match="int8 or uint8"):
        PackedConv(W.astype(np.float32))
    with pytest.raises(TypeError, match="integer"):
        qconv2d(X, FILTERS, x_zero_point=1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="requantizer"):
        qconv2d(X, FILTERS, x_scale=1.0, w_scale=1.0, requantizer=Requantizer(1, 1, 1))


def params(dtype: QuantType, scale: Any = 0.5, zero_point: int = 3) -> QuantParams:
    return QuantParams(np.asarray(scale, np.float32), np.asarray(zero_point, dtype.numpy), QuantScheme(dtype))


@pytest.mark.parametrize("x_type", [QuantType.UINT8, QuantType.INT8])
@pytest.mark.parametrize("y_type", [QuantType.UINT8, QuantType.INT8])
def test_a_table_is_its_function(x_type: QuantType, y_type: QuantType) -> None:
    x, y = params(x_type, 0.1, 60), params(y_type, 1 / 64, 20)
    sigmoid = LookupTable(lambda v: 1 / (1 + np.exp(-v)), x, y)
    q = RNG.integers(0, 256, (3, 100), np.uint8).view(x_type.numpy)
    reals = ((q.astype(np.int32) - 60) * np.float32(0.1)).astype(np.float32)
    limits = np.iinfo(y_type.numpy)
    want = np.clip(np.rint((1 / (1 + np.exp(-reals))) / np.float32(1 / 64)) + 20, limits.min, limits.max)
    got = sigmoid(q)
    assert got.dtype == y_type.numpy
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(sigmoid(q[:, ::3]), want[:, ::3])


def test_layers_refuse_what_does_not_fit() -> None:
    u8 = params(QuantType.UINT8)
    x = QuantizedTensor(X, u8)
    each = QuantParams(
        np.ones(20, np.float32), np.zeros(20, np.uint8), QuantScheme(QuantType.UINT8, granularity=PerChannel(3))
    )
    with pytest.raises(ConfigError, match="one shape and dtype"):
        qadd(x, QuantizedTensor(X[0], u8), u8)
    with pytest.raises(ConfigError, match="one shape and dtype"):
        qadd(x, x, params(QuantType.INT8))
    with pytest.raises(ConfigError, match="per tensor"):
        qadd(x, x, each)
    with pytest.raises(ConfigError, match="per tensor"):
        LookupTable(np.abs, each, u8)
    with pytest.raises(ConfigError, match="8 bits"):
        LookupTable(np.abs, u8, params(QuantType.INT16))
    with pytest.raises(ConfigError, match="keeps the shape"):
        LookupTable(np.sum, u8, u8)
    with pytest.raises(ConfigError, match="expected x of dtype uint8"):
        LookupTable(np.abs, u8, u8)(X.view(np.int8))
    with pytest.raises(ConfigError, match=re.escape("shape (N, H, W, C)")):
        qmax_pool(X[0], (2, 2))
    with pytest.raises(ConfigError, match="kernel of at least 1"):
        qmax_pool(X, (0, 2))
    with pytest.raises(ConfigError, match="expected less than the 2"):
        qmax_pool(X, (2, 2), pads=(2, 0, 0, 0))
    with pytest.raises(ConfigError, match="int8"):
        qaverage_pool(x, params(QuantType.INT8), (2, 2))
    with pytest.raises(ConfigError, match="int8"):
        qglobal_average_pool(x, params(QuantType.INT8))


def test_a_sum_can_be_clamped_and_written_in_place() -> None:
    u8 = params(QuantType.UINT8, 1.0, 100)
    x = QuantizedTensor(X, u8)
    out = np.empty_like(X)
    result = qadd(x, x, u8, clamp=(100, 200), out=out)
    assert result.data is out
    np.testing.assert_array_equal(out, np.clip(2 * X.astype(np.int32) - 100, 100, 200))

"""Affine quantization: formulas, parameters, granularities, what is refused."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from requant import ops
from requant.arrays import packing
from requant.arrays.affine import (
    compute_params,
    dequantize_array,
    dequantize_packed,
    fake_quantize_array,
    fake_quantize_with_mask,
    params_from_data,
    quantize_array,
    quantize_packed,
)
from requant.arrays.slices import scale_shape
from requant.errors import CalibrationError, ConfigError, DataError
from requant.observers import observe_many
from requant.types import (
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QuantizedTensor,
    QuantParams,
    QuantScheme,
    QuantType,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from requant.types import Granularity

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((4, 6, 5)) * 3).astype(np.float32)
UINT8 = QuantScheme(QuantType.UINT8)


def scalar(scale: float, zero_point: int = 0, scheme: QuantScheme = UINT8) -> QuantParams:
    return QuantParams(np.array(scale, np.float32), np.array(zero_point, scheme.dtype.numpy), scheme)


@pytest.mark.parametrize("dtype", QuantType)
@pytest.mark.parametrize(("symmetric", "narrow"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(-2), PerBlock(1, 4), PerBlock(-1, 2), PerToken()])
def test_a_round_trip_moves_values_by_half_a_step(
    dtype: QuantType, symmetric: bool, narrow: bool, granularity: Granularity
) -> None:
    params = params_from_data(X, QuantScheme(dtype, symmetric, granularity, narrow))
    assert params.scale.shape == params.zero_point.shape == scale_shape(X.shape, granularity)
    assert params.zero_point.dtype == dtype.numpy
    q = quantize_array(X, params)
    assert q.data.dtype == dtype.numpy
    assert q.data.min() >= dtype.min + narrow
    assert q.data.max() <= dtype.max
    np.testing.assert_array_equal(q.dequantize(), fake_quantize_array(X, params))
    scale = params.scale
    match granularity:
        case PerChannel():
            scale = scale[:, None]
        case PerToken():
            scale = scale[..., None]
        case PerBlock(axis, size):
            scale = np.repeat(scale, size, axis).take(range(X.shape[axis]), axis)
    # Half a step, and the 24-bit roundings of scale, quotient and product where the quotient has 16 bits.
    assert (np.abs(q.dequantize() - X) <= scale * np.float32(0.512)).all()


def test_shapes_without_elements_or_axes() -> None:
    assert quantize_array(1.0, scalar(0.5)).data == 2
    assert quantize_array(1.0, scalar(0.5)).data.shape == ()
    shapes: list[tuple[Granularity, tuple[int, ...]]] = [
        (PerTensor(), ()),
        (PerChannel(0), (3,)),
        (PerBlock(1, 2), (3, 0)),
        (PerToken(), (3,)),
    ]
    for granularity, shape in shapes:
        params = params_from_data(np.zeros((3, 0)), QuantScheme(granularity=granularity))
        assert params.scale.shape == shape
        assert (params.scale == 1).all()
        assert quantize_array(np.zeros((3, 0)), params).dequantize().shape == (3, 0)


@pytest.mark.parametrize("value", [0.0, 7.5, -7.5, 1e-45, -1e-39, 1e38, 3.4028235e38, -3.4028235e38])
@pytest.mark.parametrize("dtype", QuantType)
@pytest.mark.parametrize("symmetric", [False, True])
def test_degenerate_tensors_have_normal_scales(value: float, dtype: QuantType, symmetric: bool) -> None:
    for x in (np.full((), value, np.float32), np.full(7, value, np.float32)):
        params = params_from_data(x, QuantScheme(dtype, symmetric))
        assert np.finfo(np.float32).tiny <= params.scale < np.inf
        assert np.isfinite(fake_quantize_array(x, params)).all()


def test_special_values() -> None:
    params = scalar(0.5, 3, QuantScheme(QuantType.INT8))
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -3e9, 0.25, 0.75, -0.25, -0.75], np.float32)
    np.testing.assert_array_equal(quantize_array(x, params).data, [3, 127, -128, 127, -128, 3, 5, 3, 1])


def test_known_parameters() -> None:
    def params(lo: float, hi: float, *args: Any, **kwargs: Any) -> tuple[np.floating[Any], int]:
        found = compute_params(lo, hi, QuantScheme(*args, **kwargs))
        return np.float32(found.scale), int(found.zero_point)

    assert params(-3, 2, QuantType.UINT8) == (np.float32(5) / np.float32(255), 153)
    assert params(-1, 2, symmetric=True, narrow=True) == (np.float32(2) / np.float32(127), 0)
    assert params(-1, 2, symmetric=True) == (np.float32(4) / np.float32(255), 0)
    assert params(0, 2, symmetric=True) == (np.float32(2) / np.float32(255), -128)
    assert params(0, 2, symmetric=True, narrow=True) == (np.float32(2) / np.float32(127), 0)
    assert params(5, 6, QuantType.UINT8) == (np.float32(6) / np.float32(255), 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: quantize_array(X, scalar(0.0)), ConfigError, "scale 0.0 at index 0 is not finite and positive"),
        (lambda: quantize_array(X, scalar(np.nan)), ConfigError, "scale NaN at index 0"),
        (
            lambda: quantize_array(X, scalar(1.0, 0, QuantScheme(granularity=PerChannel(3)))),
            ConfigError,
            r"axis 3 is out of bounds for shape \(4, 6, 5\)",
        ),
        (
            lambda: quantize_array(X, scalar(1.0, 0, QuantScheme(granularity=PerChannel(-3)))),
            ConfigError,
            r"expected scale of shape \(4,\) for data of shape \(4, 6, 5\), got \(\)",
        ),
        (
            lambda: params_from_data(X, QuantScheme(granularity=PerBlock(0, 0))),
            ConfigError,
            "expected a block_size of at least 1, got 0",
        ),
        (
            lambda: params_from_data(1.0, QuantScheme(granularity=PerToken())),
            ConfigError,
            r"axis -1 .* shape \(\)",
        ),
        (
            lambda: quantize_array(X, scalar(1.0, 9, QuantScheme(QuantType.INT4))),
            ConfigError,
            r"zero_point 9 at index 0 is outside -8\.\.=7",
        ),
        (lambda: compute_params(1, -1, UINT8), CalibrationError, r"range \[1, -1\] is not a finite interval"),
        (lambda: compute_params(0, np.inf, UINT8), CalibrationError, r"range \[0, inf\]"),
        (lambda: compute_params([0, 1], 2, UINT8), ConfigError, r"lo has shape \(2,\), hi has shape \(\)"),
        (
            lambda: dequantize_array(QuantizedTensor(np.zeros(3, np.int8), scalar(1.0))),
            TypeError,
            "expected an array of uint8, got dtype int8",
        ),
        (lambda: observe_many([], [X]), ConfigError, "expected an array for each of 0 statistics, got 1"),
        (lambda: observe_many([], [], threads=-1), ConfigError, "threads of at least 0, got -1"),
    ],
)
def test_errors_say_what_was_got(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerBlock(2, 2), PerToken()])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(granularity: Granularity, bad: float) -> None:
    x = X.copy()
    x[3, 0, 4] = bad
    with pytest.raises(DataError, match=rf"value {bad} at index \(3, 0, 4\) is not finite"):
        params_from_data(x, QuantScheme(granularity=granularity))


FLOATS = ["float16", "bfloat16"]


def real(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        name = pytest.importorskip("ml_dtypes").bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


@pytest.mark.parametrize("name", FLOATS)
def test_halves_are_written_as_numpy_rounds_them(name: str) -> None:
    dtype, q = real(name), np.arange(-32768, 32768).astype(np.int16)
    params = scalar(0.7, -5, QuantScheme(QuantType.INT16))
    tensor = QuantizedTensor(q, params)
    y = dequantize_array(tensor, dtype=dtype)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.view(np.uint16), tensor.dequantize().astype(dtype).view(np.uint16))
    fake = fake_quantize_array(y, params, dtype=dtype)
    expected = fake_quantize_array(y.astype(np.float32), params).astype(dtype)
    np.testing.assert_array_equal(fake.view(np.uint16), expected.view(np.uint16))


def test_out_is_written_and_returned() -> None:
    params = params_from_data(X, QuantScheme(QuantType.UINT4, granularity=PerToken()))
    q, reals = np.empty(X.shape, np.uint8), np.full(X.shape, np.nan, np.float32)
    bytes_ = np.empty(X.size // 2, np.uint8)
    tensor = quantize_array(X, params, out=q)
    assert tensor.data is q
    np.testing.assert_array_equal(q, quantize_array(X, params).data)
    assert quantize_packed(X, params, out=bytes_) is bytes_
    np.testing.assert_array_equal(bytes_, packing.pack_int4(q))
    writes: list[Callable[[], NDArray[Any]]] = [
        lambda: dequantize_array(tensor, out=reals),
        lambda: fake_quantize_array(X, params, out=reals),
        lambda: fake_quantize_with_mask(X, params, out=reals)[0],
        lambda: dequantize_packed(bytes_, X.shape, params, out=reals),
    ]
    for write in writes:
        reals.fill(np.nan)
        assert write() is reals
        np.testing.assert_array_equal(reals, tensor.dequantize())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty((4, 6), np.uint8), r"expected out of shape \(4, 6, 5\) and dtype uint8, got \(4, 6\) and uint8"),
        (np.empty(X.shape, np.int8), r"and dtype uint8, got \(4, 6, 5\) and int8"),
        (np.empty(X.shape, np.uint8, order="F"), "C-contiguous, aligned and writable"),
        (np.frombuffer(bytes(X.size), np.uint8).reshape(X.shape), "C-contiguous, aligned and writable"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out: NDArray[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize_array(X, scalar(0.1), out=out)


def test_an_out_that_is_the_input_is_refused() -> None:
    x = X.copy()
    with pytest.raises(ConfigError, match="memory that both use"):
        fake_quantize_array(x, scalar(0.1), out=x)
    np.testing.assert_array_equal(x, X)


def test_the_mask_is_where_nothing_was_clamped() -> None:
    x = np.array([-0.26, -0.25, 0.0, 127.25, 127.5, np.nan, np.inf, -np.inf, 3e9], np.float32)
    fake, mask = fake_quantize_with_mask(x, scalar(0.5))
    # -0.25 is half a step below 0 and goes there, 127.5 to 255; 127.75 would go to 256.
    np.testing.assert_array_equal(mask, [False, True, True, True, True, False, False, False, False])
    np.testing.assert_array_equal(fake, fake_quantize_array(x, scalar(0.5)))


@pytest.mark.parametrize("rounding", ops.ROUNDINGS)
def test_formulas_by_name(rounding: Any) -> None:
    scale, z = np.float32(0.07), 5
    x = ((np.arange(-100, 100) + np.float32(0.5)) * scale).astype(np.float32)
    inverse = np.float32(1) / scale
    # The product of two float32 is exact in float64, and so is its sum with an integer of this size.
    level = {
        "onnx": np.rint(x / scale) + z,
        "torch_quantize_per_tensor": np.rint((x.astype(np.float64) * inverse + z).astype(np.float32)),
        "torch_quantize_per_channel": np.rint(x * inverse + np.float32(z)),
        "torch_fake_quantize": np.rint(x * inverse) + z,
    }[rounding]
    params = scalar(0.07, z, QuantScheme(QuantType.INT8))
    np.testing.assert_array_equal(quantize_array(x, params, rounding=rounding).data, np.clip(level, -128, 127))


def test_an_unknown_formula_or_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match='unknown rounding "tflite"; choose one of onnx, torch_quantize_per_tensor'):
        quantize_array(X, scalar(0.1), rounding="tflite")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="threads of at least 0, got -1"):
        quantize_array(X, scalar(0.1), threads=-1)
    with pytest.raises(TypeError, match="expected float32, float16 or bfloat16, got dtype float64"):
        fake_quantize_array(X, scalar(0.1), dtype=np.float64)


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(threads: int | None) -> None:
    x = RNG.standard_normal((1200, 1000)).astype(np.float32)
    params = params_from_data(x, QuantScheme(granularity=PerBlock(1, 48)))
    q, expected = quantize_array(x, params, threads=threads), quantize_array(x, params, threads=1)
    np.testing.assert_array_equal(q.data, expected.data)
    np.testing.assert_array_equal(dequantize_array(q, threads=threads), expected.dequantize())


def test_threads_give_the_serial_result() -> None:
    x = RNG.standard_normal(200_000).astype(np.float32)
    params = params_from_data(x, UINT8)
    expected = quantize_array(x, params).data
    results: list[NDArray[Any]] = []
    threads = [threading.Thread(target=lambda: results.append(quantize_array(x, params).data)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 16
    assert all(np.array_equal(result, expected) for result in results)

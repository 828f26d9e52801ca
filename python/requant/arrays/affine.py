"""Affine quantization of arrays, and its parameters, as ONNX defines them.

Arrays of any memory layout are taken: strided, reversed, Fortran-ordered, read-only, misaligned or byte-swapped ones
give the same bits as a native copy, and so do other libraries' arrays in host memory that speak DLPack. Float16 and
bfloat16 stand for the float32 that they widen to; float64, integers and bools are rounded to it (exact up to 2**24 in
magnitude). Other dtypes raise ``TypeError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.arrays.intake import (
    as_array,
    as_float32,
    as_reals,
    in_order,
    output,
    packed_bytes,
    real_dtype,
    thread_count,
)
from requant.arrays.slices import laid_over
from requant.errors import ConfigError, DataError
from requant.types import QuantizedTensor, QuantParams, QuantScheme, QuantType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from requant.types import Rounding

_FLOAT32 = np.dtype(np.float32)


def quantize_array(
    x: ArrayLike,
    params: QuantParams,
    *,
    rounding: Rounding = "onnx",
    threads: int | None = None,
    out: NDArray[Any] | None = None,
) -> QuantizedTensor:
    """The integers of ``x``, as ONNX QuantizeLinear: ``clamp(round_half_even(x / scale) + zero_point)``.

    Runs without the GIL. All instruction sets and any number of threads give the same bits.

    Args:
        x: Reals of any shape. NaN becomes the zero point; infinities saturate.
        params: Parameters whose shapes fit ``x``; see :func:`scale_shape`.
        rounding: The formula: ONNX's, or one of :data:`requant.types.Rounding`.
        threads: Threads to use; ``None`` for as many as the size is worth, up to all cores.
        out: Where to write: C-contiguous, of the shape of ``x`` and the dtype of the integers. Spares a large result
            the time that the system takes to hand out new memory.

    Returns:
        Integers in the shape of ``x``, in ``params.scheme.dtype.numpy``, together with ``params``; its data is ``out``
        where that is given.

    Raises:
        ConfigError: An axis, block size, shape or value of ``params``, or an ``out``, that does not fit; an unknown
            ``rounding``.
        TypeError: ``x`` does not hold real numbers.
    """
    array = as_reals(x)
    q = output(out, array.shape, params.scheme.dtype.numpy, array)
    shape, spec = _spec(array.shape, params, rounding, threads)
    ops.quantize_into(_rows(array, shape), spec, _rows(q, shape), False)
    return QuantizedTensor(q, params)


def dequantize_array(
    tensor: QuantizedTensor,
    *,
    dtype: DTypeLike = np.float32,
    threads: int | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The reals of a tensor, as ONNX DequantizeLinear: ``(q - zero_point) * scale`` in float32.

    Args:
        tensor: Integers with their parameters.
        dtype: float32, or float16 or bfloat16, to which the float32 result is rounded, ties to even.
        threads: As in :func:`quantize_array`.
        out: Where to write: C-contiguous, of the shape of ``tensor.data`` and of ``dtype``.

    Raises:
        ConfigError: Parameters, or an ``out``, that do not fit the data.
        TypeError: ``tensor.data`` is not of the dtype that its scheme says, or ``dtype`` is another one.
    """
    integers = tensor.params.scheme.dtype.numpy
    data = as_array(tensor.data)
    if data.dtype != integers and data.dtype.newbyteorder("=") != integers:
        raise TypeError(f"expected an array of {integers}, got dtype {data.dtype}")
    array = in_order(data, integers)
    y = output(out, array.shape, real_dtype(dtype), array)
    shape, spec = _spec(array.shape, tensor.params, "onnx", threads)
    ops.dequantize_into(_rows(array, shape), spec, _rows(y, shape), False)
    return y


def rounding_error(x: ArrayLike, tensor: QuantizedTensor) -> tuple[float, float, float, float]:
    """How well a tensor stands for the finite reals ``x`` that it was made of.

    Returns:
        The smallest and largest value of ``x``, the sum of its squares, and that of the squares of its distances, in
        float32, from the reals of ``tensor``.

    Raises:
        ConfigError: Parameters, or data, that do not fit ``x``.
        TypeError: ``x`` does not hold real numbers.
    """
    array, data = as_reals(x), in_order(as_array(tensor.data), tensor.params.scheme.dtype.numpy)
    shape, spec = _spec(array.shape, tensor.params, "onnx", None)
    return ops.rounding_error(_rows(array, shape), _rows(data, shape), spec)


def fake_quantize_array(
    x: ArrayLike,
    params: QuantParams,
    *,
    rounding: Rounding = "onnx",
    dtype: DTypeLike = np.float32,
    threads: int | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """What ``x`` becomes when it is quantized and dequantized.

    Arguments and errors are those of :func:`quantize_array` and :func:`dequantize_array`.
    """
    return _fake_quantize(as_reals(x), params, rounding, dtype, threads=threads, out=out, mask=None)


def fake_quantize_with_mask(
    x: ArrayLike,
    params: QuantParams,
    *,
    rounding: Rounding = "onnx",
    dtype: DTypeLike = np.float32,
    threads: int | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """:func:`fake_quantize_array`, and where a straight-through estimator passes the gradient on.

    Returns:
        The reals, and bools in their shape: whether the rounded value lay within the integers before it was clamped.
        False for NaN.
    """
    array = as_reals(x)
    mask = np.empty(array.shape, np.bool_)
    return _fake_quantize(array, params, rounding, dtype, threads=threads, out=out, mask=mask), mask


def quantize_packed(
    x: ArrayLike,
    params: QuantParams,
    *,
    rounding: Rounding = "onnx",
    threads: int | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The integers of ``x``, of 2 or 4 bits, packed as ONNX stores them, in one pass.

    Args:
        x: Reals of any shape; flattened in C order.
        params: Parameters whose shapes fit ``x``, of a type of 2 or 4 bits.
        rounding: As in :func:`quantize_array`.
        threads: As in :func:`quantize_array`.
        out: Where to write: C-contiguous uint8 of the result's shape.

    Returns:
        uint8, ``[ceil(x.size * bits / 8)]``, low bits first, the last byte padded with zero bits.

    Raises:
        ConfigError: As :func:`quantize_array`, or a wider type.
        TypeError: ``x`` does not hold real numbers.
    """
    array, dtype = as_reals(x), _packed_dtype(params.scheme.dtype)
    packed = output(out, (-(-array.size * dtype.bits // 8),), np.uint8, array)
    shape, spec = _spec(array.shape, params, rounding, threads)
    ops.quantize_into(_rows(array, shape), spec, packed, True)
    return packed


def dequantize_packed(
    data: NDArray[np.uint8],
    shape: Sequence[int],
    params: QuantParams,
    *,
    dtype: DTypeLike = np.float32,
    threads: int | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The reals, of ``shape``, of packed integers of 2 or 4 bits: unpacking and :func:`dequantize_array` in one pass.

    Raises:
        ConfigError: ``data`` has not the bytes that ``shape`` takes, or parameters or an ``out`` that do not fit.
        TypeError: ``data`` is not uint8, or ``dtype`` is not a float of 16 or 32 bits.
    """
    packed = packed_bytes(data)
    _packed_dtype(params.scheme.dtype)
    y = output(out, tuple(shape), real_dtype(dtype), packed)
    flat_shape, spec = _spec(tuple(shape), params, "onnx", threads)
    ops.dequantize_into(packed, spec, _rows(y, flat_shape), True)
    return y


def compute_params(lo: ArrayLike, hi: ArrayLike, scheme: QuantScheme) -> QuantParams:
    """The parameters that spread the integers of ``scheme`` over the ranges ``[lo, hi]``, elementwise.

    Each range is widened to contain 0. Asymmetric: ``scale = (hi - lo) / (qmax - qmin)`` and
    ``zero_point = round_half_even(qmin - lo / scale)``. Symmetric: ``[-a, a]`` with the zero point at the centre, or
    ``[0, a]`` with the zero point at ``qmin`` where nothing is negative; narrow schemes are always centred. Scales are
    finite and normal; the range ``[0, 0]`` has scale 1.

    Args:
        lo: Lower ends, in the shape of the scale.
        hi: Upper ends, in the same shape.
        scheme: Integer type, symmetry and granularity.

    Raises:
        CalibrationError: An end that is NaN or infinite, or ``lo > hi``.
        ConfigError: ``lo`` and ``hi`` differ in shape.
    """
    low, high = as_float32(lo), as_float32(hi)
    if low.shape != high.shape:
        raise ConfigError(f"lo has shape {low.shape}, hi has shape {high.shape}", hint="give one range to each scale")
    dtype = scheme.dtype
    scale, zero_point = ops.affine_params(low, high, dtype.value, scheme.symmetric, scheme.narrow)
    return QuantParams(scale, zero_point.astype(dtype.numpy), scheme)


def params_from_data(x: ArrayLike, scheme: QuantScheme) -> QuantParams:
    """Parameters for the smallest and largest value of each slice of ``x`` (the whole, a channel, a block, a row).

    With asymmetric uint8 per tensor this is ONNX DynamicQuantizeLinear, to the bit.

    Raises:
        ConfigError: An axis or block size that does not fit ``x``.
        DataError: A NaN or infinity; its index is told.
        TypeError: ``x`` does not hold real numbers.
    """
    array = as_float32(x)
    flat_shape, axis, block_size, shape = laid_over(array.shape, scheme.granularity)
    try:
        lo, hi = ops.slice_ranges(_rows(array, flat_shape), axis, block_size)
    except DataError:
        # The core speaks of the array it was given, whose rows may be flattened.
        index = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
        hint = "remove or replace NaN and infinite values"
        raise DataError(f"value {array[index]} at index {index} is not finite", hint=hint) from None
    return compute_params(lo.reshape(shape), hi.reshape(shape), scheme)


def _spec(shape: tuple[int, ...], params: QuantParams, rounding: str, threads: int | None) -> tuple[Any, Any]:
    """The shape that the core sees, and its other arguments, once the shapes of ``params`` are seen to fit."""
    scheme = params.scheme
    count = thread_count(threads)
    flat_shape, axis, block_size, expected = laid_over(shape, scheme.granularity)
    options = (scheme.dtype, axis, block_size, scheme.narrow, rounding, count)
    # Numbers cost less than arrays to hand over, and arrays less than copies, which shows where there is little data.
    scale, zero_point = params.scale, params.zero_point
    if axis is None and _is_one(scale, _FLOAT32) and _is_one(zero_point):
        return flat_shape, (float(scale), int(zero_point), *options)
    scale, zero_point = as_float32(scale), np.asarray(zero_point)
    for name, value in (("scale", scale), ("zero_point", zero_point)):
        if value.shape != expected:
            message = f"expected {name} of shape {expected} for data of shape {shape}, got {value.shape}"
            raise ConfigError(message, hint=f"the granularity is {scheme.granularity}")
    if not expected:
        return flat_shape, (scale.item(), int(zero_point), *options)
    if not (zero_point.dtype == scheme.dtype.numpy and zero_point.flags.carray):
        zero_point = np.require(zero_point, np.int32, ["C_CONTIGUOUS", "ALIGNED"])
    return flat_shape, (scale, zero_point, *options)


def _is_one(value: Any, dtype: np.dtype[Any] | None = None) -> bool:
    """Whether ``value`` is a numpy scalar or an array of no axes, of integers or of ``dtype``."""
    if not isinstance(value, (np.ndarray, np.generic)):
        return dtype is None and type(value) is int
    return value.ndim == 0 and (value.dtype.kind in "iu" if dtype is None else value.dtype == dtype)


def _rows(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return array if array.shape == shape else array.reshape(shape)


def _fake_quantize(
    array: NDArray[Any],
    params: QuantParams,
    rounding: str,
    dtype: DTypeLike,
    *,
    threads: int | None,
    out: NDArray[Any] | None,
    mask: NDArray[np.bool_] | None,
) -> NDArray[Any]:
    y = output(out, array.shape, real_dtype(dtype), array)
    shape, spec = _spec(array.shape, params, rounding, threads)
    rows = None if mask is None else _rows(mask, shape)
    ops.fake_quantize_into(_rows(array, shape), spec, _rows(y, shape), rows)
    return y


def _packed_dtype(dtype: QuantType) -> QuantType:
    if dtype.bits > 4:
        raise ConfigError(f"expected a type of 2 or 4 bits, got {dtype.value}", hint="wider types are not packed")
    return dtype

"""Quantization of numpy arrays; the only module that calls the compiled core.

Arrays of any memory layout are taken: strided, reversed, Fortran-ordered, read-only, misaligned or byte-swapped ones
give the same bits as a native copy. Float16, bfloat16 and float64 are rounded to float32 first, integers and bools too
(exact up to 2**24 in magnitude). Other dtypes raise ``TypeError``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import _requant
from requant._requant import (
    CALIBRATION_METHODS,
    BlockedMatrix,
    PackedMatrix,
    Requantizer as CoreRequantizer,
    TensorStatistics,
    cpu_info,
    matmul as matmul_into,
    matmul_blocked as matmul_blocked_into,
)
from requant.errors import ConfigError, DataError
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
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from requant.types import Granularity

__all__ = [
    "CALIBRATION_METHODS",
    "BlockedMatrix",
    "CoreRequantizer",
    "PackedMatrix",
    "TensorStatistics",
    "as_float32",
    "compute_params",
    "cpu_info",
    "dequantize_array",
    "fake_quantize_array",
    "matmul_blocked_into",
    "matmul_into",
    "observe_many",
    "pack_int4",
    "params_from_data",
    "quantize_array",
    "scale_shape",
    "unpack_int4",
]


cpu_info()  # refuses a REQUANT_ISA that names no kernel set of this machine


def as_float32(x: ArrayLike) -> NDArray[np.float32]:
    """``x`` as the core takes it: float32, C-contiguous, aligned, native byte order; copied only where it is not.

    Raises:
        TypeError: ``x`` does not hold real numbers.
    """
    array = np.asarray(x)
    # bfloat16 and other extension floats are of kind V, and differ from structs by having no fields.
    real = array.dtype.kind in "fiub" or (array.dtype.kind == "V" and array.dtype.name == "bfloat16")
    if not real:
        raise TypeError(f"expected an array of real numbers, got dtype {array.dtype}")
    # An overflow of float64 to infinity is for the caller's finiteness check to report, not for a warning.
    with np.errstate(over="ignore"):
        return np.require(array, np.float32, ["C_CONTIGUOUS", "ALIGNED"])


def quantize_array(x: ArrayLike, params: QuantParams) -> QuantizedTensor:
    """The integers of ``x``, as ONNX QuantizeLinear: ``clamp(round_half_even(x / scale) + zero_point)``.

    Args:
        x: Reals of any shape. NaN becomes the zero point; infinities saturate.
        params: Parameters whose shapes fit ``x``; see :func:`scale_shape`.

    Returns:
        Integers in the shape of ``x``, in ``params.scheme.dtype.numpy``, together with ``params``.

    Raises:
        ConfigError: An axis, block size, shape or value of ``params`` that does not fit.
        TypeError: ``x`` does not hold real numbers.
    """
    array, scheme = as_float32(x), params.scheme
    rows, axis, block_size, scale, zero_point = _layout(array, params)
    q = _requant.quantize(rows, scale, zero_point, scheme.dtype.value, axis, block_size, scheme.narrow)
    return QuantizedTensor(q.reshape(array.shape), params)


def dequantize_array(tensor: QuantizedTensor) -> NDArray[np.float32]:
    """The reals of a tensor, as ONNX DequantizeLinear: ``(q - zero_point) * scale`` in float32.

    Raises:
        ConfigError: Parameters that do not fit the data.
        TypeError: ``tensor.data`` is not of the dtype that its scheme says.
    """
    dtype = tensor.params.scheme.dtype.numpy
    if tensor.data.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"expected an array of {dtype}, got dtype {tensor.data.dtype}")
    array = np.require(tensor.data, dtype, ["C_CONTIGUOUS", "ALIGNED"])
    rows, axis, block_size, scale, zero_point = _layout(array, tensor.params)
    return _requant.dequantize(rows, scale, zero_point, axis, block_size).reshape(array.shape)


def fake_quantize_array(x: ArrayLike, params: QuantParams) -> NDArray[np.float32]:
    """What ``x`` becomes when it is quantized and dequantized; arguments and errors of :func:`quantize_array`."""
    array, scheme = as_float32(x), params.scheme
    rows, axis, block_size, scale, zero_point = _layout(array, params)
    y = _requant.fake_quantize(rows, scale, zero_point, scheme.dtype.value, axis, block_size, scheme.narrow)
    return y.reshape(array.shape)


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
    scale, zero_point = _requant.affine_params(low, high, dtype.value, scheme.symmetric, scheme.narrow)
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
    shape = scale_shape(array.shape, scheme.granularity)
    rows, axis, block_size = _slices(array, scheme.granularity)
    try:
        lo, hi = _requant.slice_ranges(rows, axis, block_size)
    except DataError:
        # The core speaks of the array it was given, whose rows may be flattened.
        index = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
        hint = "remove or replace NaN and infinite values"
        raise DataError(f"value {array[index]} at index {index} is not finite", hint=hint) from None
    return compute_params(lo.reshape(shape), hi.reshape(shape), scheme)


def scale_shape(shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """Shape of scale and zero point for data of ``shape``: ``(64, 32)`` in blocks of 16 along axis 1 has ``(64, 2)``.

    Raises:
        ConfigError: An axis outside ``shape``, or a block size below 1.
    """
    shape = tuple(shape)
    match granularity:
        case PerTensor():
            return ()
        case PerToken():
            return shape[: _axis(-1, shape)]
        case PerChannel(axis):
            return (shape[_axis(axis, shape)],)
        case PerBlock(axis, block_size):
            if block_size < 1:
                raise ConfigError(f"expected a block_size of at least 1, got {block_size}")
            axis = _axis(axis, shape)
            return (*shape[:axis], -(-shape[axis] // block_size), *shape[axis + 1 :])


def pack_int4(q: NDArray[Any]) -> NDArray[np.uint8]:
    """Two 4-bit integers to a byte, low bits first, as ONNX stores int4 and uint4.

    Args:
        q: int8 in -8..7 or uint8 in 0..15, of any shape; flattened in C order, an odd end padded with zero bits.

    Raises:
        ConfigError: An integer that does not fit 4 bits.
        TypeError: ``q`` is neither int8 nor uint8.
    """
    if q.dtype not in (np.int8, np.uint8):
        raise TypeError(f"expected an array of int8 or uint8, got dtype {q.dtype}")
    return _requant.pack_int4(np.require(q, requirements=["C_CONTIGUOUS", "ALIGNED"]))


def unpack_int4(data: NDArray[np.uint8], shape: Sequence[int], dtype: QuantType) -> NDArray[Any]:
    """The inverse of :func:`pack_int4`: integers of ``shape``, one to a byte, int8 or uint8 as ``dtype`` says.

    Raises:
        ConfigError: ``data`` has not the bytes that ``shape`` takes, or ``dtype`` is not 4 bits wide.
        TypeError: ``data`` is not uint8.
    """
    if data.dtype != np.uint8:
        raise TypeError(f"expected an array of uint8, got dtype {data.dtype}")
    if dtype.bits != 4:
        raise ConfigError(f"expected int4 or uint4, got {dtype.value}")
    flat = np.require(data, requirements=["C_CONTIGUOUS", "ALIGNED"])
    return _requant.unpack_int4(flat, math.prod(shape), dtype.signed).reshape(shape)


def observe_many(statistics: Sequence[TensorStatistics], arrays: Sequence[ArrayLike], *, threads: int = 0) -> None:
    """Adds ``arrays[i]`` to ``statistics[i]`` for all ``i``, in one call without the GIL.

    Args:
        statistics: One for each array.
        arrays: Reals of any shape.
        threads: Threads to use; 0 means one for each core.

    Raises:
        ConfigError: The two sequences differ in length, or ``threads`` is negative.
        TypeError: An array does not hold real numbers.
    """
    if len(statistics) != len(arrays):
        raise ConfigError(f"expected an array for each of {len(statistics)} statistics, got {len(arrays)}")
    if threads < 0:
        raise ConfigError(f"expected threads of at least 0, got {threads}")
    _requant.observe_many(list(statistics), [as_float32(array) for array in arrays], threads)


def _axis(axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ConfigError(f"axis {axis} is out of bounds for shape {shape}")
    return axis % len(shape)


def _slices(array: NDArray[Any], granularity: Granularity) -> tuple[NDArray[Any], int | None, int | None]:
    """The array, axis and block size that the core takes; rows are the channels of a matrix to it."""
    match granularity:
        case PerTensor():
            return array, None, None
        case PerToken():
            return array.reshape(math.prod(scale_shape(array.shape, granularity)), array.shape[-1]), 0, None
        case PerChannel(axis):
            return array, _axis(axis, array.shape), None
        case PerBlock(axis, block_size):
            return array, _axis(axis, array.shape), block_size


def _layout(
    array: NDArray[Any], params: QuantParams
) -> tuple[NDArray[Any], int | None, int | None, NDArray[np.float32], NDArray[np.int32]]:
    """The arguments of the core for ``array``, once the shapes of ``params`` are seen to fit it."""
    expected = scale_shape(array.shape, params.scheme.granularity)
    for name, value in (("scale", params.scale), ("zero_point", params.zero_point)):
        if np.shape(value) != expected:
            message = f"expected {name} of shape {expected} for data of shape {array.shape}, got {np.shape(value)}"
            raise ConfigError(message, hint=f"the granularity is {params.scheme.granularity}")
    zero_point = np.require(params.zero_point, np.int32, ["C_CONTIGUOUS", "ALIGNED"])
    return (*_slices(array, params.scheme.granularity), as_float32(params.scale), zero_point)

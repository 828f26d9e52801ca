"""Arrays as callers have them, made into what the core takes: all that looks at layouts, dtypes and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "as_array",
    "as_bytes",
    "as_float32",
    "as_integers",
    "as_reals",
    "flat_float32",
    "in_order",
    "is_bfloat16",
    "output",
    "real_dtype",
]

_FLOAT32 = np.dtype(np.float32)
_FLOAT16 = np.dtype(np.float16)
_CPU = 1  # DLDeviceType.kDLCPU


def as_array(x: ArrayLike) -> NDArray[Any]:
    """``x`` as a numpy array, without a copy where it is one or shares its memory by DLPack.

    Raises:
        TypeError: ``x`` lies in the memory of another device, has a dtype that numpy cannot share, or masked values.
    """
    if isinstance(x, np.ndarray):
        if type(x) is not np.ndarray and np.ma.is_masked(x):
            raise TypeError(
                "expected an array without masked values; take the valid ones, x.compressed(), or fill them"
            )
        return x
    if not hasattr(x, "__dlpack__"):
        return np.asarray(x)
    foreign: Any = x
    device, _ = foreign.__dlpack_device__()
    if device != _CPU:
        raise TypeError(f"expected an array in host memory, got DLPack device type {int(device)}; copy it to the CPU")
    try:
        return np.from_dlpack(foreign)
    except (BufferError, RuntimeError) as error:
        raise TypeError(
            f"expected an array that DLPack can share with numpy, got {type(x).__name__}: {error}"
        ) from error


def as_float32(x: ArrayLike) -> NDArray[np.float32]:
    """``x`` as float32, C-contiguous, aligned, in native byte order; copied only where it is not.

    Raises:
        TypeError: ``x`` does not hold real numbers, or lies in the memory of another device.
    """
    if type(x) is np.ndarray and x.dtype == _FLOAT32 and x.flags.carray:
        return x  # the common case, in a tenth of the time
    array = as_array(x)
    if array.dtype == _FLOAT32:
        return in_order(array, _FLOAT32)
    # bfloat16 and other extension floats are of kind V, and differ from structs by having no fields.
    if array.dtype.kind not in "fiub" and not is_bfloat16(array.dtype):
        raise TypeError(f"expected an array of real numbers, got dtype {array.dtype}")
    # An overflow of float64 to infinity is for the caller's finiteness check to report, not for a warning.
    with np.errstate(over="ignore"):
        return in_order(array, _FLOAT32)


def as_reals(x: ArrayLike) -> NDArray[Any]:
    """As :func:`as_float32`, but float16 and bfloat16 stay as they are: the core widens them, exactly."""
    if type(x) is np.ndarray and x.dtype == _FLOAT32:
        return as_float32(x)
    array = as_array(x)
    if array.dtype != _FLOAT32 and (array.dtype == np.float16 or is_bfloat16(array.dtype)):
        return in_order(array, array.dtype.newbyteorder("="))
    return as_float32(array)


def flat_float32(name: str, value: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """``value`` in float32, flat: one, or as many as ``shape`` has.

    Raises:
        ConfigError: it has another shape.
        TypeError: as :func:`as_float32`.
    """
    array = as_float32(value)
    if array.ndim and array.shape != shape:
        raise ConfigError(f"expected {name} to be a scalar or of shape {shape}, got {array.shape}")
    return array.reshape(-1)


def as_bytes(name: str, value: ArrayLike) -> NDArray[Any]:
    """``value`` as :func:`as_array`.

    Raises:
        TypeError: it is neither int8 nor uint8.
    """
    array = as_array(value)
    if array.dtype not in (np.int8, np.uint8):
        raise TypeError(f"expected {name} of dtype int8 or uint8, got {array.dtype}; quantize it first")
    return array


def as_integers(name: str, value: ArrayLike, shape: tuple[int, ...] | None) -> NDArray[np.int32]:
    """``value`` in int32, a scalar or of ``shape`` (None: of rank 1).

    Raises:
        TypeError: it does not hold integers.
        ConfigError: it has another shape, or integers outside int32.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"expected integers as {name}, got dtype {array.dtype}")
    if array.ndim and (array.ndim != 1 if shape is None else array.shape != shape):
        raise ConfigError(f"expected {name} to be a scalar or of shape {shape or '(N,)'}, got {array.shape}")
    limits = np.iinfo(np.int32)
    if array.size and not (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
        raise ConfigError(f"expected {name} within int32, got {int(array.min())}..{int(array.max())}")
    return np.array(array, np.int32, order="C")


def in_order(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """``array`` as ``dtype``, C-contiguous and aligned; copied only where it is not."""
    if array.dtype == dtype and array.flags.carray:
        return array
    return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def output(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: Any, *beside: NDArray[Any]) -> NDArray[Any]:
    """``out``, or a new array where it is ``None``.

    Raises:
        ConfigError: ``out`` has another shape or dtype, is not C-contiguous, aligned and writable, or shares memory
            with an array ``beside`` it.
    """
    if out is None:
        return np.empty(shape, dtype)
    expected = np.dtype(dtype)
    if (out.shape, out.dtype) != (shape, expected):
        raise ConfigError(f"expected out of shape {shape} and dtype {expected}, got {out.shape} and {out.dtype}")
    if not out.flags.carray:
        raise ConfigError("expected out to be C-contiguous, aligned and writable")
    for array in beside:
        if np.may_share_memory(out, array):
            raise ConfigError("expected out beside the input, got memory that both use", hint="write to another array")
    return out


def thread_count(threads: int | None) -> int:
    """``threads`` as the core takes them, 0 for ``None``.

    Raises:
        ConfigError: a negative number.
    """
    if threads is not None and threads < 0:
        raise ConfigError(f"expected threads of at least 0, got {threads}")
    return threads or 0


def real_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """``dtype``, if the core writes reals of it.

    Raises:
        TypeError: It is not float32, float16 or bfloat16.
    """
    found = np.dtype(dtype)
    if found in (_FLOAT32, _FLOAT16) or is_bfloat16(found):
        return found
    raise TypeError(f"expected float32, float16 or bfloat16, got dtype {found}")


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is the bfloat16 of ml_dtypes, which numpy takes for bytes."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def packed_bytes(data: ArrayLike) -> NDArray[np.uint8]:
    """Whole bytes, in C order.

    Raises:
        TypeError: ``data`` is not uint8.
    """
    array = as_array(data)
    if array.dtype != np.uint8:
        raise TypeError(f"expected an array of uint8, got dtype {array.dtype}")
    return in_order(array, array.dtype)

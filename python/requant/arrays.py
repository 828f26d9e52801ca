"""Arrays as callers have them, made into what the core takes: all that looks at layouts, dtypes and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["as_array", "as_float32", "as_reals", "output"]

_FLOAT32 = np.dtype(np.float32)
_CPU = 1  # DLDeviceType.kDLCPU


def as_array(x: ArrayLike) -> NDArray[Any]:
    """``x`` as a numpy array, without a copy where it is one or shares its memory by DLPack.

    Raises:
        TypeError: ``x`` lies in the memory of another device, or has a dtype that numpy cannot share.
    """
    if isinstance(x, np.ndarray):
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
    array = as_array(x)
    if array.dtype == _FLOAT32 and array.flags.carray:
        return array
    # bfloat16 and other extension floats are of kind V, and differ from structs by having no fields.
    if array.dtype.kind not in "fiub" and not _is_bfloat16(array.dtype):
        raise TypeError(f"expected an array of real numbers, got dtype {array.dtype}")
    # An overflow of float64 to infinity is for the caller's finiteness check to report, not for a warning.
    with np.errstate(over="ignore"):
        return np.require(array, np.float32, ["C_CONTIGUOUS", "ALIGNED"])


def as_reals(x: ArrayLike) -> NDArray[Any]:
    """As :func:`as_float32`, but float16 and bfloat16 stay as they are: the core widens them, exactly."""
    array = as_array(x)
    if array.dtype != _FLOAT32 and (array.dtype == np.float16 or _is_bfloat16(array.dtype)):
        return np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "ALIGNED"])
    return as_float32(array)


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
    if any(np.may_share_memory(out, array) for array in beside):
        raise ConfigError("expected out beside the input, got memory that both use", hint="write to another array")
    return out


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "V" and dtype.name == "bfloat16"

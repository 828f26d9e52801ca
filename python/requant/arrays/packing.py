"""Integers of 2 and 4 bits, several to a byte, as ONNX stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.intake import as_array, in_order, packed_bytes
from requant.errors import ConfigError
from requant.ops import pack_into, unpack_into
from requant.types import QuantType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def pack_int4(q: ArrayLike) -> NDArray[np.uint8]:
    """Two 4-bit integers to a byte, low bits first, as ONNX stores int4 and uint4.

    Args:
        q: int8 in -8..7 or uint8 in 0..15, of any shape; flattened in C order, an odd end padded with zero bits.

    Raises:
        ConfigError: An integer that does not fit 4 bits.
        TypeError: ``q`` is neither int8 nor uint8.
    """
    return _pack(q, QuantType.INT4, QuantType.UINT4)


def unpack_int4(data: NDArray[np.uint8], shape: Sequence[int], dtype: QuantType) -> NDArray[Any]:
    """The inverse of :func:`pack_int4`: integers of ``shape``, one to a byte, int8 or uint8 as ``dtype`` says.

    Raises:
        ConfigError: ``data`` has not the bytes that ``shape`` takes, or ``dtype`` is not 4 bits wide.
        TypeError: ``data`` is not uint8.
    """
    return _unpack(data, shape, dtype, 4)


def pack_int2(q: ArrayLike) -> NDArray[np.uint8]:
    """Four 2-bit integers to a byte, low bits first, as ONNX stores int2 and uint2.

    Args:
        q: int8 in -2..1 or uint8 in 0..3, of any shape; flattened in C order, the last byte padded with zero bits.

    Raises:
        ConfigError: An integer that does not fit 2 bits.
        TypeError: ``q`` is neither int8 nor uint8.
    """
    return _pack(q, QuantType.INT2, QuantType.UINT2)


def unpack_int2(data: NDArray[np.uint8], shape: Sequence[int], dtype: QuantType) -> NDArray[Any]:
    """The inverse of :func:`pack_int2`, with the errors of :func:`unpack_int4`."""
    return _unpack(data, shape, dtype, 2)


def _pack(q: ArrayLike, signed: QuantType, unsigned: QuantType) -> NDArray[np.uint8]:
    array = as_array(q)
    if array.dtype not in (np.int8, np.uint8):
        raise TypeError(f"expected an array of int8 or uint8, got dtype {array.dtype}")
    dtype = signed if array.dtype == np.int8 else unsigned
    packed = np.empty(-(-array.size * dtype.bits // 8), np.uint8)
    pack_into(in_order(array, array.dtype), dtype.value, packed)
    return packed


def _unpack(data: ArrayLike, shape: Sequence[int], dtype: QuantType, bits: int) -> NDArray[Any]:
    packed = packed_bytes(data)
    if dtype.bits != bits:
        raise ConfigError(f"expected int{bits} or uint{bits}, got {dtype.value}")
    q = np.empty(tuple(shape), dtype.numpy)
    unpack_into(packed, dtype.value, q)
    return q

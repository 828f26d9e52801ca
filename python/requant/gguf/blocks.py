"""Arrays to GGUF's blocks and back.

A row, along the last axis, is cut into blocks of 32 or 256 values; a block is float16 scales and integers of 2 to 8
bits. Blocks of types without ``_k`` are, byte for byte, those of the ``gguf`` package, and reals those that it gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.intake import as_array, as_float32, in_order, thread_count
from requant.errors import ConfigError, DataError, closest
from requant.ops import GGUF_TYPES, gguf_dequantize_into, gguf_quantize_into

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class BlockType:
    """A type of blocks.

    Attributes:
        name: as it is called here, such as ``q4_k``.
        id: the number that stands for it in a file.
        block_size: how many values a block has.
        bytes: how many bytes they take.
    """

    name: str
    id: int
    block_size: int
    bytes: int

    @property
    def bits(self) -> float:
        """Bits that a value takes, scales included."""
        return 8 * self.bytes / self.block_size

    @property
    def is_float(self) -> bool:
        """Whether values are stored one by one, as floats."""
        return self.block_size == 1


#: Every type that is written and read, by its name.
BLOCK_TYPES = {row[0]: BlockType(*row) for row in GGUF_TYPES}


def block_type(name: str) -> BlockType:
    """The type of that name, in lower or upper case.

    Raises:
        ConfigError: there is none.
    """
    found = BLOCK_TYPES.get(name.lower())
    if found is None:
        raise ConfigError(
            f"unknown GGUF type {name!r}{closest(name.lower(), BLOCK_TYPES)}",
            hint=f"choose one of {', '.join(BLOCK_TYPES)}",
        )
    return found


def quantize_gguf(
    x: ArrayLike, dtype: str, *, importance: ArrayLike | None = None, threads: int = 0
) -> NDArray[np.uint8]:
    """The blocks of ``x``.

    All instruction sets and any number of threads give the same bytes.

    Args:
        x: finite reals ``[..., k]``, where ``k`` is a multiple of the type's block size.
        dtype: the type, such as ``q4_k``; see :data:`BLOCK_TYPES`.
        importance: ``[k]``, how much an error in each column matters: the mean square of what the column is multiplied
            with. Scales are then searched for the least weighted error; types that search none (floats and ``q8_0``)
            pass it over. A column of less than 1/1024 of the mean counts as having that, since what one data set
            leaves at zero another may not.
        threads: CPU threads; 0 uses all cores.

    Returns:
        uint8 ``[..., k / block_size * bytes]``.

    Raises:
        ConfigError: an unknown type, ``k`` no multiple of its block size, or an importance that does not fit.
        DataError: a NaN, an infinity, or a value out of the reach of float16 scales; its index is told.

    Example:
        >>> quantize_gguf(np.ones((2, 256), np.float32), "q4_k").shape
        (2, 144)
    """
    kind, array = block_type(dtype), as_float32(x)
    if not array.ndim:
        raise ConfigError(f"expected an array of at least one axis to cut into {kind.name} blocks, got a scalar")
    count = thread_count(threads)
    columns = array.shape[-1]
    if columns % kind.block_size:
        raise ConfigError(
            f"rows of {columns} values do not divide into the blocks of {kind.block_size} of {kind.name}",
            hint="choose a type of smaller blocks, such as q8_0 (32) or f16, or pad the rows",
        )
    weights = None if importance is None else as_float32(importance)
    if weights is not None and weights.shape != (columns,):
        raise ConfigError(f"expected importance of shape {(columns,)}, one for each column, got {weights.shape}")
    out = np.empty((*array.shape[:-1], columns // kind.block_size * kind.bytes), np.uint8)
    try:
        gguf_quantize_into(array, columns, kind.name, weights, out, count)
    except DataError as problem:
        raise _relocated(problem, array) from None
    return out


def dequantize_gguf(data: ArrayLike, dtype: str, *, threads: int = 0) -> NDArray[np.float32]:
    """The reals of blocks, to the bit those that the ``gguf`` package gives.

    Args:
        data: uint8 ``[..., n]``, where ``n`` is a multiple of the bytes of a block.
        dtype: the type, such as ``q4_k``.
        threads: CPU threads; 0 uses all cores.

    Returns:
        float32 ``[..., n / bytes * block_size]``.

    Raises:
        ConfigError: an unknown type, or ``n`` no multiple of its bytes.
        TypeError: ``data`` is not uint8.
    """
    kind, array = block_type(dtype), as_array(data)
    if array.dtype != np.uint8:
        raise TypeError(f"expected blocks of dtype uint8, got {array.dtype}")
    count = thread_count(threads)
    if not array.ndim or array.shape[-1] % kind.bytes:
        raise ConfigError(f"blocks of {kind.name} have {kind.bytes} bytes, which do not divide shape {array.shape}")
    out = np.empty((*array.shape[:-1], array.shape[-1] // kind.bytes * kind.block_size), np.float32)
    gguf_dequantize_into(in_order(array, array.dtype), kind.name, out, count)
    return out


def _relocated(problem: DataError, array: NDArray[Any]) -> DataError:
    """The error with the index in the caller's array; the core counts rows."""
    hint = "store the tensor as f32 or bf16"
    bad = np.argwhere(~np.isfinite(array))
    if not len(bad):
        return DataError(problem.message or str(problem), hint=hint)
    index = tuple(map(int, bad[0]))
    return DataError(f"value {array[index]} at index {index} is not finite", hint="remove NaN and infinite weights")

"""Products with quantized weights: exact ones of 8-bit matrices, and of reals with 4-bit weights in blocks.

weights = requant.PackedWeights(b)                       # once; b is int8 or uint8 [K, N]
sums = requant.qmatmul(a, weights, a_zero_point=128)     # a is int8 or uint8 [..., K]; int32 [..., N]

blocks = requant.PackedBlocks(q, scales, block_size=32)  # once; q is int4 or uint4 [K, N], one to a byte
y = requant.qmatmul(x, blocks)                           # x is float32 [..., K]; float32 [..., N]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from requant import ops
from requant.arrays.epilogue import Epilogue, Requantizer
from requant.arrays.intake import as_bytes, as_float32, as_integers, flat_float32, output, thread_count
from requant.arrays.packed import PackedBytes
from requant.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["PackedBlocks", "PackedWeights", "qmatmul"]

Activations = Literal["int8", "int8_per_row", "float"]


class PackedWeights(PackedBytes):
    """An 8-bit matrix, reordered once for any number of products; immutable, shared freely between threads.

    Pickling stores the matrix, not its order: another machine packs it for its own CPU.

    Args:
        b: int8 or uint8, ``[K, N]``, of any memory layout.
        zero_point: The integer that stands for 0.0, for all of ``b`` or ``[N]`` for its columns.

    Raises:
        ConfigError: Another rank, or a zero point that does not fit.
        TypeError: ``b`` is neither int8 nor uint8, or ``zero_point`` holds no integers.
    """

    __slots__ = ()

    _core: ops.PackedMatrix

    def __init__(self, b: ArrayLike, *, zero_point: ArrayLike = 0) -> None:
        matrix = as_bytes("b", b)
        if matrix.ndim != 2:
            raise ConfigError(f"expected b of shape (K, N), got {matrix.shape}")
        k, n = matrix.shape
        self._zero_point = as_integers("zero_point", zero_point, (n,))
        self._core = ops.PackedMatrix(np.ascontiguousarray(matrix), k, n, self._zero_point.reshape(-1))

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        return self._core.shape

    def unpack(self) -> NDArray[Any]:
        """The matrix that was packed, ``[K, N]``."""
        return self._core.unpack().view(self.dtype)

    def __getstate__(self) -> tuple[NDArray[Any], NDArray[np.int32]]:
        return self.unpack(), self._zero_point

    def __setstate__(self, state: tuple[NDArray[Any], NDArray[np.int32]]) -> None:
        self.__init__(state[0], zero_point=state[1])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"PackedWeights({self.dtype} {list(self.shape)} for {self.kernel})"


class PackedBlocks:
    """A matrix of 4-bit integers in blocks along K, reordered once for any number of products.

    Each block of a column has a scale and a zero point: the reals are ``(q - zero_point) * scale``. Immutable, shared
    freely between threads. Pickling stores the matrix, not its order.

    Args:
        q: ``[K, N]``, one integer to a byte: int8 in -8..7 for int4, uint8 in 0..15 for uint4.
        scales: float32 ``[ceil(K / block_size), N]``, finite.
        zero_points: The integers that stand for 0.0, one or in the shape of ``scales``; without, 0 for int4 and 8 for
            uint4.
        block_size: 16, 32, 64, 128 or 256 rows of ``q``; the last block has what remains of K.

    Raises:
        ConfigError: Another rank, block size or shape, integers that do not fit 4 bits.
        DataError: A scale that is not finite.
        TypeError: ``q`` is neither int8 nor uint8, or ``zero_points`` holds no integers.

    Example:
        >>> import numpy as np, requant
        >>> w = requant.PackedBlocks(np.array([[1, -8], [7, 0]], np.int8), [[0.5, 0.25]])
        >>> requant.qmatmul(np.array([1.0, 2.0]), w, activations="float")
        array([ 7.5, -2. ], dtype=float32)
    """

    __slots__ = ("_core",)

    def __init__(
        self, q: ArrayLike, scales: ArrayLike, zero_points: ArrayLike | None = None, *, block_size: int = 32
    ) -> None:
        matrix = as_bytes("q", q)
        if matrix.ndim != 2:
            raise ConfigError(f"expected q of shape (K, N), got {matrix.shape}")
        k, n = matrix.shape
        shape = (-(-k // max(block_size, 1)), n)
        reals = as_float32(scales)
        if reals.shape != shape:
            raise ConfigError(f"expected scales of shape {shape}, got {reals.shape}")
        if zero_points is None:
            zero_points = 8 if matrix.dtype == np.uint8 else 0
        zeros = as_integers("zero_points", zero_points, shape)
        self._core = ops.BlockedMatrix(np.ascontiguousarray(matrix), k, n, block_size, reals, zeros.reshape(-1))

    @classmethod
    def from_nbits(
        cls, b: ArrayLike, scales: ArrayLike, zero_points: ArrayLike | None = None, *, k: int | None = None
    ) -> PackedBlocks:
        """Weights as onnxruntime's operator MatMulNBits has them, with 4 bits.

        Args:
            b: uint8 ``[N, blocks, block_size / 2]``, two integers to a byte, the first in the low bits.
            scales: float32, ``N * blocks`` of any shape.
            zero_points: uint8, ``N * ceil(blocks / 2)`` of any shape, packed alike; 8 without.
            k: Rows of the matrix, where the last block is not full.

        Raises:
            ConfigError: A shape or block size that does not fit.
            TypeError: ``b`` or ``zero_points`` is not uint8.
        """
        packed, zeros = np.asarray(b), None if zero_points is None else np.asarray(zero_points)
        for name, array in (("b", packed), ("zero_points", zeros)):
            if array is not None and array.dtype != np.uint8:
                raise TypeError(f"expected {name} of dtype uint8, got {array.dtype}")
        if packed.ndim != 3:
            raise ConfigError(f"expected b of shape (N, blocks, block_size / 2), got {packed.shape}")
        n, blocks, size = packed.shape[0], packed.shape[1], 2 * packed.shape[2]
        rows = blocks * size if k is None else k
        if not (blocks - 1) * size < rows <= blocks * size:
            raise ConfigError(f"expected k within {blocks} blocks of {size}, the last of them not empty, got {k}")
        new = cls.__new__(cls)
        new._core = ops.BlockedMatrix.from_nbits(  # noqa: SLF001 - its own
            np.ascontiguousarray(packed), rows, n, size, as_float32(scales),
            None if zeros is None else np.ascontiguousarray(zeros),
        )  # fmt: skip
        return new

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        return self._core.shape

    @property
    def dtype(self) -> str:
        """``int4`` or ``uint4``."""
        return self._core.dtype

    @property
    def block_size(self) -> int:
        """Rows that share a scale."""
        return self._core.block_size

    @property
    def kernel(self) -> str:
        """The instruction set that it is packed for, as ``requant.cpu_info()`` names it."""
        return self._core.kernel

    @property
    def scales(self) -> NDArray[np.float32]:
        """``[ceil(K / block_size), N]``."""
        return self._core.scales

    @property
    def zero_points(self) -> NDArray[np.int32]:
        """``[ceil(K / block_size), N]``."""
        return self._core.zero_points

    def unpack(self) -> NDArray[Any]:
        """The integers, ``[K, N]``: int8 for int4, uint8 for uint4."""
        return self._core.unpack().view(np.int8 if self.dtype == "int4" else np.uint8)

    def dequantize(self) -> NDArray[np.float32]:
        """The reals that they stand for, ``[K, N]``."""
        return self._core.dequantize()

    def __getstate__(self) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.int32], int]:
        return self.unpack(), self.scales, self.zero_points, self.block_size

    def __setstate__(self, state: tuple[NDArray[Any], NDArray[np.float32], NDArray[np.int32], int]) -> None:
        q, scales, zero_points, block_size = state
        self.__init__(q, scales, zero_points, block_size=block_size)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"PackedBlocks({self.dtype} {list(self.shape)} in blocks of {self.block_size} for {self.kernel})"


def qmatmul(
    a: ArrayLike,
    weights: PackedWeights | PackedBlocks,
    *,
    activations: Activations | None = None,
    a_zero_point: ArrayLike = 0,
    a_scale: ArrayLike | None = None,
    b_scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    requantizer: Requantizer | None = None,
    threads: int | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """``(a - a_zero_point) @ (b - b_zero_point)``, exact in int32, as ONNX MatMulInteger, and what is made of it.

    With :class:`PackedBlocks` it is ``a @ weights.dequantize() + bias`` in float32, as onnxruntime's MatMulNBits, and
    ``a`` holds reals. Runs without the GIL. All instruction sets and any number of threads give the same bits.

    Args:
        a: int8 or uint8, ``[..., K]``; rows at a constant distance are read where they lie, other layouts are copied.
            Reals with :class:`PackedBlocks`.
        weights: The packed ``b``, ``[K, N]``, with its zero point.
        activations: With :class:`PackedBlocks`: the arithmetic. ``int8`` (default) quantizes each block along K of each
            row to int8 with a scale of its own, ``absmax / 127``, as ``accuracy_level`` 4 does; ``int8_per_row`` gives
            a row one scale; ``float`` leaves the activations and makes the weights reals. With int8, a NaN or an
            infinity makes the results of its row NaN.
        a_zero_point: The integer that stands for 0.0 in ``a``: for all of it, or one for each row, ``a.shape[:-1]``.
            This, the scales and the requantizer are for :class:`PackedWeights` only.
        a_scale: With ``b_scale``: return reals. A scale for all of ``a``, or for each row, ``a.shape[:-1]``.
        b_scale: A scale for all of ``b``, or for each column, ``[N]``.
        bias: float32, for all columns or ``[N]``; is added to the reals.
        requantizer: Return 8-bit integers; it holds its own scales and bias.
        threads: Threads to use; ``None`` for as many as the size is worth, up to all cores.
        out: Where to write: C-contiguous, of the result's shape and dtype.

    Returns:
        ``[..., N]``: int32; float32 ``sum * (a_scale * b_scale) + bias`` where scales are given; the requantizer's
        dtype where one is given. It is ``out`` where that is given.

    Raises:
        ConfigError: Shapes or values that do not fit, or a ``K`` so long that a sum could leave int32; without a bias
            33,025 is always possible.
        TypeError: ``a`` is neither int8 nor uint8, or arguments that exclude each other.
    """
    array = as_float32(a) if isinstance(weights, PackedBlocks) else as_bytes("a", a)
    k, n = weights.shape
    if array.ndim == 0 or array.shape[-1] != k:
        raise ConfigError(f"expected a of shape (..., {k}), got {array.shape}", hint=f"the weights are {weights!r}")
    count = thread_count(threads)
    rows_shape = array.shape[:-1]
    if isinstance(weights, PackedBlocks):
        if not (a_scale is None and b_scale is None and requantizer is None and np.all(np.equal(a_zero_point, 0))):
            raise TypeError("expected a_zero_point, a_scale, b_scale and requantizer with PackedWeights only")
        columns = np.empty(0, np.float32) if bias is None else np.broadcast_to(flat_float32("bias", bias, (n,)), (n,))
        result = output(out, (*rows_shape, n), np.float32, array)
        blocks, columns, rows = weights._core, as_float32(columns), math.prod(rows_shape)  # noqa: SLF001 - as below
        ops.matmul_blocked_into(array, rows, blocks, activations or "int8", columns, result, count)
        return result
    if activations is not None:
        raise TypeError("expected activations with PackedBlocks only")
    zero_point = as_integers("a_zero_point", a_zero_point, rows_shape).reshape(-1)
    epilogue = Epilogue.of(requantizer, (a_scale, b_scale, bias), rows_shape, n)
    result = output(out, (*rows_shape, n), epilogue.dtype, array)
    data, stride = _rows(array)
    rows, core = math.prod(rows_shape), weights._core  # noqa: SLF001 - two halves of one module
    ops.matmul_into(data, rows, stride, zero_point, core, result, epilogue.scales, epilogue.requantizer, count)
    return result


def _rows(array: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """The bytes that hold the rows of ``array``, and their distance."""
    k = array.shape[-1]
    if array.ndim == 2 and array.size and array.strides[1] == 1 and array.strides[0] >= k:
        rows, stride = array.shape[0], array.strides[0]
        if stride == k:
            return array, k
        # From the first byte of the first row to the last of the last: all of it belongs to the array's own memory.
        return np.lib.stride_tricks.as_strided(array, ((rows - 1) * stride + k,), (1,), writeable=False), stride
    return np.ascontiguousarray(array), k

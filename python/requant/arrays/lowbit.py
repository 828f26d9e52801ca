"""Weights of 2, 3, 4 and 8 bits in blocks, on numpy arrays, as MatMulNBits and DequantizeLinear take them.

scheme = BlockScheme(bits=4, block_size=32)
weights = quantize_blocks(w, scheme, "mse")       # w is float32 [N, K], an output channel to a row
weights = gptq(w, hessian, scheme)                # hessian is x.T @ x of what the weights are multiplied with
weights.data, weights.scales, weights.zero_points # the inputs of MatMulNBits
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.arrays.intake import as_array, as_float32, thread_count
from requant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["ALGORITHMS", "BlockScheme", "BlockWeights", "gptq", "quantize_blocks"]

#: Names of the algorithms of :func:`quantize_blocks`, simplest first.
ALGORITHMS: tuple[str, ...] = ops.WEIGHT_ALGORITHMS

_BITS = (2, 3, 4, 8)
_BLOCK_SIZES = (16, 32, 64, 128, 256)
_PART = 1 << 20  # values that are made real at a time


@dataclass(frozen=True, slots=True)
class BlockScheme:
    """How many bits, how many neighbours along K share a scale, and whether blocks have zero points of their own.

    Attributes:
        bits: 2, 3, 4 or 8. Three bits are stored in four, as no runtime packs them.
        block_size: 16, 32, 64, 128 or 256; 0 (or -1) gives each row one scale, which MatMulNBits cannot run.
        symmetric: All zero points are the middle of the stored integers, ``2**(stored_bits - 1)``.

    Raises:
        ConfigError: Other numbers.
    """

    bits: int = 4
    block_size: int = 32
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise ConfigError(f"expected bits of 2, 3, 4 or 8, got {self.bits!r}")
        if self.block_size == -1:
            object.__setattr__(self, "block_size", 0)
        if self.block_size not in (0, *_BLOCK_SIZES):
            raise ConfigError(
                f"expected a block_size of 16, 32, 64, 128 or 256, got {self.block_size!r}",
                hint="these are what MatMulNBits runs; 0 gives each row one scale",
            )

    @property
    def stored_bits(self) -> int:
        """Bits that an integer takes: 4 where ``bits`` is 3."""
        return 4 if self.bits == 3 else self.bits

    def blocks(self, k: int) -> int:
        """How many blocks a row of ``k`` values has."""
        return -(-k // (self.block_size or max(k, 1)))


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """A matrix ``[N, K]`` in blocks along its rows, as MatMulNBits has it.

    The reals are ``(q - zero_point) * scale``. The arrays are read-only.

    Attributes:
        data: uint8 ``[N, blocks, block_size * stored_bits / 8]``, the first integer in the low bits.
        scales: float32 ``[N, blocks]``; symmetric ones may be negative, as onnxruntime's are.
        zero_points: uint8 ``[N, ceil(blocks * stored_bits / 8)]``, packed alike; ``None`` if symmetric.
        scheme: Bits, block size and symmetry.
        k: Values to a row; the last block may have fewer than it has room for.
        damping: What :func:`gptq` added to the diagonal of the Hessian, as a share of its mean; ``None`` otherwise.
    """

    data: NDArray[np.uint8] = field(repr=False)
    scales: NDArray[np.float32] = field(repr=False)
    zero_points: NDArray[np.uint8] | None = field(repr=False)
    scheme: BlockScheme
    k: int
    damping: float | None = None

    def __post_init__(self) -> None:
        for array in (self.data, self.scales, self.zero_points):
            if array is not None:
                array.flags.writeable = False

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)``."""
        return self.scales.shape[0], self.k

    @property
    def nbytes(self) -> int:
        """Bytes of integers, scales and zero points."""
        zeros = 0 if self.zero_points is None else self.zero_points.nbytes
        return self.data.nbytes + self.scales.nbytes + zeros

    def dequantize(self) -> NDArray[np.float32]:
        """The reals, ``[N, K]``."""
        out = np.empty(self.shape, np.float32)
        ops.dequantize_blocks_into(self._stored, self.shape, _core(self.scheme), out)
        return out

    def error(self, rows: ArrayLike, second_moment: ArrayLike | None = None) -> float:
        """The squared error against ``rows``: of the weights, or of what they make of their inputs.

        With ``d = rows - self.dequantize()`` it is the sum of the squares of ``d``; with a matrix ``H`` the trace of
        ``d @ H @ d.T``, which is the squared error of the layer's outputs where ``H`` is the sum of ``x.T @ x``; with
        the diagonal of ``H`` alone the sum of ``d**2 * H``.

        Args:
            rows: Reals ``[N, K]``.
            second_moment: ``[K, K]`` or ``[K]``.

        Raises:
            ConfigError: Another shape.
        """
        array, shape, transposed = _rows(rows)
        if shape != self.shape:
            raise ConfigError(f"expected rows of shape {self.shape}, got {shape}")
        moment = None if second_moment is None else np.asarray(second_moment, np.float64)
        if moment is not None and moment.shape not in ((self.k,), (self.k, self.k)):
            raise ConfigError(f"expected a second_moment of shape {(self.k, self.k)}, got {moment.shape}")
        total = 0.0
        for part, some in self._parts():
            exact = array[:, part].T if transposed else array[part]
            off = np.subtract(exact, some.dequantize(), dtype=np.float64, order="C")
            weighted = off if moment is None else off * moment if moment.ndim == 1 else off @ moment
            total += float((weighted * off).sum())
        return total

    def _parts(self) -> Iterator[tuple[slice, BlockWeights]]:
        """Some rows at a time, so that the reals of a large matrix are never there at once."""
        step = max(1, _PART // max(self.k, 1))
        for start in range(0, len(self.data), step):
            part = slice(start, start + step)
            zeros = None if self.zero_points is None else self.zero_points[part]
            yield part, replace(self, data=self.data[part], scales=self.scales[part], zero_points=zeros)

    def to_dequantize_linear(self) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[Any] | None]:
        """The same as inputs of ONNX DequantizeLinear with ``axis=0`` and ``block_size``.

        Returns:
            Integers ``[K, N]``, one to a byte: int8 around 0 where the scheme is symmetric, uint8 otherwise (see
            :func:`requant.pack_int4`); scales ``[blocks, N]``; zero points ``[blocks, N]``, or ``None`` for 0.
        """
        q, zeros = ops.unpack_blocks(self._stored, self.shape, _core(self.scheme), True)
        scales = np.ascontiguousarray(self.scales.T)
        if not self.scheme.symmetric:
            return q, scales, np.ascontiguousarray(zeros.T)
        q -= np.uint8(1 << (self.scheme.stored_bits - 1))
        return q.view(np.int8), scales, None

    @property
    def _stored(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
        return self.data, self.scales, self.zero_points


def quantize_blocks(
    rows: ArrayLike,
    scheme: BlockScheme,
    algorithm: str = "rtn",
    *,
    importance: ArrayLike | None = None,
    threads: int | None = None,
) -> BlockWeights:
    """Chooses a grid for each block and rounds every weight to it, without data.

    ``rtn`` is byte-equal to onnxruntime's quantizer of MatMulNBits; :doc:`low-bit` has the formula of each. Runs
    without the GIL. All instruction sets and any number of threads give the same bits.

    Args:
        rows: Reals ``[N, K]``, an output channel to a row. The transpose of a C-contiguous ``[K, N]``, as MatMul has
            its weights, is read where it lies.
        scheme: Bits, block size and symmetry.
        algorithm: One of :data:`ALGORITHMS`.
        importance: ``[K]``: the weight of the squared errors of each column, such as the mean square of what it is
            multiplied with; without, all are equal. ``rtn`` has no use for it.
        threads: Threads to use; ``None`` for all cores.

    Raises:
        ConfigError: Another rank, an unknown algorithm, an importance that is negative or of another shape.
        DataError: A NaN or infinity among the weights; its index is told.
        TypeError: ``rows`` does not hold real numbers.
    """
    array, shape, transposed = _rows(rows)
    weights = None if importance is None else as_float32(importance)
    parts = _empty(scheme, *shape)
    ops.quantize_blocks_into(array, shape, transposed, _core(scheme), algorithm, weights, parts, thread_count(threads))
    return BlockWeights(*parts, scheme, shape[1])


def gptq(
    rows: ArrayLike,
    hessian: ArrayLike,
    scheme: BlockScheme,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    static_groups: bool | None = None,
    algorithm: str = "mse",
    threads: int | None = None,
) -> BlockWeights:
    """Quantizes column after column, so that later ones make up for the errors of earlier ones (Frantar et al. 2022).

    It keeps the squared error of the layer's outputs small, ``weights.error(rows, hessian)``. Columns that are zero in
    the Hessian neither give nor take errors. Runs without the GIL; any number of threads gives the same bits.

    Args:
        rows: Reals ``[N, K]``, as :func:`quantize_blocks` takes them.
        hessian: ``[K, K]``, the sum of ``x.T @ x`` over all inputs ``x [..., K]``, or a positive multiple of it, such
            as the mean. It is symmetric; its lower triangle is read.
        scheme: Bits, block size and symmetry.
        damping: Is added to the diagonal of the Hessian, as a share of its mean. It grows tenfold until the Hessian is
            positive definite; ``damping`` of the result is what it took.
        act_order: Columns go in descending order of the Hessian's diagonal, so that the most important ones are
            rounded before errors pile up. Integers stay where they are, so this takes ``static_groups``.
        static_groups: All grids are those of the weights as they were. Without, each is chosen when its block is
            reached, from what the columns before it made of its weights. ``None`` is ``act_order``.
        algorithm: The one of :data:`ALGORITHMS` that chooses grids; errors weigh the diagonal of the Hessian.
        threads: Threads to use; ``None`` for all cores.

    Raises:
        ConfigError: Shapes that do not fit, an unknown algorithm, a negative damping, ``act_order`` with
            ``static_groups=False``, a Hessian that is not finite, has a negative diagonal, or is not positive definite
            even when damped.
        DataError: A NaN or infinity among the weights; its index is told.
        TypeError: ``rows`` or ``hessian`` does not hold real numbers.
    """
    array, shape, transposed = _rows(rows)
    moments = as_array(hessian)
    if moments.dtype.kind not in "fiu":
        raise TypeError(f"expected a hessian of real numbers, got dtype {moments.dtype}")
    if moments.shape != (shape[1], shape[1]):
        raise ConfigError(f"expected a hessian of shape {(shape[1], shape[1])}, got {moments.shape}")
    options = float(damping), act_order, act_order if static_groups is None else static_groups
    exact = np.ascontiguousarray(moments, np.float64)
    parts, took = ops.gptq_blocks(
        array, shape, transposed, exact, _core(scheme), algorithm, options, thread_count(threads)
    )
    return BlockWeights(*parts, scheme, shape[1], took)


def _empty(
    scheme: BlockScheme, n: int, k: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """Memory for the data, scales and zero points of ``[n, k]``: NumPy's own, which large pages back."""
    blocks, per_byte = scheme.blocks(k), 8 // scheme.stored_bits
    bytes_each = -(-(scheme.block_size or max(k, 1)) // per_byte)
    zeros = None if scheme.symmetric else np.empty((n, -(-blocks // per_byte)), np.uint8)
    return np.empty((n, blocks, bytes_each), np.uint8), np.empty((n, blocks), np.float32), zeros


def _core(scheme: BlockScheme) -> tuple[int, int, bool]:
    return scheme.bits, scheme.block_size, scheme.symmetric


def _rows(rows: ArrayLike) -> tuple[NDArray[np.float32], tuple[int, int], bool]:
    """The values, their shape ``(N, K)``, and whether they lie as ``[K, N]``."""
    array = as_array(rows)
    if array.ndim != 2:
        raise ConfigError(f"expected rows of shape (N, K), got {array.shape}")
    shape = (array.shape[0], array.shape[1])
    transposed = array.flags.f_contiguous and not array.flags.c_contiguous
    return as_float32(array.T if transposed else array), shape, transposed

"""The compiled core. Only ``requant.ops`` imports it; arrays are C-contiguous, native, of the dtype named."""

from collections.abc import Sequence
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CALIBRATION_METHODS",
    "GGUF_TYPES",
    "ROUNDINGS",
    "WEIGHT_ALGORITHMS",
    "BlockedMatrix",
    "PackedFilters",
    "PackedMatrix",
    "Requantizer",
    "TensorStatistics",
    "__version__",
    "add",
    "affine_params",
    "average_pool",
    "conv2d",
    "cpu_info",
    "dequantize",
    "dequantize_blocks",
    "fake_quantize",
    "gguf_dequantize",
    "gguf_quantize",
    "global_average_pool",
    "gptq",
    "largest_terms",
    "look_up",
    "matmul",
    "matmul_blocked",
    "max_pool",
    "observe_here",
    "observe_many",
    "observe_request",
    "pack",
    "quantize",
    "quantize_blocks",
    "reconstruct",
    "rounding_error",
    "slice_ranges",
    "unpack",
    "unpack_blocks",
]

__version__: Final[str]
CALIBRATION_METHODS: Final[tuple[str, ...]]
GGUF_TYPES: Final[tuple[tuple[str, int, int, int], ...]]
ROUNDINGS: Final[tuple[str, ...]]
WEIGHT_ALGORITHMS: Final[tuple[str, ...]]

def cpu_info() -> dict[str, Any]:
    """``arch``, ``features`` (detected), ``kernels`` (in use), ``available`` (kernels this CPU can run), ``cores``."""

def affine_params(
    lo: NDArray[np.float32], hi: NDArray[np.float32], dtype: str, symmetric: bool, narrow: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scale and zero point, elementwise, for ranges ``[lo, hi]``; every scale is finite, positive and normal."""

def slice_ranges(
    x: NDArray[np.float32], axis: int | None, block_size: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest value of the tensor (shape ``[]``), each channel of ``axis``, or each block along it."""

def largest_terms(x: NDArray[np.float32], axis: int, pairs: bool) -> NDArray[np.float64]:
    """The largest magnitudes along ``axis`` (0 or 1) of a matrix, with ``pairs`` also of sums of 2i and 2i + 1."""

# Scale, zero point, dtype, axis, block size, narrow, rounding, threads (0: as many as the size is worth).
# Zero points are int32, or of the integers that values are held in.
_Spec = tuple[float | NDArray[np.float32], int | NDArray[Any], str, int | None, int | None, bool, str, int]

def quantize(x: NDArray[Any], spec: _Spec, out: NDArray[Any], packed: bool) -> None:
    """Integers of ``x`` (float32, float16, bfloat16); scales have shape ``[]``, ``[channels]`` or the blocked shape."""

def dequantize(q: NDArray[Any], spec: _Spec, out: NDArray[Any], packed: bool) -> None:
    """Reals (float32, float16 or bfloat16) in the shape of ``out``."""

def fake_quantize(x: NDArray[Any], spec: _Spec, out: NDArray[Any], mask: NDArray[np.bool_] | None) -> None:
    """Quantize, then dequantize; ``mask`` tells what was not clamped."""

def rounding_error(x: NDArray[Any], q: NDArray[Any], spec: _Spec) -> tuple[float, float, float, float]:
    """Smallest and largest value of ``x``, sums of squares of ``x`` and of its distance from the reals of ``q``."""

def pack(q: NDArray[Any], dtype: str, out: NDArray[np.uint8]) -> None:
    """Integers of 2 or 4 bits (held in int8 or uint8), several to a byte, low bits first."""

def unpack(data: NDArray[np.uint8], dtype: str, out: NDArray[Any]) -> None:
    """The inverse of ``pack``: as many integers as ``out`` holds, int8 or uint8."""

@final
class TensorStatistics:
    """Everything a calibration method needs of a tensor, in constant memory; thread-safe."""

    def __init__(self) -> None: ...
    def observe(self, x: NDArray[np.float32]) -> None: ...
    def merge(self, other: TensorStatistics) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def zeros(self) -> int: ...
    @property
    def nan_count(self) -> int: ...
    @property
    def inf_count(self) -> int: ...
    @property
    def min(self) -> float: ...
    @property
    def max(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...
    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
        """Bin edges (one more than bins) and counts."""

    def range(self, method: str, dtype: str, symmetric: bool, percentile: float) -> tuple[float, float]: ...
    def ranges(self, dtype: str, percentile: float) -> list[tuple[str, bool, float, float]]:
        """Method, whether symmetric, and the range: what every method chooses; shared work is done once."""

    def error(self, scale: float, zero_point: int, dtype: str) -> dict[str, float]:
        """``granular`` and ``overload`` (mean squared error), ``clipped`` (share of values), ``sqnr_db``."""

    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(data: bytes) -> TensorStatistics: ...
    def __getstate__(self) -> bytes: ...
    def __setstate__(self, state: bytes) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...

def observe_request(
    statistics: TensorStatistics, x: NDArray[np.float32], dtype: str
) -> tuple[float, float, float] | None:
    """``statistics.observe(x)``; range and summed squared error, quantized over it, of the finite values of ``x``."""

def observe_here(statistics: Sequence[TensorStatistics], threads: int) -> int:
    """Let models that this thread runs count in ``statistics`` what ``requant::Observe`` reads, until others are named.

    Returns how many tensors were counted since the last call.
    """

def observe_many(statistics: list[TensorStatistics], arrays: list[NDArray[np.float32]], threads: int) -> None:
    """``statistics[i].observe(arrays[i])`` for all ``i``, on ``threads`` threads (0: all cores), without the GIL."""

@final
class PackedMatrix:
    """An int8 or uint8 matrix ``[k, n]`` packed for products from the left; ``zero_point`` is ``[1]`` or ``[n]``."""

    def __new__(cls, b: NDArray[Any], k: int, n: int, zero_point: NDArray[np.int32]) -> PackedMatrix: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    def unpack(self) -> NDArray[np.uint8]:
        """The bits of what was packed, ``[k, n]``."""

@final
class Requantizer:
    """Turns int32 sums into int8 or uint8; ``b_scale`` and ``bias`` are ``[1]`` or ``[n]``."""

    def __new__(
        cls,
        rounding: str,
        a_scale: float,
        b_scale: NDArray[np.float32],
        y_scale: float,
        dtype: str,
        zero_point: int,
        bias: NDArray[np.int32] | None,
        clamp: tuple[int, int] | None,
    ) -> Requantizer: ...
    @property
    def dtype(self) -> str: ...

def matmul(
    a: NDArray[Any],
    rows: int,
    stride: int,
    a_zero_point: NDArray[np.int32],
    b: PackedMatrix,
    out: NDArray[Any],
    scales: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]] | None,
    requantizer: Requantizer | None,
    threads: int,
) -> None:
    """Fills ``out [rows, n]``: int32 sums, float32 with ``scales`` (of a, of b, bias), or the requantizer's type."""

@final
class BlockedMatrix:
    """4-bit integers ``[k, n]`` (one to a byte) in blocks along k, packed for products from the left.

    ``scales`` and ``zero_points`` are ``[ceil(k / block_size), n]``; a single zero point is ``[1]``.
    """

    def __new__(
        cls,
        b: NDArray[Any],
        k: int,
        n: int,
        block_size: int,
        scales: NDArray[np.float32],
        zero_points: NDArray[np.int32],
    ) -> BlockedMatrix: ...
    @staticmethod
    def from_nbits(
        b: NDArray[np.uint8],
        k: int,
        n: int,
        block_size: int,
        scales: NDArray[np.float32],
        zero_points: NDArray[np.uint8] | None,
    ) -> BlockedMatrix:
        """From the layout of onnxruntime's MatMulNBits, flat or not."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def block_size(self) -> int: ...
    @property
    def kernel(self) -> str: ...
    @property
    def scales(self) -> NDArray[np.float32]: ...
    @property
    def zero_points(self) -> NDArray[np.int32]: ...
    def unpack(self) -> NDArray[np.uint8]:
        """The bits of what was packed, one integer to a byte, ``[k, n]``."""

    def dequantize(self) -> NDArray[np.float32]:
        """``(q - zero_point) * scale``, ``[k, n]``."""

def matmul_blocked(
    a: NDArray[np.float32],
    rows: int,
    b: BlockedMatrix,
    activations: str,
    bias: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
) -> None:
    """Fills ``out [rows, n]`` with the product and ``bias``, which is ``[n]`` or empty."""

@final
class PackedFilters:
    """int8 or uint8 filters ``[m, c / groups, kh, kw]``, packed; ``zero_point`` is ``[1]`` or ``[m]``."""

    def __new__(
        cls,
        w: NDArray[Any],
        shape: tuple[int, ...],
        zero_point: NDArray[np.int32],
        strides: tuple[int, ...],
        dilations: tuple[int, ...],
        pads: tuple[int, ...],
        groups: int,
    ) -> PackedFilters: ...
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    def output_shape(self, images: tuple[int, ...]) -> tuple[int, int, int, int]:
        """For images ``(n, h, w, c)``: ``(n, h', w', m)``."""

    def unpack(self) -> NDArray[np.uint8]:
        """The bits of what was packed, ``[m, c / groups, kh, kw]``."""

def conv2d(
    x: NDArray[Any],
    shape: tuple[int, ...],
    zero_point: int,
    filters: PackedFilters,
    out: NDArray[Any],
    scales: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]] | None,
    requantizer: Requantizer | None,
    threads: int,
) -> None:
    """Fills ``out [n, h', w', m]``: int32 sums, float32 with ``scales`` (x, w, bias), or the requantizer's type."""

def add(
    a: NDArray[Any],
    b: NDArray[Any],
    out: NDArray[Any],
    a_params: tuple[float, int],
    b_params: tuple[float, int],
    y_params: tuple[float, int],
    clamp: tuple[int, int] | None,
) -> None:
    """``out = a + b``, all int8 or all uint8; parameters are scale and zero point."""

def look_up(table: NDArray[np.uint8], x: NDArray[Any], out: NDArray[Any]) -> None:
    """``out[i] = table[x[i]]``, the 256 bytes of the table being in the order of the bits of ``x``."""

def max_pool(
    x: NDArray[Any],
    shape: tuple[int, ...],
    attributes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    out: NDArray[Any],
) -> None:
    """Largest integers of ``x [n, h, w, c]``; ``attributes`` are kernel, strides, dilations and pads."""

def average_pool(
    x: NDArray[Any],
    shape: tuple[int, ...],
    attributes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    include_pad: bool,
    x_params: tuple[float, int],
    y_params: tuple[float, int],
    out: NDArray[Any],
) -> None:
    """Averages of ``x [n, h, w, c]``."""

def global_average_pool(
    x: NDArray[Any],
    shape: tuple[int, ...],
    x_params: tuple[float, int],
    y_params: tuple[float, int],
    out: NDArray[Any],
) -> None:
    """Averages of the channels of ``x [n, h, w, c]``."""

# Packed integers ``[n, blocks, bytes]``, scales ``[n, blocks]``, packed zero points ``[n, bytes]`` where there are any.
_BlockParts = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]

# Bits, block size (0: whole rows), symmetric.
_BlockScheme = tuple[int, int, bool]

def quantize_blocks(
    values: NDArray[np.float32],
    shape: tuple[int, int],
    transposed: bool,
    scheme: _BlockScheme,
    algorithm: str,
    importance: NDArray[np.float32] | None,
    out: _BlockParts,
    threads: int,
) -> None:
    """Fills ``out``; ``values`` are ``[n, k]``, or ``[k, n]`` where ``transposed``; ``importance`` is ``[k]``."""

def gptq(
    values: NDArray[np.float32],
    shape: tuple[int, int],
    transposed: bool,
    hessian: NDArray[np.float64],
    scheme: _BlockScheme,
    algorithm: str,
    options: tuple[float, bool, bool],
    threads: int,
) -> tuple[_BlockParts, float]:
    """``options`` are damping, act_order and static_groups; the damping that it took is given back."""

def dequantize_blocks(
    stored: _BlockParts, shape: tuple[int, int], scheme: _BlockScheme, out: NDArray[np.float32]
) -> None:
    """Fills ``out [n, k]`` with reals."""

def unpack_blocks(
    stored: _BlockParts, shape: tuple[int, int], scheme: _BlockScheme, transposed: bool
) -> list[NDArray[np.uint8]]:
    """Integers ``[n, k]``, or ``[k, n]`` where ``transposed``, and zero points ``[n, blocks]``, one to a byte."""

def gguf_quantize(
    x: NDArray[np.float32],
    columns: int,
    dtype: str,
    importance: NDArray[np.float32] | None,
    out: NDArray[np.uint8],
    threads: int,
) -> None:
    """Blocks of each row of ``columns`` values; 0 threads: all cores."""

def gguf_dequantize(data: NDArray[np.uint8], dtype: str, out: NDArray[np.float32], threads: int) -> None:
    """The values of blocks."""

def reconstruct(
    weights: NDArray[np.float32],
    moments: NDArray[np.float32],
    scales: NDArray[np.float32],
    magnitude: int,
    pair: int | None,
    search: bool,
    threads: int,
    out: NDArray[np.int8],
) -> tuple[float, float]:
    """Integers of ``weights [n, k]`` for inputs of second moments ``[groups, k, k]``; scales ``[n]`` change in place.

    Returns the power of the layer's output error with every weight rounded to nearest, and with those integers.
    """

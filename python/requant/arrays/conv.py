"""Exact convolution of 8-bit images, channels last: int32 sums, reals, or 8-bit integers again.

filters = requant.PackedConv(w, pads=(1, 1, 1, 1))       # once; w is int8 or uint8 [M, C / groups, kh, kw], as in ONNX
sums = requant.qconv2d(x, filters, x_zero_point=128)     # x is int8 or uint8 [N, H, W, C]; int32 [N, H', W', M]
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.arrays.epilogue import Epilogue, Requantizer
from requant.arrays.intake import as_bytes, as_integers, output, thread_count
from requant.arrays.packed import PackedBytes
from requant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["PackedConv", "qconv2d"]


class PackedConv(PackedBytes):
    """The filters of a convolution, reordered once for any number of images; immutable, shared freely between threads.

    Pickling stores the filters, not their order: another machine packs them for its own CPU.

    Args:
        w: int8 or uint8, ``[M, C / groups, kh, kw]``, or ``[M, C / groups, k]`` for sequences; of any memory layout.
        zero_point: The integer that stands for 0.0, for all of ``w`` or ``[M]`` for its filters.
        strides: Of each spatial axis; 1 by default.
        dilations: Of each spatial axis; 1 by default.
        pads: What is added at the beginnings of the spatial axes, then at their ends (ONNX); none by default. It stands
            for 0.0, as the zero point of the images.
        groups: Parts that channels and filters are cut into; filters of a part see its channels only.

    Raises:
        ConfigError: Another rank, lengths that do not fit it, sizes or strides of 0, groups that do not divide the
            filters, or a zero point that does not fit.
        TypeError: ``w`` is neither int8 nor uint8, or ``zero_point`` holds no integers.
    """

    __slots__ = ("_attributes", "_rank")

    _core: ops.PackedFilters

    def __init__(
        self,
        w: ArrayLike,
        *,
        zero_point: ArrayLike = 0,
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        groups: int = 1,
    ) -> None:
        filters = as_bytes("w", w)
        if filters.ndim not in (3, 4):
            raise ConfigError(
                f"expected w of shape (M, C / groups, kh, kw) or (M, C / groups, k), got {filters.shape}",
                hint="filters come first, as in ONNX",
            )
        self._rank = axes = filters.ndim - 2
        self._zero_point = as_integers("zero_point", zero_point, (filters.shape[0],))
        stride, dilation = axis_values("strides", strides, axes, 1), axis_values("dilations", dilations, axes, 1)
        pad = axis_values("pads", pads, 2 * axes, 0)
        self._attributes = (stride, dilation, pad, _count(groups))
        if axes == 1:  # a sequence is an image of height 1
            stride, dilation, pad = (1, *stride), (1, *dilation), (0, pad[0], 0, pad[1])
        shape = (*filters.shape[:2], *(1,) * (2 - axes), *filters.shape[2:])
        self._core = ops.PackedFilters(
            np.ascontiguousarray(filters), shape, self._zero_point.reshape(-1), stride, dilation, pad, groups
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """``(M, C / groups, kh, kw)``, or ``(M, C / groups, k)``."""
        m, channels, *kernel = self._core.shape
        return (m, channels, *kernel[2 - self._rank :])

    def unpack(self) -> NDArray[Any]:
        """The filters that were packed, in the shape they had."""
        return self._core.unpack().view(self.dtype).reshape(self.shape)

    def output_shape(self, images: Sequence[int]) -> tuple[int, ...]:
        """``(N, H', W', M)`` for images of shape ``(N, H, W, C)``; ``(N, L', M)`` for sequences ``(N, L, C)``.

        Raises:
            ConfigError: Another rank, or other channels than the filters have.
        """
        n, *rest = self._core.output_shape(self._images(images))
        return (n, *rest[2 - self._rank :])

    def _images(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """``(N, H, W, C)``."""
        if len(shape) != self._rank + 2:
            axes = "(N, H, W, C)" if self._rank == 2 else "(N, L, C)"
            raise ConfigError(f"expected x of shape {axes}, got {tuple(shape)}", hint="channels come last")
        n, *sides, channels = shape
        height, width = sides if self._rank == 2 else (1, *sides)
        return n, height, width, channels

    def __getstate__(self) -> tuple[Any, ...]:
        return (self.unpack(), self._zero_point, *self._attributes)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        w, zero_point, strides, dilations, pads, groups = state
        self.__init__(  # type: ignore[misc]
            w, zero_point=zero_point, strides=strides, dilations=dilations, pads=pads, groups=groups
        )

    def __repr__(self) -> str:
        return f"PackedConv({self.dtype} {list(self.shape)} for {self.kernel})"


def qconv2d(
    x: ArrayLike,
    filters: PackedConv,
    *,
    x_zero_point: int = 0,
    x_scale: float | None = None,
    w_scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    requantizer: Requantizer | None = None,
    threads: int | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Convolution of ``x - x_zero_point``, exact in int32, as ONNX ConvInteger, and what is made of it.

    Runs without the GIL. All instruction sets and any number of threads give the same bits. With a requantizer, whose
    ``a_scale`` is that of ``x`` and whose ``b_scale`` is that of the filters, it is ONNX QLinearConv.

    Args:
        x: int8 or uint8, ``[N, H, W, C]``, or ``[N, L, C]`` where the filters are of sequences; layouts that are not
            C-contiguous are copied.
        filters: The packed filters.
        x_zero_point: The integer that stands for 0.0 in ``x``, and in the padding.
        x_scale: Return reals: scale of ``x``.
        w_scale: Scale of all filters, or of each, ``[M]``.
        bias: float32, for all filters or ``[M]``; is added to the reals.
        requantizer: Return 8-bit integers; it holds its own scales and bias.
        threads: Threads to use; ``None`` for as many as the size is worth, up to all cores.
        out: Where to write: C-contiguous, of the result's shape and dtype.

    Returns:
        ``[N, H', W', M]`` or ``[N, L', M]``: int32; float32 ``sum * (x_scale * w_scale) + bias`` where scales are
        given; the requantizer's dtype where one is given. It is ``out`` where that is given.

    Raises:
        ConfigError: Shapes or values that do not fit, or so many taps that a sum could leave int32.
        TypeError: ``x`` is neither int8 nor uint8, ``x_zero_point`` is no integer, or arguments exclude each other.
    """
    array = np.ascontiguousarray(as_bytes("x", x))
    shape = filters.output_shape(array.shape)
    count = thread_count(threads)
    zero_point = operator.index(x_zero_point)
    if not -(2**31) <= zero_point < 2**31:
        raise ConfigError(f"expected x_zero_point within int32, got {zero_point}")
    epilogue = Epilogue.of(requantizer, (x_scale, w_scale, bias), (), shape[-1])
    result = output(out, shape, epilogue.dtype, array)
    images, core = filters._images(array.shape), filters._core  # noqa: SLF001 - two halves of one module
    ops.conv2d_into(array, images, zero_point, core, result, epilogue.scales, epilogue.requantizer, count)
    return result


def axis_values(name: str, values: Sequence[int] | None, count: int, default: int) -> tuple[int, ...]:
    """``values`` as ``count`` integers of at least 0, ``default`` where there are none.

    Raises:
        ConfigError: another number of them, or one outside int32.
    """
    if values is None:
        return (default,) * count
    if len(values) != count:
        raise ConfigError(f"expected {name} of length {count}, got {tuple(values)}")
    return tuple(_count(value) for value in values)


def _count(value: int) -> int:
    if not 0 <= value < 2**31:
        raise ConfigError(f"expected strides, dilations, pads and groups within 0..2**31, got {value}")
    return int(value)

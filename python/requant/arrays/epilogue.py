"""What is made of the exact int32 sums of a product or convolution: 8-bit integers, reals, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from requant import ops
from requant.arrays.intake import as_float32, as_integers, flat_float32

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_INT32, _FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)


class Requantizer:
    """How int32 sums become 8-bit integers: ``clamp(round((sum + bias) * m) + y_zero_point)``.

    ``m`` is ``a_scale * b_scale / y_scale``. With ``half_even_float`` it is rounded to float32, as is its product with
    the sum, which then goes to the nearest integer, ties to even: the bits of onnxruntime's QLinearMatMul. With
    ``gemmlowp`` it is a 32-bit fixed-point number, applied by a saturating rounding doubling high multiplication and a
    rounding shift: the bits of TFLite's reference kernels.

    Args:
        a_scale: Scale of the left operand.
        b_scale: Scale of the weights, for all or ``[N]`` for their columns.
        y_scale: Scale of the output.
        y_zero_point: The integer that stands for 0.0 in the output.
        dtype: ``int8`` or ``uint8``, the type of the output.
        bias: int32, for all columns or ``[N]``, in units of ``a_scale * b_scale``.
        clamp: Lowest and highest integer of the output, both included: ``(y_zero_point, 255)`` is a ReLU.
        rounding: ``half_even_float`` or ``gemmlowp``.

    Raises:
        ConfigError: A scale that is not finite and positive, a multiplier too large, a zero point or clamp outside
            ``dtype``, an unknown name.
        TypeError: ``y_zero_point`` or ``bias`` holds no integers.
    """

    __slots__ = ("_core",)

    def __init__(
        self,
        a_scale: float,
        b_scale: ArrayLike,
        y_scale: float,
        *,
        y_zero_point: int = 0,
        dtype: Literal["int8", "uint8"] = "uint8",
        bias: ArrayLike | None = None,
        clamp: tuple[int, int] | None = None,
        rounding: Literal["half_even_float", "gemmlowp"] = "half_even_float",
    ) -> None:
        name = np.dtype(dtype).name
        zero_point = int(as_integers("y_zero_point", y_zero_point, ()))
        columns = None if bias is None else as_integers("bias", bias, None).reshape(-1)
        scale = as_float32(b_scale).reshape(-1)
        self._core = ops.CoreRequantizer(
            rounding, float(a_scale), scale, float(y_scale), name, zero_point, columns, clamp
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """``int8`` or ``uint8``."""
        return np.dtype(self._core.dtype)


class Epilogue(NamedTuple):
    """What is made of exact sums: 8-bit integers by a requantizer, reals by scales, or nothing.

    Attributes:
        dtype: the type of the results.
        scales: scale of a, scale of b and bias, flat; None where sums or integers are wanted.
        requantizer: the core's, where integers are.
    """

    dtype: np.dtype[Any]
    scales: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]] | None
    requantizer: ops.CoreRequantizer | None

    @classmethod
    def of(
        cls,
        requantizer: Requantizer | None,
        given: tuple[ArrayLike | None, ArrayLike | None, ArrayLike | None],
        rows: tuple[int, ...],
        n: int,
    ) -> Epilogue:
        """The one for a requantizer, or for what is ``given``: scale of a, scale of b and bias.

        Raises:
            ConfigError: a scale or bias that fits neither ``rows`` nor ``n`` columns.
            TypeError: both are given, or one scale without the other.
        """
        if requantizer is None:
            scales = _scales(*given, rows, n)
            return cls(_INT32 if scales is None else _FLOAT32, scales, None)
        if any(each is not None for each in given):
            raise TypeError("expected scales and bias in the requantizer, got both it and arguments of their own")
        return cls(requantizer.dtype, None, requantizer._core)  # noqa: SLF001 - two halves of one module


def _scales(
    a: ArrayLike | None, b: ArrayLike | None, bias: ArrayLike | None, rows: tuple[int, ...], n: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]] | None:
    if a is None and b is None and bias is None:
        return None
    if a is None or b is None:
        raise TypeError("expected a_scale and b_scale together, and bias only beside them")
    absent = np.empty(0, np.float32)
    return (
        flat_float32("a_scale", a, rows),
        flat_float32("b_scale", b, (n,)),
        absent if bias is None else flat_float32("bias", bias, (n,)),
    )

"""The values that name a quantization: integer type, granularity, scheme, parameters and range.

Terms and shapes are ONNX's: ``q = clamp(round_half_even(x / scale) + zero_point)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    #: Called as work goes on with the number of samples done and the number there are (None if unknown).
    Progress = Callable[[int, int | None], None]


class QuantType(StrEnum):
    """An integer type that values are quantized to."""

    INT2 = "int2"
    UINT2 = "uint2"
    INT4 = "int4"
    UINT4 = "uint4"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"

    @cached_property
    def bits(self) -> int:
        """Width in bits: 2, 4, 8 or 16."""
        return int(self.value.removeprefix("u").removeprefix("int"))

    @property
    def signed(self) -> bool:
        """Whether negative integers are representable."""
        return not self.value.startswith("u")

    @property
    def min(self) -> int:
        """Smallest integer of the type."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def max(self) -> int:
        """Largest integer of the type."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def centre(self) -> int:
        """The integer that stands for 0 in symmetric schemes: 0, or the middle one of an unsigned type."""
        return 0 if self.signed else 1 << (self.bits - 1)

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that holds it; integers of 2 and 4 bits are held one to a byte."""
        import numpy as np

        return np.dtype(f"{'' if self.signed else 'u'}int{max(self.bits, 8)}")


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: ``[64, 32]`` has scale ``[]``."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each index of ``axis``: ``[64, 32]`` with axis 0 has scale ``[64]``."""

    axis: int


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale for each ``block_size`` values along ``axis``: ``[64, 32]``, axis 1, 16: scale ``[64, 2]``."""

    axis: int
    block_size: int


@dataclass(frozen=True, slots=True)
class PerToken:
    """One scale for each row, the last axis being the row: ``[8, 128, 32]`` has scale ``[8, 128]``."""


#: How a real becomes an integer, named after whom the formula belongs to; ``inverse`` is ``1 / scale`` in float32:
#:
#: * ``onnx``: ``rint(x / scale) + zero_point``
#: * ``torch_quantize_per_tensor``: ``rint(fma(x, inverse, zero_point))``
#: * ``torch_quantize_per_channel``: ``rint(x * inverse + zero_point)``
#: * ``torch_fake_quantize``: ``rint(x * inverse) + zero_point``
#:
#: They differ where a quotient lies on a tie or one bit beside it; each can be used with every granularity.
Rounding = Literal["onnx", "torch_quantize_per_tensor", "torch_quantize_per_channel", "torch_fake_quantize"]

Granularity = PerTensor | PerChannel | PerBlock | PerToken


class Range(NamedTuple):
    """A closed interval of reals that the integers are spread over."""

    lo: float
    hi: float


class FixedParams(NamedTuple):
    """Scale and zero point of a whole tensor, given instead of found."""

    scale: float
    zero_point: int

    def range(self, dtype: QuantType) -> Range:
        """The reals that the first and the last integer stand for."""
        return Range((dtype.min - self.zero_point) * self.scale, (dtype.max - self.zero_point) * self.scale)


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """How a tensor is quantized: to which integers, around zero or not, and how many scales it has.

    ``narrow`` leaves the lowest integer of a symmetric scheme out (-127..127), as the TFLite specification
    asks of weights; its zero point is always the centre.
    """

    dtype: QuantType = QuantType.INT8
    symmetric: bool = False
    granularity: Granularity = PerTensor()
    narrow: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", QuantType(self.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class QuantParams:
    """Scale (float32) and zero point (the type's numpy dtype), of equal shape, as the granularity says."""

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    scheme: QuantScheme


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """Integers with the parameters that give the reals back; integers of 2 and 4 bits are unpacked, one to a byte."""

    data: NDArray[Any]
    params: QuantParams

    def dequantize(self) -> NDArray[np.float32]:
        """The reals, ``(q - zero_point) * scale``, in the shape of ``data``."""
        from requant.arrays import affine

        return affine.dequantize_array(self)

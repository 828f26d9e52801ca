"""What the integers at a model's inputs and outputs stand for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from requant.arrays.affine import compute_params, dequantize_array, quantize_array
from requant.errors import ConfigError, closest
from requant.types import QuantizedTensor, QuantParams, QuantScheme, QuantType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from requant.types import Range

#: The types that an input or output may become.
DTYPES = (QuantType.UINT8, QuantType.INT8, QuantType.UINT16, QuantType.INT16)
#: The version of ONNX from which on QuantizeLinear gives integers of 16 bits.
OPSET_OF_16_BITS = 21
_PIXEL = 1 / 255

Kind = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asks of one input or output; what is None or empty follows from the model.

    Attributes:
        dtype: Integer type it shall have, of ``DTYPES``.
        scale: Step of the integers, in float32.
        zero_point: The integer that stands for zero.
        mean: Subtracted after scaling, one value or one for each channel (inputs only).
        std: Divisor after the mean, likewise.
        range: Reals to spread the integers over, in place of scale and zero point (outputs only).
    """

    dtype: QuantType
    scale: float | None = None
    zero_point: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    range: Range | None = None

    def __post_init__(self) -> None:
        if self.range is not None and (self.scale is not None or self.zero_point is not None):
            raise ConfigError("a range and a scale or zero point were given", hint="give one or the other")
        if self.zero_point is not None and self.scale is None and not self.normalised:
            raise ConfigError("a zero point was given without a scale", hint="give both")
        if self.normalised and self.scale is None and self.dtype is not QuantType.UINT8:
            raise ConfigError(f"mean and std are of pixels, which are uint8, got {self.dtype}", hint="give a scale too")

    @property
    def normalised(self) -> bool:
        """Whether a mean or a standard deviation is asked for."""
        return bool(self.mean or self.std)

    def params(self) -> QuantParams | None:
        """Scale and zero point as given, from the range, or of pixels; None where nothing says."""
        scheme = QuantScheme(self.dtype)
        if self.range is not None:
            return compute_params(*self.range, scheme)
        scale = _PIXEL if self.scale is None and self.normalised else self.scale
        if scale is None:
            return None
        return make_params(self.dtype, scale, self.zero_point or 0)


def make_params(dtype: QuantType, scale: float, zero_point: int) -> QuantParams:
    """Parameters for a whole tensor.

    Raises:
        ConfigError: ``scale`` is no positive, normal float32, or ``zero_point`` is not of ``dtype``.
    """
    with np.errstate(over="ignore", under="ignore"):
        single = np.float32(scale)
    if not np.finfo(np.float32).tiny <= single < np.inf:
        raise ConfigError(f"scale is {scale}, expected a positive, normal float32")
    if not dtype.min <= zero_point <= dtype.max:
        raise ConfigError(f"zero_point is {zero_point}, expected one of {dtype}: {dtype.min}..{dtype.max}")
    return QuantParams(np.asarray(single), np.asarray(zero_point, dtype.numpy), QuantScheme(dtype))


@dataclass(frozen=True, slots=True)
class Boundary:
    """An input or output that has become integer: ``real = ((q - zero_point) * scale - mean) / std``, in float32.

    Attributes:
        kind: ``input`` or ``output``.
        name: Its name in the graph.
        dtype: Its integer type.
        scale: Step of the integers, a float32 value.
        zero_point: The integer that stands for zero, before mean and std.
        mean: Subtracted after scaling: one value, or one for each channel.
        std: Divisor after the mean, likewise.
        axis: Where the channels are that mean and std have a value each for.
        exact: Whether the model computes the very same: nothing is rounded that was not, or left unrounded that was.
        removed: Op types that are no longer needed.
        added: Op types that had to be added.
    """

    kind: Kind
    name: str
    dtype: QuantType
    scale: float
    zero_point: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    axis: int | None = None
    exact: bool = True
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        make_params(self.dtype, self.scale, self.zero_point)
        smallest, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
        if not self.mean or not all(abs(value) <= largest for value in self.mean):
            raise ConfigError(f"mean is {_listed(self.mean)}, expected finite float32 numbers")
        if not self.std or not all(smallest <= abs(value) <= largest for value in self.std):
            raise ConfigError(f"std is {_listed(self.std)}, expected finite float32 numbers other than 0")

    @property
    def params(self) -> QuantParams:
        """Scale and zero point as ``quantize_array`` and ``dequantize_array`` take them."""
        return make_params(self.dtype, self.scale, self.zero_point)

    @property
    def channels(self) -> int:
        """How many values mean and std have: 1, or the number of channels."""
        return max(len(self.mean), len(self.std))

    def dequantize(self, integers: NDArray[Any]) -> NDArray[np.float32]:
        """The reals that ``integers`` (of ``dtype``, any shape that has ``axis``) stand for, in float32."""
        reals = dequantize_array(QuantizedTensor(integers, self.params))
        if (self.mean, self.std) == ((0.0,), (1.0,)):
            return reals
        mean, std = (self.along_axis(values, reals.ndim) for values in (self.mean, self.std))
        with np.errstate(over="ignore"):
            return np.asarray((reals - mean) / std, np.float32)

    def along_axis(self, values: tuple[float, ...], rank: int) -> NDArray[np.float32]:
        """Mean or std in a shape that broadcasts to a tensor of ``rank`` dimensions."""
        array = np.array(values, np.float32)
        return (
            array.reshape([-1] + [1] * (rank - 1 - self.axis)) if len(values) > 1 and self.axis is not None else array
        )

    def survives(self, params: QuantParams) -> bool:
        """Whether quantizing with ``params`` what the integers stand for gives every integer back."""
        if params.scheme.dtype is not self.dtype:
            return False
        every = np.arange(self.dtype.min, self.dtype.max + 1).astype(self.dtype.numpy)
        levels = np.repeat(every[:, None], self.channels, axis=1)
        reals = replace(self, axis=1).dequantize(levels)
        return bool(np.array_equal(quantize_array(reals, params).data, levels))

    @property
    def formula(self) -> str:
        """``real = ...`` in words of this boundary."""
        text = "q" if self.zero_point == 0 else f"(q {'-' if self.zero_point > 0 else '+'} {abs(self.zero_point)})"
        text = f"{text} * {self.scale:.6g}"
        if self.mean != (0.0,):
            text = f"({text} - {_listed(self.mean)})"
        return f"real = {text}" + ("" if self.std == (1.0,) else f" / {_listed(self.std)}")

    @property
    def changes(self) -> dict[str, tuple[str, ...]]:
        """What became of the graph: op types that were ``removed`` and ``added``."""
        return {"removed": self.removed, "added": self.added}

    def metadata(self) -> tuple[str, str]:
        """Key and value under which the model itself says what the integers stand for."""
        fields: dict[str, Any] = {"dtype": self.dtype.value, "scale": self.scale, "zero_point": self.zero_point}
        if (self.mean, self.std) != ((0.0,), (1.0,)):
            fields |= {"mean": list(self.mean), "std": list(self.std), "axis": self.axis}
        return f"requant.{self.kind}.{self.name}", json.dumps(fields)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def as_dtype(dtype: object) -> QuantType:
    """The integer type that ``dtype`` names: a string, a ``QuantType`` or a numpy dtype.

    Raises:
        ConfigError: it is none that an input or output can have.
    """
    try:
        name = np.dtype(dtype).name  # type: ignore[call-overload]
    except TypeError:
        name = str(dtype)
    known = [each.value for each in DTYPES]
    if name not in known:
        given = dtype if isinstance(dtype, str) else name
        raise ConfigError(f"dtype is {given!r}{closest(given, known)}", hint=f"choose one of {', '.join(known)}")
    return QuantType(name)


def _listed(values: tuple[float, ...]) -> str:
    return f"{values[0]:.6g}" if len(values) == 1 else f"[{', '.join(f'{value:.6g}' for value in values)}]"

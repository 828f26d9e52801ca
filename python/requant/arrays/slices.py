"""Which values of an array share a scale: shapes, axes and blocks, from the granularity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from requant.errors import ConfigError
from requant.types import PerBlock, PerChannel, PerTensor, PerToken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requant.types import Granularity


def scale_shape(shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """Shape of scale and zero point for data of ``shape``: ``(64, 32)`` in blocks of 16 along axis 1 has ``(64, 2)``.

    Raises:
        ConfigError: An axis outside ``shape``, or a block size below 1.
    """
    return laid_over(tuple(shape), granularity).scale_shape


class LaidOver(NamedTuple):
    """A granularity on an array: shape, axis and block size as the core takes them, and the shape of the scales."""

    shape: tuple[int, ...]
    axis: int | None
    block_size: int | None
    scale_shape: tuple[int, ...]


def laid_over(shape: tuple[int, ...], granularity: Granularity) -> LaidOver:
    """The rows of tokens are the channels of a matrix to the core.

    Raises:
        ConfigError: As :func:`scale_shape`.
    """
    match granularity:
        case PerTensor():
            return LaidOver(shape, None, None, ())
        case PerToken():
            rows = shape[: _axis(-1, shape)]
            return LaidOver((math.prod(rows), shape[-1]), 0, None, rows)
        case PerChannel():
            axis = _axis(granularity.axis, shape)
            return LaidOver(shape, axis, None, (shape[axis],))
        case PerBlock():
            axis, size = _axis(granularity.axis, shape), granularity.block_size
            if size < 1:
                raise ConfigError(f"expected a block_size of at least 1, got {size}")
            return LaidOver(shape, axis, size, (*shape[:axis], -(-shape[axis] // size), *shape[axis + 1 :]))


def _axis(axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ConfigError(f"axis {axis} is out of bounds for shape {shape}")
    return axis % len(shape)

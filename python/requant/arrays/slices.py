"""Which values of an array share a scale: shapes, axes and blocks, from the granularity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

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
    shape = tuple(shape)
    match granularity:
        case PerTensor():
            return ()
        case PerToken():
            return shape[: _axis(-1, shape)]
        case PerChannel(axis):
            return (shape[_axis(axis, shape)],)
        case PerBlock(axis, block_size):
            if block_size < 1:
                raise ConfigError(f"expected a block_size of at least 1, got {block_size}")
            axis = _axis(axis, shape)
            return (*shape[:axis], -(-shape[axis] // block_size), *shape[axis + 1 :])


def flat_form(shape: tuple[int, ...], granularity: Granularity) -> tuple[tuple[int, ...], int | None, int | None]:
    """Shape, axis and block size as the core takes them; rows are the channels of a matrix to it."""
    match granularity:
        case PerTensor():
            return shape, None, None
        case PerToken():
            return (math.prod(shape[: _axis(-1, shape)]), shape[-1]), 0, None
        case PerChannel(axis):
            return shape, _axis(axis, shape), None
        case PerBlock(axis, block_size):
            return shape, _axis(axis, shape), block_size


def _axis(axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ConfigError(f"axis {axis} is out of bounds for shape {shape}")
    return axis % len(shape)

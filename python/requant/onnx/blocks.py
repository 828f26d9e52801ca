"""What weights of any size hold, looked at a cacheful at a time, so that no copy of the whole is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import ModelError
from requant.onnx.mapped import forget
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

_VALUES = 1 << 16
_FORGET = 1 << 26  # bytes of a file that are looked at before its pages are given back
_TINY = np.finfo(np.float32).tiny


def blocks(array: NDArray[Any]) -> Iterator[slice]:
    """Ranges of the first axis, each of an even number of rows and about a cacheful of values."""
    rows = 2 * max(1, _VALUES * len(array) // max(array.size, 1) // 2)
    seen = 0
    for start in range(0, len(array), rows):
        yield slice(start, start + rows)
        seen += array.nbytes * rows // len(array)
        if seen > _FORGET:
            forget(array)
            seen = 0


def count_not_finite(array: Floats) -> int:
    """How many values are NaN or infinite."""
    flat = np.atleast_1d(array)
    return sum(flat[part].size - int(np.count_nonzero(np.isfinite(flat[part]))) for part in blocks(flat))


def finite(array: NDArray[Any] | None, name: str) -> Floats:
    """The weight ``name``.

    Raises:
        ModelError: it is missing, or holds NaN or infinity.
    """
    if array is None:
        raise ModelError(f"weight {name!r} is not a constant")
    bad = count_not_finite(array)
    if bad:
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ModelError(
            f"weight {name!r} {array.shape} holds {counted(bad, 'NaN or infinite value(s)')}, the first at {where}",
            hint="repair the float model; a weight that is not finite cannot be quantized",
        )
    return array


def extent(array: Floats) -> tuple[float, float, float]:
    """The least and largest value, and the mean square, in the order in which values lie in memory."""
    flat = array.T if array.flags.f_contiguous else array
    low, high, power = np.inf, -np.inf, 0.0
    for part in blocks(flat):
        block = flat[part].astype(np.float64)
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        power += float(np.square(block).sum())
    return low, high, power / array.size


def holds_subnormals(array: Floats) -> bool:
    """Whether a value is below 2^-126 in magnitude, and not zero."""
    flat = np.atleast_1d(array)
    return any(bool(np.any((size > 0) & (size < _TINY))) for size in (np.abs(flat[part]) for part in blocks(flat)))


def largest_terms(rows: Floats) -> NDArray[np.float64]:
    """The largest magnitude in each row of a matrix."""
    return _of_each(rows, lambda block: np.abs(block).max(axis=1))


def largest_pairs(rows: Floats) -> NDArray[np.float64]:
    """For each row the largest term, or sum of two at 2i and 2i + 1 of one sign: what a kernel adds in 16 bits.

    That is the largest of ``|a|``, ``|b|`` and ``|a + b|``, since of unlike signs the sum is smaller than a term.
    """
    return np.maximum(largest_terms(rows), _of_each(rows, _pair_sums))


def _pair_sums(block: NDArray[np.float64]) -> Floats:
    pairs = block[:, 1::2]
    largest: Floats = np.abs(block[:, : 2 * pairs.shape[1] : 2] + pairs).max(axis=1, initial=0.0)
    return largest


def _of_each(rows: Floats, largest: Callable[[NDArray[np.float64]], Floats]) -> NDArray[np.float64]:
    """``largest`` of each row, in the order in which they lie in memory."""
    found = np.zeros(len(rows))
    if rows.flags.c_contiguous or not rows.flags.f_contiguous:
        for part in blocks(rows):
            found[part] = largest(rows[part].astype(np.float64))
        return found
    for part in blocks(rows.T):
        np.maximum(found, largest(rows[:, part].astype(np.float64)), out=found)
    return found


def rounding_error(
    weight: Floats, data: NDArray[Any], scale: Floats, zero_point: int
) -> tuple[float, float, float, float]:
    """How well ``(data - zero_point) * scale`` stands for ``weight``.

    Returns:
        The least and largest value of ``weight``, its mean square, and that of its distance from the reals in float32.
    """
    low, high, signal, noise = np.inf, -np.inf, 0.0, 0.0
    per_row = scale.ndim == weight.ndim and len(scale) > 1
    for part in blocks(weight):
        exact = weight[part].astype(np.float64)
        reals = (data[part].astype(np.float32) - np.float32(zero_point)) * (scale[part] if per_row else scale)
        low, high = min(low, float(exact.min())), max(high, float(exact.max()))
        signal += float(np.square(exact).sum())
        noise += float(np.square(exact - reals).sum())
    return low, high, signal / weight.size, noise / weight.size

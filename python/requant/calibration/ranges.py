"""A tensor's histogram beside the range that was chosen for it, and what other ranges would have cost.

A wide range rounds coarsely (granular error), a narrow one clips (overload error). The curve shows both over ranges
that are the chosen one times a factor: same zero point, another scale. All of it comes from the statistic of constant
size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from requant.ops import TensorStatistics
    from requant.types import QuantType

#: Bars of a histogram.
BARS = 64
#: How far beyond the chosen range a histogram reaches, in widths of that range; what lies outside is counted.
_MARGIN = 0.5
_PER_OCTAVE = 3
_OCTAVES_BELOW = 4
_OCTAVES_ABOVE = (2, 12)  # at least, at most


@dataclass(frozen=True, slots=True)
class RangeCost:
    """What a range costs: mean squared error of rounding and of clipping, and the share of values clipped.

    ``factor`` is its width as a multiple of the chosen one's.
    """

    factor: float
    lo: float
    hi: float
    granular: float
    overload: float
    clipped: float

    @property
    def total(self) -> float:
        """Mean squared error."""
        return self.granular + self.overload


@dataclass(frozen=True, slots=True)
class RangeView:
    """What was seen of a tensor and how its range lies in it.

    Attributes:
        name: the tensor.
        dtype: its integer type.
        values: how many finite values were seen.
        zeros: how many of them were 0; they are in the histogram, too.
        min: the smallest.
        max: the largest.
        lo: the real of the first integer.
        hi: the real of the last integer.
        start: where the histogram begins; ``below`` values are smaller.
        stop: where it ends; ``above`` values are larger.
        counts: values in each of its bars, which are equally wide.
        below: number of values below ``start``.
        above: number of values above ``stop``.
        curve: the cost of narrower and wider ranges, ascending; the chosen one has the factor 1.
    """

    name: str
    dtype: str
    values: int
    zeros: int
    min: float
    max: float
    lo: float
    hi: float
    start: float
    stop: float
    counts: tuple[int, ...]
    below: int
    above: int
    curve: tuple[RangeCost, ...]

    @property
    def chosen(self) -> RangeCost:
        """The cost of the chosen range."""
        return next(point for point in self.curve if point.factor == 1)

    @property
    def best(self) -> RangeCost:
        """The point of the curve with the least error; of equals the narrowest."""
        return min(self.curve, key=lambda point: point.total)


def view_range(name: str, seen: TensorStatistics, scale: float, zero_point: int, dtype: QuantType) -> RangeView:
    """The histogram of ``seen`` beside the range that ``scale`` and ``zero_point`` spread the integers over.

    Raises:
        CalibrationError: nothing finite was seen.
    """
    lo, hi = (dtype.min - zero_point) * scale, (dtype.max - zero_point) * scale
    margin = _MARGIN * (hi - lo)
    start, stop = min(lo, max(seen.min, lo - margin)), max(hi, min(seen.max, hi + margin))
    counts, below, above = _bars(seen, start, stop)
    curve = tuple(
        RangeCost(factor, lo * factor, hi * factor, error["granular"], error["overload"], error["clipped"])
        for factor in _factors(seen, lo, hi, scale)
        for error in [seen.error(scale * factor, zero_point, dtype.value)]
    )
    return RangeView(
        name=name,
        dtype=dtype.value,
        values=seen.count,
        zeros=seen.zeros,
        min=seen.min,
        max=seen.max,
        lo=lo,
        hi=hi,
        start=start,
        stop=stop,
        counts=counts,
        below=below,
        above=above,
        curve=curve,
    )


def _bars(seen: TensorStatistics, start: float, stop: float) -> tuple[tuple[int, ...], int, int]:
    """Counts of the values in each bar, below and above; mass is taken to be even within a bin of the statistic."""
    edges, counts = seen.histogram()
    zero = int(np.searchsorted(edges, 0.0, side="right")) - 1
    nonzero = counts.astype(np.int64)
    nonzero[zero] -= seen.zeros
    # Running sums are rounded, not the counts: so they add up.
    bars = np.linspace(start, stop, BARS + 1)
    running = np.rint(np.interp(bars, edges, np.concatenate([[0], np.cumsum(nonzero)]))).astype(np.int64)
    if seen.min >= start:
        running[0] = 0
    if seen.max <= stop:  # may begin a bin of its own
        running[-1] = seen.count - seen.zeros
    heights = np.diff(running)
    heights[min(int((0.0 - start) / (stop - start) * BARS), BARS - 1)] += seen.zeros
    return tuple(heights.tolist()), int(running[0]), seen.count - seen.zeros - int(running[-1])


def _factors(seen: TensorStatistics, lo: float, hi: float, scale: float) -> list[float]:
    """Factors from a narrow range to one that clips nothing, 1 among them, whose scales are normal float32 numbers."""
    covers = max(seen.max / hi if hi > 0 else 0.0, seen.min / lo if lo < 0 else 0.0, 1.0)
    above = min(max(math.ceil(math.log2(covers)) + 1, _OCTAVES_ABOVE[0]), _OCTAVES_ABOVE[1])
    factors = [2 ** (i / _PER_OCTAVE) for i in range(-_OCTAVES_BELOW * _PER_OCTAVE, above * _PER_OCTAVE + 1)]
    smallest, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    return [factor for factor in factors if factor == 1 or smallest <= scale * factor <= largest]

"""How far a tensor is from what it should be: power of the error over that of the signal, cosine, largest error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.report import OutputQuality

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_NO_SIGNAL = 1e20  # -200 dB


class Distance:
    """Running sums of a signal, its error and their products."""

    def __init__(self) -> None:
        self.seen = False
        self.signal = self.noise = self.dot = self.other = self.peak = 0.0

    def add(self, expected: NDArray[Any], got: NDArray[Any]) -> None:
        """Take in some numbers, summed in float64; where the expected ones are not finite, nothing is compared.

        An output of another shape than expected, as outputs that depend on data may have, is nothing but error.
        """
        expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
        if got.shape != expected.shape:
            got = np.zeros_like(expected)
        finite = np.isfinite(expected)
        expected, got = expected[finite], got[finite]
        self.seen = True
        if not np.isfinite(got).all():
            self.noise = math.inf
            return
        with np.errstate(over="ignore"):  # of doubles whose squares are none
            self.signal += float(np.sum(expected**2))
            self.other += float(np.sum(got**2))
            self.dot += float(np.sum(expected * got))
            self.noise += float(np.sum((expected - got) ** 2))
        self.peak = max(self.peak, float(np.max(np.abs(expected - got), initial=0.0)))

    @property
    def relative(self) -> float:
        """Power of the error over that of the signal, at most 1e20, which stands for no signal or endless noise."""
        if self.noise <= 0:
            return 0.0
        return min(self.noise / self.signal, _NO_SIGNAL) if self.signal > 0 else _NO_SIGNAL

    def quality(self, name: str) -> OutputQuality:
        """The distance so far, for a tensor called ``name``."""
        length = math.sqrt(self.signal * self.other)
        return OutputQuality(
            name=name,
            sqnr_db=decibels(self.signal, self.noise),
            cosine=self.dot / length if length > 0 else float(self.noise == 0),
            max_error=self.peak,
        )


def pooled(distances: Sequence[Distance]) -> tuple[float, float]:
    """The ``relative`` noise of all samples together, and its standard error, from the distances of each.

    A ratio of two sums over the samples, its error that of the linear approximation (Cochran, Sampling Techniques,
    1977, chapter 6); 0 where there is only one sample, and nothing to tell it by.
    """
    whole, count = Distance(), len(distances)
    whole.noise, whole.signal = (sum(getattr(d, part) for d in distances) for part in ("noise", "signal"))
    noise = whole.relative
    if count < 2 or not 0 < noise < _NO_SIGNAL:
        return noise, 0.0
    spread = sum((d.noise - noise * d.signal) ** 2 for d in distances)
    return noise, math.sqrt(spread * count / (count - 1)) / whole.signal


def decibels(signal: float, noise: float) -> float | None:
    """``10 log10(signal / noise)``; None where there is no noise, -200 where there is no signal or no end of noise."""
    if noise <= 0:
        return None
    if not math.isfinite(noise):
        return -200.0
    return max(10 * math.log10(signal / noise), -200.0) if signal > 0 else -200.0

"""Factors for the channels that convolutions share, by what rounding then costs.

A tensor has one scale, and so has each output channel of the convolution behind it. A channel of little magnitude with
large weights, as networks have them that were rescaled, pruned or trained without normalization, gets few integers on
the one side and takes them from its neighbours on the other. As in SmoothQuant (Xiao et al. 2022, arXiv:2211.10438),
``f_i = x_i^alpha / w_i^(1 - alpha)`` divides channel i, with x_i its reach and w_i its largest weight. Alpha is the one
with the least power of rounding behind the convolutions, in twelfths, over that of the signal, in output channels o::

    activation    (width / 255)^2  sum_i |w_oi|^2 f_i^2
    weights       (max_i |w_oi| f_i / 127)^2  t sum_i p_i / f_i^2
    signal        sum_i |w_oi|^2 p_i

with ``width`` the range of all channels, t the taps of a window, and p_i the mean square of channel i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.onnx.rescale import powers_of_two

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

#: Of several that do alike the first.
ALPHAS = (0.5, 0.75, 0.25, 1.0, 0.0)
_STEPS, _WEIGHT_STEPS = 255, 127


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """How far each channel of a tensor reaches in the sample, below zero and above it, and its mean square."""

    below: Array
    above: Array
    power: Array

    def joined(self, other: Ends) -> Ends:
        """Of this sample and one as large."""
        below, above = np.maximum(self.below, other.below), np.maximum(self.above, other.above)
        return Ends(below, above, (self.power + other.power) / 2)


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A convolution: magnitudes and energies of its weights over a window ``[groups, outputs of one, inputs of one]``.

    Attributes:
        peak: the largest magnitude of a window.
        energy: its sum of squares.
        taps: its size.
        power: mean square of each channel that is read ``[groups, inputs of one]``.
        rounds: whether what it reads is rounded, and not only its weights.
    """

    peak: Array
    energy: Array
    taps: int
    power: Array
    rounds: bool

    @classmethod
    def of(cls, weight: Array, groups: int, power: Array, *, rounds: bool) -> Reader:
        """That with ``weight`` ``[outputs, inputs of a group, ...]``, which reads channels of mean square ``power``."""
        windows = weight.reshape(groups, -1, weight.shape[1], weight[0, 0].size).astype(np.float64)
        energy = np.square(windows).sum(axis=3)
        return cls(np.abs(windows).max(axis=3), energy, windows.shape[3], power.reshape(groups, -1), rounds)


def level(ends: Sequence[Ends], readers: Sequence[Reader]) -> tuple[NDArray[np.float32], float]:
    """The factors of the best alpha, ones where none is better than they, and how much power rounding loses by them.

    Args:
        ends: of each tensor of integers that is divided.
        readers: all convolutions behind them.
    """
    reach = np.max([np.maximum(each.below, each.above) for each in ends], axis=0)
    weight = np.max([reader.peak.max(axis=1).reshape(-1) for reader in readers], axis=0)
    live = (reach > 0) & (weight > 0)
    best = np.ones(len(reach), np.float32)
    before = least = _power(ends, readers, best)
    if not (live.any() and np.isfinite(before) and before > 0):
        return best, 1.0
    for alpha in ALPHAS:
        factors = np.ones(len(reach), np.float32)
        factors[live] = powers_of_two(reach[live] ** alpha / weight[live] ** (1 - alpha))
        power = _power(ends, readers, factors)
        if power < least:
            best, least = factors, power
    return best, before / least


def _power(ends: Sequence[Ends], readers: Sequence[Reader], factors: Array) -> float:
    widths = [float((each.below / factors).max() + (each.above / factors).max()) for each in ends]
    steps = float(np.sum(np.square(widths))) / _STEPS**2
    total = 0.0
    for reader in readers:
        each = factors.reshape(reader.power.shape).astype(np.float64)
        noise = np.square((reader.peak * each[:, None]).max(axis=2) / _WEIGHT_STEPS)
        noise *= reader.taps * (reader.power / each**2).sum(axis=1)[:, None]
        if reader.rounds:
            noise += steps * (reader.energy * each[:, None] ** 2).sum(axis=2)
        signal = (reader.energy * reader.power[:, None]).sum(axis=2)
        total += float(np.sum(noise / np.where(signal > 0, signal, np.inf)))
    return total

"""Cosine of the angle between all values and all targets, each taken as one vector."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from requant.metrics.distance import distance

if TYPE_CHECKING:
    from requant.metrics.spec import Array


def _sums(got: Array, wanted: Array) -> tuple[float, ...]:
    return float(got @ wanted), float(got @ got), float(wanted @ wanted)


def _cosine(dot: float, got: float, wanted: float) -> float:
    if got <= 0 or wanted <= 0:
        return float(got == wanted)
    return dot / math.sqrt(got) / math.sqrt(wanted)


METRIC = distance("cosine", _sums, _cosine, higher_is_better=True)

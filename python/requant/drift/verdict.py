"""How live values lie in the ranges that a model was given for good: what one sees of a tensor, and the verdict.

Static quantization trusts that what comes is like what was calibrated on. Far more error with the frozen ranges than
with the best ones for what really came means that they do not fit; whether it comes from rounding or from clipping says
how. What few values or few requests may bring by chance is allowed for. Beside it stands the error of dynamic
quantization, whose ranges come from each request alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.arrays.affine import compute_params
from requant.calibration.ranges import view_range
from requant.documents import document_of
from requant.observers import observe_request
from requant.pages import results
from requant.pages.page import fragment, page
from requant.types import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from requant.calibration.ranges import RangeView
    from requant.onnx.frozen import FrozenRange

SCHEMA = 1
#: Times the error at which frozen ranges are said not to fit: 4 is one bit of resolution (6 dB).
TOLERANCE = 4.0
#: Of a thousand matching tensors about one exceeds what is allowed for by chance.
_CHANCE = 999.0
_STANDARD_ERRORS = 2.0
#: Of as many requests as calibration saw, those with a value beyond all of these: on both ends together at most this
#: many, 999 times of 1,000 (``(k + 2) / 2^(k + 1)`` times k or more).
_BEYOND = 12
#: Share of values beyond the range from which on the values, and not some outliers, are said to be wider.
WIDER = 0.01


class Verdict(StrEnum):
    """How live values lie in a frozen range."""

    MATCHES = "matches"  # the error, chance apart, is at most `tolerance` times the best that could be had
    NARROWER = "narrower"  # too much error, most of it from rounding: the range is wider than needed
    WIDER = "wider"  # too much error, most of it from clipping at least `WIDER` of the values
    OUTLIERS = "outliers"  # too much error, most of it from clipping fewer


@dataclass(frozen=True, slots=True)
class TensorDrift:
    """A tensor of live traffic in its frozen range.

    Attributes:
        name: the tensor.
        lo: the real of the first integer.
        hi: the real of the last integer.
        values: finite values that were looked at.
        not_finite: NaN and infinities.
        min: the smallest value.
        max: the largest.
        clipped: share of the values that the range clips.
        granular: mean squared error of rounding.
        overload: mean squared error of clipping.
        static_error: their sum: what the frozen range costs.
        dynamic_error: mean squared error with the range of each request itself.
        ratio: ``static_error / dynamic_error``; None where only the latter is 0.
        best_error: mean squared error of the best range for all that was seen, as calibrating anew would find it.
        gain: ``static_error / best_error``, what calibrating anew would bring; None where only the latter is 0.
        expected: the same for the samples of calibration, where a table was given, at least 1.
        chance: the part of ``overload`` that may be chance, as few of the requests are clipped at all.
        tolerance: times the best error that a matching range may cost: more of few values than of many.
        verdict: ``matches``, ``narrower``, ``wider`` or ``outliers``.
    """

    name: str
    lo: float
    hi: float
    values: int
    not_finite: int
    min: float
    max: float
    clipped: float
    granular: float
    overload: float
    static_error: float
    dynamic_error: float
    ratio: float | None
    best_error: float
    gain: float | None
    expected: float
    verdict: Verdict
    chance: float = 0.0
    tolerance: float = TOLERANCE


@dataclass(frozen=True, slots=True)
class Unwatched:
    """A tensor with a frozen range that a monitor cannot see, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drift:
    """What a monitor found.

    Attributes:
        model: what the model is called.
        requests: how many there were.
        sampled: how many of them were looked at.
        tensors: those that were watched and seen, in the model's order.
        verdict: ``matches`` if all do, else that of the tensor that would gain most from calibrating anew.
        ranges: histograms of live values in the frozen ranges, of the tensors that match least.
        unwatched: the tensors that were to be watched and were not: those that cannot be seen, and those in branches
            that no request took.
    """

    model: str
    requests: int
    sampled: int
    tensors: tuple[TensorDrift, ...]
    verdict: Verdict
    ranges: tuple[RangeView, ...] = ()
    unwatched: tuple[Unwatched, ...] = ()

    @property
    def worst(self) -> tuple[TensorDrift, ...]:
        """All tensors, those that do not match first, and of these the ones that would gain most first."""
        return by_badness(self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        return document_of(self, SCHEMA)

    def to_html(self) -> str:
        """One self-contained page, at most 500 KB."""
        return page(self.model, results.drift(self))

    def _repr_html_(self) -> str:
        return fragment(results.drift(self))


class TensorMonitor:
    """What was seen of one tensor: a statistic of constant size, and the error of dynamic quantization."""

    def __init__(self, frozen: FrozenRange) -> None:
        self.frozen = frozen
        self.statistics = ops.TensorStatistics()
        self.dynamic = 0.0  # squared error, summed
        self.requests = self.clipping = 0  # how many there were, and how many of them the range clips

    def copy(self) -> TensorMonitor:
        """The same, to be changed apart."""
        same = TensorMonitor(self.frozen)
        same.merge(self)
        return same

    def merge(self, other: TensorMonitor) -> None:
        """Take in all that ``other`` has seen."""
        self.statistics.merge(other.statistics)
        self.dynamic += other.dynamic
        self.requests += other.requests
        self.clipping += other.clipping

    def observe(self, x: NDArray[np.float32]) -> None:
        """Take in what one request holds."""
        frozen = self.frozen
        if frozen.low is not None or frozen.high is not None:
            x = np.clip(x, frozen.low, frozen.high)
        found = observe_request(self.statistics, x, frozen.dtype)
        if found is None:
            return
        lo, hi, error = found
        half = frozen.scale / 2
        self.dynamic += error
        self.requests += 1
        self.clipping += lo < frozen.lo - half or hi > frozen.hi + half

    def view(self) -> RangeView:
        """The histogram beside the frozen range."""
        frozen = self.frozen
        return view_range(frozen.name, self.statistics, frozen.scale, frozen.zero_point, frozen.dtype)

    def judged(self, calibrated: ops.TensorStatistics | None) -> TensorDrift:
        """The verdict; ``calibrated`` is what was seen of the tensor in calibration, if it is known."""
        frozen, seen = self.frozen, self.statistics
        cost = _cost(frozen, seen)
        static = cost["granular"] + cost["overload"]
        (best, width), dynamic = _best(frozen, seen), self.dynamic / seen.count
        best = min(best, static)
        gain, expected = _ratio(static, best), 1.0
        if calibrated is not None and calibrated.count:
            then = _cost(frozen, calibrated)
            usual = _ratio(then["granular"] + then["overload"], _best(frozen, calibrated)[0])
            expected = max(expected, usual or 1.0)
        chance = self._chance() * cost["overload"]
        tolerance = max(TOLERANCE, _reach(seen.count) ** 2) * expected  # error grows as the square of the range
        return TensorDrift(
            name=frozen.name,
            lo=frozen.lo,
            hi=frozen.hi,
            values=seen.count,
            not_finite=seen.nan_count + seen.inf_count,
            min=seen.min,
            max=seen.max,
            clipped=cost["clipped"],
            granular=cost["granular"],
            overload=cost["overload"],
            static_error=static,
            dynamic_error=dynamic,
            ratio=_ratio(static, dynamic),
            best_error=best,
            gain=gain,
            expected=expected,
            verdict=_verdict(frozen, cost, chance, tolerance * best, width * math.sqrt(tolerance)),
            chance=chance,
            tolerance=tolerance,
        )

    def _chance(self) -> float:
        """The share of the clipping that may be chance, by how many requests are clipped and how far out values lie."""
        frozen, seen = self.frozen, self.statistics
        if not self.clipping:
            return 0.0
        margin = (_reach(seen.count) - 1) * max(-frozen.lo, frozen.hi)
        if self.clipping <= _BEYOND and frozen.lo - margin <= seen.min and seen.max <= frozen.hi + margin:
            return 1.0
        return min(_STANDARD_ERRORS * math.sqrt(1 / self.clipping - 1 / self.requests), 1.0)


def _reach(values: int) -> float:
    """How far, in largest magnitudes of ``values``, that of as many others of the same kind lies out at most.

    With exponential tails the largest of ``n`` values is about ``log n`` scales out, and that of other ``n`` differs by
    a logistic variable, which 1 of 1,000 times exceeds ``log 999``.
    """
    return 1 + math.log(_CHANCE) / math.log(max(values, 2))


def _verdict(frozen: FrozenRange, cost: Mapping[str, float], chance: float, most: float, widest: float) -> Verdict:
    """The verdict on a range of that ``cost``, where ``most`` is the error of one that fits, and ``widest`` its width.

    A range no wider may round worse than that: where most values are equal, and lie between two steps.
    """
    granular, overload = cost["granular"], cost["overload"] - chance
    if granular + overload <= most:
        return Verdict.MATCHES
    if granular >= overload:
        return Verdict.MATCHES if frozen.hi - frozen.lo <= widest else Verdict.NARROWER
    return Verdict.WIDER if cost["clipped"] >= WIDER else Verdict.OUTLIERS


def _cost(frozen: FrozenRange, seen: ops.TensorStatistics) -> dict[str, float]:
    return seen.error(frozen.scale, frozen.zero_point, frozen.dtype.value)


def _best(frozen: FrozenRange, seen: ops.TensorStatistics) -> tuple[float, float]:
    """The least mean squared error of any range for ``seen``, and the width of that range."""
    lo, hi = seen.range("mse", frozen.dtype.value, False, 100.0)
    params = compute_params(lo, hi, QuantScheme(frozen.dtype))
    error = seen.error(float(params.scale), int(params.zero_point), frozen.dtype.value)
    return error["granular"] + error["overload"], hi - lo


def _ratio(a: float, b: float) -> float | None:
    if a <= 0:
        return 1.0
    return a / b if b > 0 else None


def by_badness(tensors: Iterable[TensorDrift]) -> tuple[TensorDrift, ...]:
    """Those that do not match first, and of these the ones that would gain most first."""
    return tuple(sorted(tensors, key=badness, reverse=True))


def badness(tensor: TensorDrift) -> tuple[bool, float]:
    """Orders tensors: those that do not match last, and by what calibrating anew would gain."""
    gain = np.inf if tensor.gain is None else tensor.gain
    return tensor.verdict is not Verdict.MATCHES, float(gain / tensor.expected)

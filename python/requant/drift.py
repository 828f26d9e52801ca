"""How live values lie in the ranges that a model was given for good: what one sees of a tensor, and the verdict.

Static quantization trusts that what comes is like what was calibrated on. Far more error with the frozen ranges than
with the best ones for what really came means that they do not fit; whether it comes from rounding or from clipping says
how. Beside it stands the error of dynamic quantization, whose ranges come from each request alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.pages import results
from requant.pages.page import fragment, page
from requant.ranges import view_range
from requant.types import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from requant.onnx.frozen import FrozenRange
    from requant.ranges import RangeView

SCHEMA = 1
#: Times the error at which frozen ranges are said not to fit: 4 is one bit of resolution (6 dB).
TOLERANCE = 4.0
#: Share of values beyond the range from which on the values, and not some outliers, are said to be wider.
WIDER = 0.01
_CHUNK = 1 << 15


class Verdict(StrEnum):
    """How live values lie in a frozen range."""

    MATCHES = "matches"  # the error is at most `TOLERANCE` times the best that could be had
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
    """

    model: str
    requests: int
    sampled: int
    tensors: tuple[TensorDrift, ...]
    verdict: Verdict
    ranges: tuple[RangeView, ...] = ()

    @property
    def worst(self) -> tuple[TensorDrift, ...]:
        """All tensors, those that do not match first, and of these the ones that would gain most first."""
        return by_badness(self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        return {"schema": SCHEMA, **asdict(self)}

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

    def copy(self) -> TensorMonitor:
        """The same, to be changed apart."""
        same = TensorMonitor(self.frozen)
        same.merge(self)
        return same

    def merge(self, other: TensorMonitor) -> None:
        """Take in all that ``other`` has seen."""
        self.statistics.merge(other.statistics)
        self.dynamic += other.dynamic

    def measured(self, x: NDArray[np.float32]) -> TensorMonitor:
        """What one request holds."""
        part = TensorMonitor(self.frozen)
        if self.frozen.low is not None or self.frozen.high is not None:
            x = np.clip(x, self.frozen.low, self.frozen.high)
        part.statistics.observe(x)
        if part.statistics.nan_count or part.statistics.inf_count:
            x = x[np.isfinite(x)]
        if x.size:
            lo, hi = part.statistics.min, part.statistics.max
            own = ops.compute_params(lo, hi, QuantScheme(self.frozen.dtype))
            flat, buffer = x.reshape(-1), np.empty(min(x.size, _CHUNK), np.float32)
            for start in range(0, flat.size, _CHUNK):  # in pieces that stay in the cache
                values = flat[start : start + _CHUNK]
                error = ops.fake_quantize_array(values, own, threads=1, out=buffer[: values.size])
                error -= values
                part.dynamic += float(np.dot(error, error))
        return part

    def view(self) -> RangeView:
        """The histogram beside the frozen range."""
        frozen = self.frozen
        return view_range(frozen.name, self.statistics, frozen.scale, frozen.zero_point, frozen.dtype)

    def judged(self, calibrated: ops.TensorStatistics | None) -> TensorDrift:
        """The verdict; ``calibrated`` is what was seen of the tensor in calibration, if it is known."""
        frozen, seen = self.frozen, self.statistics
        cost = _cost(frozen, seen)
        static = cost["granular"] + cost["overload"]
        dynamic, best = self.dynamic / seen.count, min(_best(frozen, seen), static)
        gain, expected = _ratio(static, best), 1.0
        if calibrated is not None and calibrated.count:
            then = _cost(frozen, calibrated)
            usual = _ratio(then["granular"] + then["overload"], _best(frozen, calibrated))
            expected = max(expected, usual or 1.0)
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
            verdict=_verdict(gain, expected, cost),
        )


def _verdict(gain: float | None, expected: float, cost: Mapping[str, float]) -> Verdict:
    if gain is not None and gain <= TOLERANCE * expected:
        return Verdict.MATCHES
    if cost["granular"] >= cost["overload"]:
        return Verdict.NARROWER
    return Verdict.WIDER if cost["clipped"] >= WIDER else Verdict.OUTLIERS


def _cost(frozen: FrozenRange, seen: ops.TensorStatistics) -> dict[str, float]:
    return seen.error(frozen.scale, frozen.zero_point, frozen.dtype.value)


def _best(frozen: FrozenRange, seen: ops.TensorStatistics) -> float:
    """The least mean squared error of any range for ``seen``."""
    lo, hi = seen.range("mse", frozen.dtype.value, False, 100.0)
    params = ops.compute_params(lo, hi, QuantScheme(frozen.dtype))
    error = seen.error(float(params.scale), int(params.zero_point), frozen.dtype.value)
    return error["granular"] + error["overload"]


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

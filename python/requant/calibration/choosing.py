"""Which range an activation gets: that of a calibration method, or of the one that suits what reads the activation.

An error ``e`` of an activation reaches the output of a layer as ``W e``. Rounding is as good as independent from value
to value; clipping has one sign, hits certain channels, and several of them at once, so that what it costs depends on
the weights that it meets. With a gain for each (see ``requant.calibration.gains``) the error at the outputs is, for any
range,

    gain.rounding * granular(range) + gain.clipping(share clipped) * overload(range)

both errors from the statistic of all samples. Method ``auto`` takes the method whose range has the least, and a clip of
``auto`` the bound; ``mse`` and no bound, where no other is clearly better.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.arrays.affine import compute_params
from requant.config import AUTO, METHODS
from requant.errors import CalibrationError
from requant.types import Range
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from requant import ops
    from requant.config import QuantConfig
    from requant.planning.tensors import TensorPlan
    from requant.types import QuantScheme

#: The method that another must clearly be better than.
USUAL = "mse"
#: What another choice's error must be below, of the usual one's: the statistic is of samples, and the gain of fewer.
_CLEARLY = 0.9
_BOUNDS = [2 ** (-i / 4) for i in range(1, 25)]  # of the largest magnitude, down to 1/64


#: Shares of the values for whose clipping there is a gain: what few large values cost, many smaller ones need not.
SHARES = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, slots=True)
class OutputGain:
    """The relative power of the error at the outputs of what reads an activation, for the mean square of its own.

    ``clipping`` is that of clipping each of ``SHARES`` of the values.
    """

    rounding: float
    clipping: tuple[float, ...]

    def error(self, seen: ops.TensorStatistics, chosen: Range, scheme: QuantScheme) -> float:
        """What a range costs at the outputs."""
        params = compute_params(chosen.lo, chosen.hi, scheme)
        cost = seen.error(float(params.scale), int(params.zero_point), scheme.dtype.value)
        place = min(bisect_left(SHARES, cost["clipped"]), len(SHARES) - 1)
        return self.rounding * cost["granular"] + self.clipping[place] * cost["overload"]


#: Of what was not measured: the error of the tensor itself.
EVEN = OutputGain(1.0, (1.0,) * len(SHARES))


@dataclass(frozen=True, slots=True)
class Choice:
    """The range of an activation, the calibration method it is of, and the bound that cut it, if one did."""

    method: str
    range: Range
    bound: float | None = None


def choose(tensor: TensorPlan, seen: ops.TensorStatistics, gain: OutputGain | None, config: QuantConfig) -> Choice:
    """The range of ``tensor``, whose values are those ``seen``.

    Raises:
        CalibrationError: no finite value was seen, or there is no ``gain`` to choose by.
    """
    method, scheme = tensor.method or config.method, tensor.scheme
    if gain is None and AUTO in (method, tensor.clip):
        raise CalibrationError(
            f"the calibration table does not say what errors of tensor {tensor.name!r} cost at the outputs of layers",
            hint="make one with `requant calibrate`, or choose by data",
        )
    if method == AUTO:
        assert gain is not None  # refused above
        method = best_method(tensor.name, seen, gain, scheme, config.percentile)
    found = range_of(tensor.name, seen, method, scheme, config.percentile)
    if tensor.clip is None:
        return Choice(method, found)
    if not isinstance(tensor.clip, str):
        return Choice(method, _cut(found, tensor.clip), tensor.clip)
    assert gain is not None
    usual = gain.error(seen, found, scheme)
    largest = max(-seen.min, seen.max)
    tried = {bound: _cut(Range(seen.min, seen.max), bound) for bound in (largest * part for part in _BOUNDS)}
    costs = {bound: gain.error(seen, cut, scheme) for bound, cut in tried.items() if cut.hi > cut.lo}
    best = min(costs, key=lambda bound: costs[bound], default=None)
    if best is None or costs[best] >= _CLEARLY * usual:
        return Choice(method, found)
    return Choice(method, tried[best], best)


def best_method(name: str, seen: ops.TensorStatistics, gain: OutputGain, scheme: QuantScheme, percentile: float) -> str:
    """The calibration method whose range costs least at the outputs; ``mse`` where no other is clearly better."""
    costs = {
        method: gain.error(seen, range_of(name, seen, method, scheme, percentile), scheme)
        for method in METHODS
        if method != "sqnr"  # whose range is that of mse
    }
    best = min(costs, key=lambda method: costs[method])
    return best if costs[best] < _CLEARLY * costs[USUAL] else USUAL


def range_of(name: str, seen: ops.TensorStatistics, method: str, scheme: QuantScheme, percentile: float) -> Range:
    """The range that ``method`` chooses for tensor ``name``.

    Raises:
        CalibrationError: no finite value was seen.
    """
    try:
        return Range(*seen.range(method, scheme.dtype.value, scheme.symmetric, percentile))
    except ValueError as problem:
        raise CalibrationError(f"tensor {name!r}: {problem}") from None


def describe(choices: Mapping[str, Choice], plans: Iterable[TensorPlan], config: QuantConfig) -> tuple[str, ...]:
    """What ``auto`` chose, a line for methods and a line for bounds."""
    own = {plan.name: plan for plan in plans}
    methods = Counter(c.method for name, c in choices.items() if (own[name].method or config.method) == AUTO)
    searched = [c.bound for name, c in choices.items() if own[name].clip == AUTO]
    bounds = sorted(bound for bound in searched if bound is not None)
    lines = []
    if methods:
        counts = ", ".join(f"{method} for {count}" for method, count in methods.most_common())
        lines.append(f"calibration method by the error at the outputs of layers: {counts} activations")
    if searched:
        to = f", to magnitudes of {bounds[0]:.3g} to {bounds[-1]:.3g}" if bounds else ""
        lines.append(
            f"{len(bounds)} of {counted(len(searched), 'range(s)')} cut by the error at the outputs of layers{to}"
        )
    return tuple(lines)


def _cut(range_: Range, bound: float) -> Range:
    return Range(max(range_.lo, -bound), min(range_.hi, bound))

"""The error curve is what quantizing the values really costs, and the histogram counts what was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from requant import ops
from requant.arrays import affine
from requant.calibration.ranges import BARS, view_range
from requant.cli.show import bar, histogram
from requant.types import QuantScheme, QuantType, Range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from requant.calibration.ranges import RangeView

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(200_000).astype(np.float32)


def view(x: NDArray[np.float32], lo: float, hi: float, dtype: str = "uint8") -> RangeView:
    seen = ops.TensorStatistics()
    seen.observe(x)
    scheme = QuantScheme(QuantType(dtype))
    params = affine.compute_params(lo, hi, scheme)
    return view_range("t", seen, float(params.scale), int(params.zero_point), scheme.dtype)


def costs(x: NDArray[np.float32], scale: float, zero_point: int, dtype: QuantType) -> tuple[float, float, float]:
    """Granular and overload error and share clipped, one value at a time."""
    x = x.astype(np.float64)
    q = np.rint(x / scale) + zero_point
    outside = (q < dtype.min) | (q > dtype.max)
    error = ((np.clip(q, dtype.min, dtype.max) - zero_point) * scale - x) ** 2
    return float(error[~outside].sum() / x.size), float(error[outside].sum() / x.size), float(outside.mean())


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("x", [NORMAL, np.maximum(NORMAL, 0), NORMAL**3], ids=["normal", "relu", "tails"])
def test_the_curve_is_what_quantizing_costs(x: NDArray[np.float32], dtype: str) -> None:
    found = view(x, min(-3.0, float(x.min())) if x.min() < 0 else 0.0, 3.0, dtype)
    assert [point.factor for point in found.curve] == sorted(point.factor for point in found.curve)
    kind = QuantType(dtype)
    for point in found.curve:
        scale = (point.hi - point.lo) / (kind.max - kind.min)
        zero_point = round(kind.min - point.lo / scale)
        granular, overload, clipped = costs(x, scale, zero_point, kind)
        assert point.granular == pytest.approx(granular, rel=0.05, abs=1e-3 * point.total)
        assert point.overload == pytest.approx(overload, rel=0.05, abs=1e-3 * point.total)
        assert point.clipped == pytest.approx(clipped, rel=0.02, abs=1e-4)
    assert found.curve[-1].clipped == 0


def test_wider_rounds_more_and_clips_less() -> None:
    curve = view(NORMAL, -3, 3).curve
    assert [point.clipped for point in curve] == sorted((point.clipped for point in curve), reverse=True)
    assert [point.overload for point in curve] == sorted((point.overload for point in curve), reverse=True)
    assert curve[-1].granular > curve[0].granular


def test_the_range_of_least_error_is_the_best_of_its_curve() -> None:
    seen = ops.TensorStatistics()
    seen.observe(NORMAL)
    found = view(NORMAL, *Range(*seen.range("mse", "uint8", False, 99.99)))
    assert found.best == found.chosen


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20), st.floats(0, 20))
def test_every_value_is_counted_once(seed: int, hi: float, below: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(300) * rng.choice([0, 0.1, 1, 50], 300)).astype(np.float32)
    found = view(x, -below, hi)
    assert len(found.counts) == BARS
    assert min(*found.counts, found.below, found.above) >= 0
    assert sum(found.counts) + found.below + found.above == found.values == 300
    width = float(np.abs(x).max()) / 1000  # of a bin of the statistic, at most
    for beyond, least, most in (
        (found.below, x < found.start - width, x < found.start + width),
        (found.above, x > found.stop + width, x > found.stop - width),
    ):
        assert least.sum() <= beyond <= most.sum()
    assert found.start <= found.lo <= 0 <= found.hi <= found.stop


@pytest.mark.parametrize("x", [[0.0], [5.0], [-5.0], [1e-30, 2e-30], [3e38, -3e38], [0.0, 1.0]])
def test_odd_tensors_have_a_view(x: list[float]) -> None:
    array = np.array(x, np.float32)
    found = view(array, float(array.min()), float(array.max()))
    assert sum(found.counts) == len(x)
    assert np.isfinite([point.total for point in found.curve]).all()
    assert any(point.factor == 1 for point in found.curve)
    assert histogram(found, 80)


def test_the_drawing_is_to_scale() -> None:
    found = view(np.linspace(0, 1, 6400, dtype=np.float32), 0.0, 0.5)
    *bars, axis, seen, error = histogram(found, 80)
    assert len(bars) == 8
    assert max(map(len, bars)) <= BARS
    assert axis.startswith("├")
    assert len(axis) == pytest.approx(BARS * (found.hi - found.lo) / (found.stop - found.start), abs=1)
    assert "6,400 values (1 of them zero)" in seen
    assert "rounding" in error
    most: Any = max(found.curve, key=lambda point: point.total)
    assert bar(most, most.total) == "█" * 32
    assert set(bar(found.curve[-1], most.total)) == {"▒"}

from __future__ import annotations

import copy
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from requant import ops
from requant.arrays import affine
from requant.errors import CalibrationError, ConfigError
from requant.observers import Observer, ObserverSet, observe_request
from requant.types import PerChannel, QuantScheme, QuantType, Range

if TYPE_CHECKING:
    from numpy.typing import NDArray

X = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32)


def observed(x: NDArray[Any] = X) -> Observer:
    observer = Observer()
    observer.observe(x)
    return observer


def test_moments_are_those_of_numpy() -> None:
    special = np.array([0.0, 0.0, -0.0, np.nan, np.inf, -np.inf, np.nan], np.float32)
    x = np.concatenate([X.ravel(), special])
    observer = observed(x)
    finite = x[np.isfinite(x)].astype(np.float64)
    assert observer.count == finite.size
    assert (observer.zeros, observer.nan_count, observer.inf_count) == (3, 2, 2)
    assert (observer.min, observer.max) == (finite.min(), finite.max())
    assert observer.mean == pytest.approx(finite.mean(), rel=1e-9)
    assert observer.std == pytest.approx(finite.std(), rel=1e-9)
    edges, counts = observer.histogram()
    assert len(edges) == len(counts) + 1
    assert counts.sum() == finite.size
    np.testing.assert_array_equal(counts, np.histogram(finite, edges)[0])


def test_an_empty_observer_has_no_range() -> None:
    observer = Observer()
    assert observer.count == 0
    assert np.isnan([observer.min, observer.max, observer.mean, observer.std]).all()
    with pytest.raises(CalibrationError, match="no finite value was observed"):
        observer.range()


@pytest.mark.parametrize("method", ops.CALIBRATION_METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_method_gives_a_range_inside_the_data_with_zero(method: str, symmetric: bool) -> None:
    scheme = QuantScheme(QuantType.INT8, symmetric)
    lo, hi = observed().range(method, scheme=scheme)
    a = float(np.abs(X).max())
    # A method may choose an edge of the histogram, whose bins are finer than this.
    assert -a * 1.01 <= lo <= 0 <= hi <= a * 1.01
    assert lo < hi
    if symmetric:
        assert lo == -hi
        lo, hi = observed(np.abs(X)).range(method, scheme=scheme)
        assert lo == 0 < hi
    params = observed().params(method, scheme)
    assert params.scale.shape == ()
    assert np.isfinite(affine.fake_quantize_array(X, params)).all()


def test_minmax_is_the_range_and_percentile_is_within() -> None:
    observer = observed()
    assert observer.range() == Range(X.min(), X.max())
    assert observer.range("percentile", percentile=100) == observer.range()
    lo, hi = observer.range("percentile", percentile=90)
    assert np.mean((lo <= X) & (hi >= X)) == pytest.approx(0.9, abs=0.01)


def test_refusals() -> None:
    observer = observed()
    with pytest.raises(ConfigError, match=r"unknown calibration method 'min_max'; did you mean 'minmax'\?"):
        observer.range("min_max")
    for percentile in (0, -1, 100.1, np.nan):
        with pytest.raises(ConfigError, match=r"percentile .* is outside"):
            observer.range("percentile", percentile=percentile)
    with pytest.raises(ConfigError, match=r"expected the granularity PerTensor, got PerChannel\(axis=0\)"):
        observer.params("minmax", QuantScheme(granularity=PerChannel(0)))
    with pytest.raises(TypeError, match="expected an array of real numbers, got dtype object"):
        observer.observe(np.array([None]))
    with pytest.raises(CalibrationError, match="damaged"):
        Observer.from_bytes(b"")


def test_nan_and_infinity_are_errors_unless_skipped() -> None:
    observer = observed(np.array([1, 2, np.nan, np.inf, np.nan]))
    with pytest.raises(CalibrationError, match="2 NaN and 1 infinite value were observed"):
        observer.range()
    assert observer.range(skip_nonfinite=True) == Range(0, 2)
    assert observer.params(skip_nonfinite=True).scale == np.float32(2) / np.float32(255)


def test_merging_is_exact_in_any_order() -> None:
    parts = [observed(part * scale) for part, scale in zip(np.split(X, 4), (1, 1e-3, 1e4, 30), strict=True)]
    forward, backward = Observer(), Observer()
    for part in parts:
        forward.merge(part)
    for part in reversed(parts):
        backward.merge(part)
    assert forward == backward
    assert forward.to_bytes() == backward.to_bytes()
    assert forward != parts[0]
    assert forward != "statistics"


def test_merging_with_itself_doubles() -> None:
    observer = observed()
    observer.merge(observer)
    assert observer.count == 2 * X.size
    assert observer.mean == observed().mean


def test_merging_both_ways_at_once_does_not_deadlock() -> None:
    a, b = observed(), observed()
    threads = [threading.Thread(target=pair[0].merge, args=(pair[1],), daemon=True) for pair in [(a, b), (b, a)] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_copies_are_equal_and_independent() -> None:
    observer = observed()
    restored = Observer.from_bytes(observer.to_bytes())
    for other in (restored, pickle.loads(pickle.dumps(observer)), copy.deepcopy(observer)):
        assert other == observer
        assert other.std == observer.std
        other.observe(X)
        assert other.count == 2 * observer.count


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_set_equals_its_observers(threads: int) -> None:
    arrays = {"a": X, "b": X.T * 3, "large": np.resize(X, 3_000_000)}
    seen = ObserverSet()
    seen.observe(arrays, threads=threads)
    seen.observe({"a": X}, threads=threads)
    assert list(seen) == ["a", "b", "large"]
    assert len(seen) == 3
    seen["b"].observe(X)
    for name, batches in {"a": [X, X], "b": [X.T * 3, X], "large": [arrays["large"]]}.items():
        expected = Observer()
        for batch in batches:
            expected.observe(batch)
        assert seen[name] == expected


def test_sets_merge_by_name() -> None:
    left, right = ObserverSet(), ObserverSet()
    left.observe({"a": X})
    right.observe({"a": X, "b": X})
    left.merge(right)
    assert {name: observer.count for name, observer in left.items()} == {"a": 2 * X.size, "b": X.size}
    assert right["b"].count == X.size
    left.merge(left)
    assert left["b"].count == 2 * X.size


def test_a_set_observes_nothing_where_one_array_is_wrong() -> None:
    seen = ObserverSet()
    with pytest.raises(TypeError):
        seen.observe({"a": X, "b": np.array(["x"])})
    assert not seen


def test_error_of_a_range() -> None:
    statistics = ops.TensorStatistics()
    statistics.observe(X)
    params = affine.compute_params(-2, 2, QuantScheme(QuantType.INT8))
    error = statistics.error(float(params.scale), int(params.zero_point), "int8")
    y = affine.fake_quantize_array(X, params)
    outside = (-2 - params.scale / 2 > X) | (2 + params.scale / 2 < X)
    squares = (X.astype(np.float64) - y) ** 2
    assert error["clipped"] == pytest.approx(outside.mean(), abs=2e-3)
    assert error["granular"] + error["overload"] == pytest.approx(squares.mean(), rel=0.02)
    assert error["overload"] == pytest.approx((squares * outside).sum() / X.size, rel=0.05)
    sqnr = (X.astype(np.float64) ** 2).mean() / squares.mean()
    assert error["sqnr_db"] == pytest.approx(10 * np.log10(sqnr), abs=0.2)


@pytest.mark.parametrize("data", ["normal", "relu", "constant", "negative"])
def test_all_ranges_at_once_are_those_of_each_method(data: str) -> None:
    x = np.random.default_rng(3).normal(size=5000).astype(np.float32)
    x = {"normal": x, "relu": np.maximum(x, 0), "constant": np.full_like(x, 2.5), "negative": -np.abs(x)}[data]
    seen = ops.TensorStatistics()
    seen.observe(x)
    chosen = seen.ranges("uint8", 99.9)
    assert len(chosen) == 10
    for method, symmetric, lo, hi in chosen:
        assert (lo, hi) == seen.range(method, "uint8", symmetric, 99.9), (method, symmetric)


@pytest.mark.parametrize("dtype", [QuantType.UINT8, QuantType.INT16])
def test_a_request_is_observed_with_what_its_own_range_costs(dtype: QuantType) -> None:
    x = np.random.default_rng(0).normal(size=(3, 2999)).astype(np.float32)
    rounded = affine.fake_quantize_array(x, affine.params_from_data(x, QuantScheme(dtype))).astype(np.float64)
    seen = ops.TensorStatistics()
    seen.observe(x)
    holed = np.concatenate([[np.nan], x.ravel(), [np.inf]]).astype(np.float32)
    expected: Any = (seen.min, seen.max, pytest.approx(np.sum((rounded - x) ** 2), rel=1e-9))
    for given, others in ((x, 0), (holed, 1)):
        statistics = ops.TensorStatistics()
        assert observe_request(statistics, given, dtype) == expected
        assert (statistics.count, statistics.min, statistics.max) == (seen.count, seen.min, seen.max)
        assert statistics.nan_count == statistics.inf_count == others
    again = ops.TensorStatistics()
    observe_request(again, x, dtype)
    assert again == seen
    own = observe_request(again, -2 * x[:1], dtype)
    assert own is not None
    assert own[:2] == (-2 * x[0].max(), -2 * x[0].min())  # and not the range of all that was seen
    assert again.count == x.size + x.shape[1]
    assert observe_request(again, [], dtype) is observe_request(again, [np.nan], dtype) is None

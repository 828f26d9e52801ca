"""Weights looked at block by block are the weights looked at as a whole."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from requant.arrays import affine
from requant.errors import ModelError
from requant.onnx import blocks
from requant.types import PerChannel, QuantParams, QuantScheme, QuantType

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "every second": lambda w: np.repeat(w, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    rows=st.integers(1, 9), terms=st.integers(1, 9), values=st.sampled_from([2, 7, 1 << 16]), seed=st.integers(0, 99)
)
def test_the_largest_terms_and_pairs_of_each_row(layout: str, rows: int, terms: int, values: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, terms)).astype(np.float32)
    expected = []
    for row in weight.astype(np.float64):
        pairs = [row[i : i + 2] for i in range(0, terms, 2)]
        expected.append(max(max(sum(v for v in p if v > 0), -sum(v for v in p if v < 0)) for p in pairs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_MANY", values)
        array = LAYOUTS[layout](weight)
        np.testing.assert_array_equal(blocks.largest_terms(array), np.abs(weight).max(axis=1))
        np.testing.assert_array_equal(blocks.largest_pairs(array), expected)


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), values=st.sampled_from([1, 5, 1 << 16]))
def test_blocks_are_the_whole_axis_in_even_steps(shape: tuple[int, ...], values: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_VALUES", values)
        parts = list(blocks.blocks(np.zeros(shape)))
    assert np.concatenate([np.arange(shape[0])[part] for part in parts]).tolist() == list(range(shape[0]))
    assert all(b.start - a.start == a.stop - a.start and a.start % 2 == 0 for a, b in pairwise(parts))


@pytest.mark.parametrize(
    "scale",
    [
        np.float32(0.1).reshape(()),
        np.full((8, 1, 1), 0.1, "f"),
        np.full((1, 3, 1), 0.1, "f"),
        np.full((3, 1), 0.1, "f"),
        np.full((8, 3, 1), 0.1, "f"),
        np.full((8, 1, 5), 0.1, "f"),
        np.linspace(0.05, 0.2, 15, dtype="f").reshape(1, 3, 5),
    ],
)
def test_the_error_of_rounding(scale: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_MANY", 12)
    weight = np.random.default_rng(0).standard_normal((8, 3, 5)).astype(np.float32)
    data = (np.rint(weight / scale) + 3).astype(np.int8)
    low, high, signal, noise = blocks.rounding_error(weight, data, scale, 3)
    assert (low, high) == (weight.min(), weight.max())
    assert signal == pytest.approx(np.mean(weight.astype(float) ** 2))
    assert noise == pytest.approx(np.mean((weight.astype(float) - (data.astype("f") - 3) * scale) ** 2))


def test_values_that_are_not_finite_and_subnormal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_VALUES", 4)
    assert blocks.count_not_finite(np.array([[1, np.nan, 2], [np.inf, 0, -np.inf]] * 5, "f")) == 15
    assert blocks.count_not_finite(np.array(np.nan, "f")) == 1
    assert blocks.count_not_finite(np.zeros((0, 3), "f")) == 0
    for array, subnormal in ([[0, 1, 1e-37], False], [[0, 1, -1e-40], True], [[np.nan, np.inf, 0], False], [[], False]):
        assert blocks.holds_subnormals(np.array(array, "f")) is subnormal


def test_largest_terms_of_what_is_not_finite_are_not_numbers() -> None:
    weight = np.ones((4, 6), np.float32)
    weight[2, 3] = np.inf
    assert np.isnan(blocks.largest_terms(weight)).all()
    assert np.isnan(blocks.largest_pairs(weight.T)).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_integers_part_by_part_are_those_of_the_whole(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 6, 5)).astype(np.float32)
    scheme = QuantScheme(QuantType.INT8, symmetric=True, granularity=PerChannel(axis))
    scale = np.linspace(0.01, 0.05, weight.shape[axis], dtype=np.float32)
    params = QuantParams(scale, np.zeros(len(scale), np.int8), scheme)
    monkeypatch.setattr(blocks, "_MANY", 40)
    np.testing.assert_array_equal(blocks.quantized(weight, params), affine.quantize_array(weight, params).data)


@pytest.mark.parametrize("turned", [False, True])
def test_a_bad_value_is_named_where_the_weight_has_it(turned: bool) -> None:
    weight = np.ones((3, 9), np.float32)
    weight[0, 7] = np.nan
    with pytest.raises(ModelError, match=r"'w' \(3, 9\) holds 1 NaN .* at \(0, 7\)"):
        blocks.finite(weight.T if turned else weight, "w")

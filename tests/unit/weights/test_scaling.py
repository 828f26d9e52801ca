"""Factors for input channels lower the error of outputs, are powers of two, and are none where none helps."""

from __future__ import annotations

import numpy as np
import pytest

from requant.arrays.lowbit import BlockScheme, quantize_blocks
from requant.weights.scaling import choose_factors
from requant.weights.spec import Moments

SCHEME = BlockScheme(bits=3, block_size=32)


def layer(loud: float) -> tuple[np.ndarray, np.ndarray]:
    """A weight and its inputs, some channels of which are louder."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 64))
    x[:, ::9] *= loud
    return rng.standard_normal((48, 64)).astype(np.float32), x


def test_factors_lower_the_error_of_outputs_computed_in_full() -> None:
    w, x = layer(20.0)
    moments = Moments(x.T @ x / len(x), len(x))

    def outputs_off(factors: np.ndarray) -> float:
        rounded = quantize_blocks(w * factors, SCHEME).dequantize() / factors
        return float(np.mean((x @ (w - rounded).T) ** 2))

    found = choose_factors([w], moments, outputs_off)
    assert found is not None
    factors, left = found
    assert np.array_equal(np.exp2(np.rint(np.log2(factors))), factors)
    assert left == outputs_off(factors) < 0.7 * outputs_off(np.ones(64, np.float32))


def test_no_factors_where_none_helps() -> None:
    w, x = layer(1.0)
    moments = Moments(x.T @ x / len(x), len(x))
    assert choose_factors([w], moments, lambda factors: 1.0) is None
    assert choose_factors([w], Moments(np.zeros((64, 64)), 1), lambda factors: 1.0) is None


def test_moments_of_divided_inputs_are_those_of_the_inputs_divided() -> None:
    _, x = layer(5.0)
    factors = np.exp2(np.arange(64) % 5 - 2)
    found = Moments(x.T @ x / len(x), len(x)).divided(factors).matrix
    np.testing.assert_allclose(found, (x / factors).T @ (x / factors) / len(x))
    assert found.diagonal() == pytest.approx(np.mean((x / factors) ** 2, axis=0))

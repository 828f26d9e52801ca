from __future__ import annotations

import pickle
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import requant
from requant import ops
from requant.arrays.epilogue import Requantizer
from requant.arrays.matmul import PackedBlocks, PackedWeights, qmatmul
from requant.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
A = RNG.standard_normal((9, 70)).astype(np.float32)
Q = RNG.integers(0, 16, (70, 20), np.uint8)
SCALES = (RNG.random((3, 20)) + 0.1).astype(np.float32)
BLOCKS = PackedBlocks(Q, SCALES)
ACTIVATIONS: list[Any] = ["int8", "int8_per_row", "float"]


def reals(q: NDArray[Any], scales: NDArray[Any], zero_points: Any, block_size: int) -> NDArray[np.float64]:
    """By definition, in float64."""
    spread = [np.repeat(np.broadcast_to(x, scales.shape), block_size, axis=0)[: len(q)] for x in (zero_points, scales)]
    return np.asarray((q.astype(np.float64) - spread[0]) * spread[1])


def bound(a: NDArray[np.float32], b: NDArray[np.float64], block_size: int) -> NDArray[np.float64]:
    """How far int8 activations, rounded by half a step, and float32 sums may be from the product in float64."""
    total = 1e-5 * (np.abs(a).astype(np.float64) @ np.abs(b)) + 1e-30
    for first in range(0, len(b), block_size):
        part = slice(first, first + block_size)
        step = np.abs(a[:, part]).max(axis=1, keepdims=True) / 127
        total += step / 2 * np.abs(b[part]).sum(axis=0)
    return np.asarray(total)


@given(
    shape=st.tuples(st.integers(0, 15), st.integers(0, 300), st.integers(0, 40)),
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
    kind=st.tuples(st.booleans(), st.sampled_from(["none", "one", "each"])),
    threads=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_product_is_near_that_of_the_reals(
    shape: tuple[int, int, int], block_size: int, kind: tuple[bool, str], threads: int | None, seed: int
) -> None:
    (m, k, n), (signed, zero_points), rng = shape, kind, np.random.default_rng(seed)
    low, dtype = (-8, np.int8) if signed else (0, np.uint8)
    a = rng.standard_normal((m, k)).astype(np.float32)
    q = rng.integers(low, low + 16, (k, n), dtype)
    scales = rng.standard_normal((-(-k // block_size), n)).astype(np.float32)
    zeros: Any = {"none": None, "one": low + 3, "each": rng.integers(low, low + 16, scales.shape)}[zero_points]
    blocks = PackedBlocks(q, scales, zeros, block_size=block_size)
    b = reals(q, scales, low + 8 if zeros is None else zeros, block_size)
    np.testing.assert_allclose(blocks.dequantize(), b, rtol=1e-6)
    exact = a.astype(np.float64) @ b
    got = qmatmul(a, blocks, threads=threads)
    assert got.shape == (m, n)
    assert got.dtype == np.float32
    assert np.all(np.abs(got - exact) <= bound(a, b, block_size))
    precise = qmatmul(a, blocks, activations="float", threads=threads)
    assert np.all(np.abs(precise - exact) <= 1e-5 * (np.abs(a).astype(np.float64) @ np.abs(b)) + 1e-30)


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(70,), (1, 70), (2, 3, 70), (0, 70), (2, 0, 3, 70)])
def test_leading_axes_are_rows(shape: tuple[int, ...], activations: Any) -> None:
    a = RNG.standard_normal(shape).astype(np.float32)
    got = qmatmul(a, BLOCKS, activations=activations)
    assert got.shape == (*shape[:-1], 20)
    np.testing.assert_array_equal(got.reshape(-1, 20), qmatmul(a.reshape(-1, 70), BLOCKS, activations=activations))


def test_memory_layout_does_not_matter() -> None:
    want = qmatmul(A, BLOCKS)
    for a in (np.asfortranarray(A), A[:, ::-1].copy()[:, ::-1], A.astype(">f4"), np.repeat(A, 2, axis=0)[::2]):
        np.testing.assert_array_equal(qmatmul(a, PackedBlocks(np.asfortranarray(Q), SCALES)), want)
    half = A.astype(np.float16)
    np.testing.assert_array_equal(qmatmul(half, BLOCKS), qmatmul(half.astype(np.float32), BLOCKS))


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_bias_is_added_last(activations: Any) -> None:
    bias = RNG.standard_normal(20).astype(np.float32)
    want = qmatmul(A, BLOCKS, activations=activations)
    np.testing.assert_array_equal(qmatmul(A, BLOCKS, activations=activations, bias=bias), want + bias)
    np.testing.assert_array_equal(qmatmul(A, BLOCKS, activations=activations, bias=0.5), want + np.float32(0.5))


def test_rows_share_a_scale_where_asked() -> None:
    a = np.tile(np.array([1, 0.001], np.float32), (1, 35))
    a[0, 0] = 1000
    weights = PackedBlocks(np.full((70, 1), 9, np.uint8), np.ones((3, 1)))
    per_row, per_block = (qmatmul(a, weights, activations=name).item() for name in ("int8_per_row", "int8"))
    # At a step of 1000 / 127, every other value rounds to 0; in blocks without the outlier none does.
    assert per_row == pytest.approx(1000)
    assert per_block == pytest.approx(1000 + 19, rel=1e-3)


def test_out_is_written_and_returned() -> None:
    out = np.full((9, 20), 7, np.float32)
    assert qmatmul(A, BLOCKS, out=out) is out
    np.testing.assert_array_equal(out, qmatmul(A, BLOCKS))


def test_a_tensor_quantized_in_blocks_packs_as_it_is() -> None:
    w = RNG.standard_normal((64, 12)).astype(np.float32)
    scheme = requant.QuantScheme(requant.QuantType.INT4, symmetric=True, granularity=requant.PerBlock(0, 32))
    tensor = requant.quantize_array(w, requant.params_from_data(w, scheme))
    blocks = PackedBlocks(tensor.data, tensor.params.scale, tensor.params.zero_point, block_size=32)
    np.testing.assert_array_equal(blocks.dequantize(), tensor.dequantize())


@pytest.mark.parametrize("zero_points", [None, 5, RNG.integers(0, 16, (3, 20))])
def test_weights_survive_pickling(zero_points: Any) -> None:
    blocks = PackedBlocks(Q, SCALES, zero_points)
    again = pickle.loads(pickle.dumps(blocks))
    np.testing.assert_array_equal(again.unpack(), Q)
    np.testing.assert_array_equal(again.scales, SCALES)
    np.testing.assert_array_equal(
        again.zero_points, np.broadcast_to(8 if zero_points is None else zero_points, (3, 20))
    )
    np.testing.assert_array_equal(qmatmul(A, again), qmatmul(A, blocks))


def test_weights_describe_themselves() -> None:
    signed = PackedBlocks((Q.astype(np.int8) - 8).astype(np.int8), SCALES)
    assert (BLOCKS.shape, BLOCKS.dtype, signed.dtype, BLOCKS.block_size) == ((70, 20), "uint4", "int4", 32)
    assert BLOCKS.kernel in ops.cpu_info()["available"]
    assert repr(BLOCKS) == f"PackedBlocks(uint4 [70, 20] in blocks of 32 for {BLOCKS.kernel})"
    np.testing.assert_array_equal(signed.unpack(), Q.astype(np.int8) - 8)
    np.testing.assert_array_equal(qmatmul(A, signed), qmatmul(A, BLOCKS))


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "integers": (lambda: PackedBlocks(Q.astype(np.int32), SCALES), TypeError, "expected q of dtype int8 or uint8"),
    "rank": (lambda: PackedBlocks(Q[0], SCALES), ConfigError, "expected q of shape (K, N), got (20,)"),
    "scales": (lambda: PackedBlocks(Q, SCALES[:2]), ConfigError, "expected scales of shape (3, 20), got (2, 20)"),
    "nan": (lambda: PackedBlocks(Q, np.full((3, 20), np.nan)), DataError, "index [0, 0] is not finite"),
    "block": (lambda: PackedBlocks(Q, np.ones((2, 20)), block_size=48), ConfigError, "block_size 48 is not 16, 32"),
    "no block": (lambda: PackedBlocks(Q, np.ones((70, 20)), block_size=0), ConfigError, "block_size 0 is not 16"),
    "5 bits": (lambda: PackedBlocks(Q + np.uint8(1), SCALES), ConfigError, "integer 16 at index"),
    "zero point": (lambda: PackedBlocks(Q, SCALES, 16), ConfigError, "zero_point 16 at index 0 is outside 0..=15"),
    "zero points": (lambda: PackedBlocks(Q, SCALES, [1, 2]), ConfigError, "of shape (3, 20), got (2,)"),
    "real zero point": (lambda: PackedBlocks(Q, SCALES, 0.5), TypeError, "expected integers"),
    "inner": (lambda: qmatmul(A[:, 1:], BLOCKS), ConfigError, "expected a of shape (..., 70), got (9, 69)"),
    "complex": (lambda: qmatmul(A + 1j, BLOCKS), TypeError, "real numbers"),
    "arithmetic": (lambda: qmatmul(A, BLOCKS, activations="int4"), ConfigError, "one of int8, int8_per_row, float"),  # type: ignore[arg-type]
    "a_scale": (lambda: qmatmul(A, BLOCKS, a_scale=1), TypeError, "with PackedWeights only"),
    "a_zero_point": (lambda: qmatmul(A, BLOCKS, a_zero_point=1), TypeError, "with PackedWeights only"),
    "requantizer": (lambda: qmatmul(A, BLOCKS, requantizer=Requantizer(1, 1, 1)), TypeError, "with PackedWeights only"),
    "bias": (lambda: qmatmul(A, BLOCKS, bias=[1, 2]), ConfigError, "bias to be a scalar or of shape (20,)"),
    "out": (lambda: qmatmul(A, BLOCKS, out=np.empty((9, 20))), ConfigError, "and dtype float32"),
    "8 bits": (
        lambda: qmatmul(Q.T, PackedWeights(Q), activations="float"),
        TypeError,
        "expected activations with PackedBlocks only",
    ),
    "nbits dtype": (lambda: PackedBlocks.from_nbits(np.zeros((2, 1, 16), np.int8), 1.0), TypeError, "dtype uint8"),
    "nbits rank": (lambda: PackedBlocks.from_nbits(np.zeros((2, 16), np.uint8), 1.0), ConfigError, "(N, blocks, block"),
    "nbits k": (
        lambda: PackedBlocks.from_nbits(np.zeros((2, 2, 16), np.uint8), np.ones(4), k=32),
        ConfigError,
        "expected k within 2 blocks of 32, the last of them not empty, got 32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misfits_are_refused(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        call()

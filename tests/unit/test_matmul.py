from __future__ import annotations

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from requant import ops
from requant.arrays.epilogue import Requantizer
from requant.arrays.matmul import PackedWeights, qmatmul
from requant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
A = RNG.integers(0, 256, (9, 37), np.uint8)
B = RNG.integers(-128, 128, (37, 20), np.int8)
WEIGHTS = PackedWeights(B)


def exact(a: NDArray[Any], b: NDArray[Any], a_zero_point: Any = 0, b_zero_point: Any = 0) -> NDArray[np.int64]:
    """By definition, in int64; a zero point of ``a`` for each row comes in its shape without the last axis."""
    centred = a.astype(np.int64) - np.asarray(a_zero_point, np.int64)[..., None]
    return np.asarray(centred @ (b.astype(np.int64) - np.asarray(b_zero_point, np.int64)))


def wide(x: NDArray[Any]) -> NDArray[Any]:
    frame = np.full((x.shape[0], x.shape[1] + 5), 99, x.dtype)
    frame[:, 2:-3] = x
    return frame[:, 2:-3]


def every_other(x: NDArray[Any]) -> NDArray[Any]:
    frame = np.full((2 * x.shape[0], 2 * x.shape[1]), 99, x.dtype)
    frame[::2, ::2] = x
    return frame[::2, ::2]


def read_only(x: NDArray[Any]) -> NDArray[Any]:
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "rows of a wider matrix": wide,
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every other element": every_other,
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "fortran": np.asfortranarray,
    "read-only": read_only,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(layout: str) -> None:
    a, b = LAYOUTS[layout](A), LAYOUTS[layout](B)
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(qmatmul(a, PackedWeights(b)), exact(A, B))


def test_broadcast_rows_are_read() -> None:
    a = np.broadcast_to(A[0], (4, 37))
    np.testing.assert_array_equal(qmatmul(a, WEIGHTS), exact(a, B))


@pytest.mark.parametrize("shape", [(37,), (1, 37), (2, 3, 37), (0, 37), (2, 0, 3, 37)])
def test_leading_axes_are_rows(shape: tuple[int, ...]) -> None:
    a = RNG.integers(-128, 128, shape, np.int8)
    got = qmatmul(a, WEIGHTS, a_zero_point=-7)
    assert got.shape == (*shape[:-1], 20)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, exact(a, B, np.full(shape[:-1], -7)))


@pytest.mark.parametrize(("k", "n"), [(0, 4), (5, 0), (0, 0)])
def test_empty_products_are_zero(k: int, n: int) -> None:
    got = qmatmul(np.zeros((3, k), np.uint8), PackedWeights(np.zeros((k, n), np.uint8)))
    np.testing.assert_array_equal(got, np.zeros((3, n), np.int32))


@given(
    shape=st.tuples(st.integers(0, 15), st.integers(0, 70), st.integers(0, 40)),
    types=st.tuples(st.sampled_from([np.uint8, np.int8]), st.sampled_from([np.uint8, np.int8])),
    each=st.booleans(),
    threads=st.sampled_from([None, 1, 2, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_product_is_exact(
    shape: tuple[int, int, int], types: tuple[Any, Any], each: bool, threads: int | None, seed: int
) -> None:
    (m, k, n), rng = shape, np.random.default_rng(seed)
    a, b, za, zb = (
        rng.integers(np.iinfo(t).min, np.iinfo(t).max, size, t, endpoint=True)
        for t, size in zip((*types, *types), ((m, k), (k, n), (m,), (n,)), strict=True)
    )
    if not each:
        za, zb = np.asarray(3), np.asarray(5)
    got = qmatmul(a, PackedWeights(b, zero_point=zb), a_zero_point=za, threads=threads)
    np.testing.assert_array_equal(got, exact(a, b, za, zb))


def test_scales_give_reals() -> None:
    a_scale, b_scale = RNG.random((9,), np.float32), RNG.random((20,), np.float32)
    bias = RNG.standard_normal(20).astype(np.float32)
    sums = exact(A, B, 3).astype(np.float32)
    got = qmatmul(A, WEIGHTS, a_zero_point=3, a_scale=a_scale, b_scale=b_scale, bias=bias)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, sums * (a_scale[:, None] * b_scale) + bias)
    got = qmatmul(A, WEIGHTS, a_zero_point=3, a_scale=0.5, b_scale=0.25)
    np.testing.assert_array_equal(got, sums * np.float32(0.125))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("columns", [1, 20])
def test_requantizer_rounds_half_to_even(dtype: Any, columns: int) -> None:
    b_scale = np.linspace(1, 0.2, columns, dtype=np.float32)
    bias = RNG.integers(-2000, 2000, columns)
    requantizer = Requantizer(0.5, b_scale, 150, y_zero_point=11, dtype=dtype, bias=bias, clamp=(11, 90))
    got = qmatmul(A, WEIGHTS, a_zero_point=100, requantizer=requantizer)
    multiplier = np.float32(0.5) * b_scale / np.float32(150)
    sums = (exact(A, B, 100) + bias).astype(np.float32)
    want = np.clip(np.rint(sums * multiplier) + 11, 11, 90)
    assert got.dtype == requantizer.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, want)
    assert {11, 90} < set(got.flat), "both ends of the clamp, and something between, are met"


def test_gemmlowp_rounds_twice() -> None:
    # 0.5, 1.5 and 2.5: the fixed-point product takes ties up.
    a = np.array([[1], [3], [5]], np.uint8)
    weights = PackedWeights(np.array([[1]], np.int8))
    roundings: tuple[Any, ...] = ("half_even_float", "gemmlowp")
    requantizers = {name: Requantizer(0.5, 1, 1, rounding=name) for name in roundings}
    of = {
        name: qmatmul(a, weights, requantizer=requantizer).ravel().tolist()
        for name, requantizer in requantizers.items()
    }
    assert of == {"half_even_float": [0, 2, 2], "gemmlowp": [1, 2, 3]}


def test_out_is_written_and_returned() -> None:
    out = np.full((9, 20), 7, np.int32)
    assert qmatmul(A, WEIGHTS, out=out) is out
    np.testing.assert_array_equal(out, exact(A, B))


@pytest.mark.parametrize("zero_point", [0, 5, np.arange(20)])
def test_weights_survive_pickling(zero_point: Any) -> None:
    weights = PackedWeights(B, zero_point=zero_point)
    again = pickle.loads(pickle.dumps(weights))
    np.testing.assert_array_equal(again.unpack(), B)
    np.testing.assert_array_equal(again.zero_point, zero_point)
    np.testing.assert_array_equal(qmatmul(A, again), exact(A, B, 0, zero_point))


def test_weights_describe_themselves() -> None:
    assert WEIGHTS.shape == (37, 20)
    assert WEIGHTS.dtype == np.int8
    assert WEIGHTS.kernel in ops.cpu_info()["available"]
    assert repr(WEIGHTS) == f"PackedWeights(int8 [37, 20] for {WEIGHTS.kernel})"
    np.testing.assert_array_equal(PackedWeights(B.view(np.uint8)).unpack(), B.view(np.uint8))


def test_weights_do_not_follow_their_source() -> None:
    b, zero_point = B.copy(), np.zeros(20, np.int32)
    weights = PackedWeights(b, zero_point=zero_point)
    b[:], zero_point[:] = 0, 1
    weights.zero_point[:] = 9
    np.testing.assert_array_equal(qmatmul(A, weights), exact(A, B))


def test_many_python_threads_share_weights() -> None:
    inputs = [RNG.integers(0, 256, (i % 5 + 1, 37), np.uint8) for i in range(200)]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda a: qmatmul(a, WEIGHTS, threads=2), inputs))
    for a, got in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(got, exact(a, B))


ONE = Requantizer(1, 1, 1)
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "floats": (
        lambda: qmatmul(A.astype(np.float32), WEIGHTS),
        TypeError,
        "expected a of dtype int8 or uint8, got float32",
    ),
    "int16 weights": (lambda: PackedWeights(B.astype(np.int16)), TypeError, "expected b of dtype"),
    "rank": (lambda: PackedWeights(B[0]), ConfigError, "expected b of shape (K, N), got (20,)"),
    "inner": (lambda: qmatmul(A[:, 1:], WEIGHTS), ConfigError, "expected a of shape (..., 37), got (9, 36)"),
    "scalar": (lambda: qmatmul(np.uint8(1), WEIGHTS), ConfigError, "got ()"),
    "zero point of a": (lambda: qmatmul(A, WEIGHTS, a_zero_point=-1), ConfigError, "zero_point -1 at index 0"),
    "zero points of a": (lambda: qmatmul(A, WEIGHTS, a_zero_point=[1, 2]), ConfigError, "of shape (9,), got (2,)"),
    "zero point of b": (lambda: PackedWeights(B, zero_point=128), ConfigError, "outside -128..=127"),
    "huge zero point": (lambda: PackedWeights(B, zero_point=2**40), ConfigError, "within int32"),
    "zero points of b": (lambda: PackedWeights(B, zero_point=[1, 2]), ConfigError, "of shape (20,), got (2,)"),
    "real zero point": (lambda: PackedWeights(B, zero_point=0.5), TypeError, "expected integers"),
    "one scale": (lambda: qmatmul(A, WEIGHTS, a_scale=1), TypeError, "a_scale and b_scale together"),
    "bias alone": (lambda: qmatmul(A, WEIGHTS, bias=1.0), TypeError, "only beside them"),
    "scales of a": (lambda: qmatmul(A, WEIGHTS, a_scale=[1, 2], b_scale=1), ConfigError, "a_scale to be a scalar"),
    "scale zero": (lambda: qmatmul(A, WEIGHTS, a_scale=0, b_scale=1), ConfigError, "not finite and positive"),
    "both": (lambda: qmatmul(A, WEIGHTS, a_scale=1, b_scale=1, requantizer=ONE), TypeError, "in the requantizer"),
    "columns": (
        lambda: qmatmul(A, WEIGHTS, requantizer=Requantizer(1, np.ones(3), 1)),
        ConfigError,
        "scale of b has 3 elements, expected 20",
    ),
    "out": (
        lambda: qmatmul(A, WEIGHTS, out=np.empty((9, 20))),
        ConfigError,
        "and dtype int32, got (9, 20) and float64",
    ),
    "out order": (lambda: qmatmul(A, WEIGHTS, out=np.empty((20, 9), np.int32).T), ConfigError, "C-contiguous"),
    "out read-only": (lambda: qmatmul(A, WEIGHTS, out=read_only(np.zeros((9, 20), np.int32))), ConfigError, "writable"),
    "out in a": (
        lambda: qmatmul(
            x := np.zeros((4, 4), np.uint8), PackedWeights(np.eye(4, dtype=np.int8)), requantizer=ONE, out=x
        ),
        ConfigError,
        "memory that both use",
    ),
    "threads": (lambda: qmatmul(A, WEIGHTS, threads=-1), ConfigError, "threads of at least 0"),
    "rounding": (lambda: Requantizer(1, 1, 1, rounding="up"), ConfigError, "unknown rounding"),  # type: ignore[arg-type]
    "wide output": (lambda: Requantizer(1, 1, 1, dtype="int16"), ConfigError, "int16"),  # type: ignore[arg-type]
    "clamp": (lambda: Requantizer(1, 1, 1, clamp=(0, 256)), ConfigError, "256"),
    "long sums": (
        lambda: qmatmul(np.zeros((1, 65_794), np.uint8), PackedWeights(np.zeros((65_794, 1), np.int8))),
        ConfigError,
        "at most 65793 is safe",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misfits_are_refused(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        call()

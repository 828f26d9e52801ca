"""Blocks against the gguf package, and laws that hold for any rows."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

import requant
from requant.gguf.blocks import BLOCK_TYPES

SEARCHED = [name for name in BLOCK_TYPES if name.startswith("q") and name != "q8_0"]
#: What gguf.quants can make; the other types it only reads.
MADE_BY_THE_PACKAGE = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
#: Noise over power of normal data: what each type reaches, with a tenth to spare.
NOISE = {
    "f32": 0.0,
    "f16": 1e-7,
    "bf16": 4e-6,
    "q8_0": 3.5e-5,
    "q6_k": 3.5e-4,
    "q5_k": 1.45e-3,
    "q5_1": 1.6e-3,
    "q5_0": 2.1e-3,
    "q4_k": 5.6e-3,
    "q4_1": 6.8e-3,
    "q4_0": 8.2e-3,
    "q3_k": 2.5e-2,
    "q2_k": 8.1e-2,
}


def kind(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(BLOCK_TYPES[name].id)


def reals(rows: int = 37, columns: int = 512, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def noise(x: np.ndarray, name: str, importance: np.ndarray | None = None, weights: np.ndarray | float = 1.0) -> float:
    y = requant.dequantize_gguf(requant.quantize_gguf(x, name, importance=importance), name)
    signal, error = x.astype(np.float64), y.astype(np.float64) - x
    return float(np.sum(weights * error**2) / np.sum(weights * signal**2))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_types_are_those_of_the_package(name: str) -> None:
    ours = BLOCK_TYPES[name]
    assert gguf.GGML_QUANT_SIZES[kind(name)] == (ours.block_size, ours.bytes)
    assert kind(name).name.lower() == name


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 3e-7, 1e4])
def test_reals_are_those_of_the_package(name: str, scale: float) -> None:
    data = requant.quantize_gguf(reals() * np.float32(scale), name)
    assert np.array_equal(bits(requant.dequantize_gguf(data, name)), bits(gguf.quants.dequantize(data, kind(name))))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_reals_of_any_bytes_are_those_of_the_package(name: str) -> None:
    data = np.random.default_rng(3).integers(0, 256, (64, 3 * BLOCK_TYPES[name].bytes), np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, kind(name))
    ours = requant.dequantize_gguf(data, name)
    assert np.array_equal(np.isnan(ours), np.isnan(expected))
    assert np.array_equal(bits(ours)[~np.isnan(ours)], bits(expected)[~np.isnan(ours)])


@pytest.mark.parametrize("name", MADE_BY_THE_PACKAGE)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 3e-7, 1e3])
def test_blocks_are_those_of_the_package(name: str, scale: float) -> None:
    x = reals(seed=5) * np.float32(scale)
    x[3, :64] = 0
    x[4, :64] = 0.5
    x[5, :64] = -0.5
    x[6, 7] = 20 * np.float32(scale)
    expected = gguf.quants.quantize(x, kind(name)).view(np.uint8)
    assert np.array_equal(requant.quantize_gguf(x, name), expected)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (2, 64), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(MADE_BY_THE_PACKAGE),
)
def test_any_blocks_are_those_of_the_package(x: np.ndarray, name: str) -> None:
    x += np.float32(0.0)  # -0 as the lowest value: the package writes the sign that numpy happens to find
    tiny = np.abs(x) < 1e-30  # a scale whose inverse is infinite has no defined integers there
    x[tiny] = 0
    expected = gguf.quants.quantize(x, kind(name)).view(np.uint8)
    assert np.array_equal(requant.quantize_gguf(x, name), expected)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_noise_on_normal_data(name: str) -> None:
    assert noise(reals(128, 1024, seed=1), name) <= NOISE[name]


@pytest.mark.parametrize(("better", "worse"), [("q4_k", "q4_0"), ("q4_k", "q4_1"), ("q5_k", "q5_0"), ("q5_k", "q5_1")])
def test_super_blocks_beat_plain_ones(better: str, worse: str) -> None:
    x = reals(64, 1024, seed=2)
    heavy = np.random.default_rng(2).standard_t(4, x.shape).astype(np.float32)
    for data in (x, heavy):
        assert noise(data, better) < noise(data, worse)


@pytest.mark.parametrize("name", SEARCHED)
def test_importance_lowers_the_weighted_noise(name: str) -> None:
    x = reals(64, 1024, seed=4)
    importance = np.random.default_rng(5).gamma(0.5, 1.0, (x.shape[1],)).astype(np.float32)
    weighted = noise(x, name, importance, importance)
    assert weighted < 0.95 * noise(x, name, None, importance)
    # Its unit does not matter, nor do columns that nothing passes through harm what others hold.
    again = requant.quantize_gguf(x, name, importance=importance * 1024)
    assert np.array_equal(again, requant.quantize_gguf(x, name, importance=importance))
    dead = np.where(np.arange(1024) < 512, 0, 1).astype(np.float32)
    y = requant.dequantize_gguf(requant.quantize_gguf(x, name, importance=dead), name)
    assert np.sum((y[:, :512] - x[:, :512]) ** 2) < 0.2 * np.sum(x[:, :512] ** 2)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_no_importance_is_as_none(name: str) -> None:
    x = reals(3, 256)
    nothing = requant.quantize_gguf(x, name, importance=np.zeros(256))
    assert np.array_equal(nothing, requant.quantize_gguf(x, name))


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 1e-38, -1e-42, 6e-8, 1000.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_constant_rows(name: str, value: float, weighted: bool) -> None:
    x = np.full((2, 512), value, np.float32)
    importance = np.linspace(0, 2, 512) if weighted else None
    y = requant.dequantize_gguf(requant.quantize_gguf(x, name, importance=importance), name)
    assert np.isfinite(y).all()
    assert np.abs(y - x).max() <= max(abs(value) / 30, 1e-7)


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("value", [1e38, -3e38, 2e9])
def test_what_float16_scales_cannot_reach_is_refused(name: str, value: float) -> None:
    x = reals(3, 256)
    x[1, 77] = value
    if name in ("f32", "bf16"):
        assert np.isfinite(requant.dequantize_gguf(requant.quantize_gguf(x, name), name)).all()
        return
    for importance in (None, np.ones(256)):
        with pytest.raises(requant.DataError, match=r"at index \[1, 77\] is too large for"):
            requant.quantize_gguf(x, name, importance=importance)


@settings(max_examples=80, deadline=None)
@given(
    arrays(np.float32, (1, 256), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(list(BLOCK_TYPES)),
    st.booleans(),
)
def test_finite_or_refused(x: np.ndarray, name: str, weighted: bool) -> None:
    importance = np.linspace(0, 1, 256) ** 4 if weighted else None
    try:
        data = requant.quantize_gguf(x, name, importance=importance)
    except requant.DataError:
        return
    y = requant.dequantize_gguf(data, name)
    assert np.isfinite(y).all()
    # No farther from a value than 0 or the block's extremes are, with what rounding of the scale adds.
    assert float(np.abs(y).max()) <= 1.2 * float(np.abs(x).max()) + 1e-6  # beyond float32 for the largest


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_threads_and_layouts_give_the_same_bytes(name: str) -> None:
    x = reals(301, 512, seed=9)
    importance = np.random.default_rng(1).random(512)
    for weights in (importance, None):
        expected = requant.quantize_gguf(x, name, importance=weights, threads=1)
        for other in (np.asfortranarray(x), x[::-1][::-1], x.astype(">f4")):
            assert np.array_equal(requant.quantize_gguf(other, name, importance=weights, threads=3), expected)
    data = requant.quantize_gguf(x.reshape(7, 43, 512), name, threads=2)
    assert np.array_equal(data.reshape(301, -1), requant.quantize_gguf(x, name, threads=1))
    assert np.array_equal(
        requant.dequantize_gguf(data, name, threads=3), requant.dequantize_gguf(data, name, threads=1)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["f32", "q8_0", "q4_k"])
def test_what_is_not_finite_is_refused_with_its_place(bad: float, name: str) -> None:
    x = reals(600, 256).reshape(2, 300, 256)
    x[1, 200, 13] = x[1, 299, 2] = bad
    with pytest.raises(requant.DataError, match=r"at index \(1, 200, 13\) is not finite"):
        requant.quantize_gguf(x, name, threads=2)


def test_wrong_arguments_are_refused() -> None:
    x = reals(2, 100)
    with pytest.raises(requant.ConfigError, match="rows of 100 values do not divide into the blocks of 32 of q8_0"):
        requant.quantize_gguf(x, "q8_0")
    with pytest.raises(requant.ConfigError, match="unknown GGUF type 'q4_m'; did you mean 'q4_k'"):
        requant.quantize_gguf(x, "q4_m")
    with pytest.raises(requant.ConfigError, match="got a scalar"):
        requant.quantize_gguf(1.0, "f16")
    with pytest.raises(requant.ConfigError, match=r"importance of shape \(256,\)"):
        requant.quantize_gguf(reals(2, 256), "q4_k", importance=np.ones(255))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(requant.ConfigError, match="at index 3 is not finite and at least 0"):
            requant.quantize_gguf(reals(2, 256), "q4_k", importance=np.where(np.arange(256) == 3, bad, 1))
    with pytest.raises(requant.ConfigError, match="144 bytes"):
        requant.dequantize_gguf(np.zeros(145, np.uint8), "q4_k")
    with pytest.raises(TypeError, match="uint8"):
        requant.dequantize_gguf(np.zeros(144, np.int8), "q4_k")
    for call in (requant.quantize_gguf, requant.dequantize_gguf):
        with pytest.raises(requant.ConfigError, match="threads"):
            call(np.zeros((1, 4), np.uint8), "f32", threads=-1)


def test_nothing_is_nothing() -> None:
    assert requant.quantize_gguf(np.zeros((0, 256), np.float32), "q4_k").shape == (0, 144)
    assert requant.quantize_gguf(np.zeros((3, 0), np.float32), "q4_k").shape == (3, 0)
    assert requant.dequantize_gguf(np.zeros((0, 144), np.uint8), "q4_k").shape == (0, 256)


def test_upper_case_names_are_understood() -> None:
    assert np.array_equal(requant.quantize_gguf(reals(), "Q4_K"), requant.quantize_gguf(reals(), "q4_k"))

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import _pybind_state as core

import requant
from requant.arrays.lowbit import ALGORITHMS, BlockScheme, BlockWeights, gptq, quantize_blocks
from requant.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
BLOCK_SIZES = (16, 32, 64, 128, 256)


def onnxruntime_quantizes(
    w: NDArray[np.float32], bits: int, block_size: int, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """What its MatMulNBits quantizer calls, for ``w [K, N]``."""
    k, n = w.shape
    blocks, per_byte = -(-k // block_size), 8 // bits
    data = np.zeros((n, blocks, block_size // per_byte), np.uint8)
    zeros = np.zeros((n, -(-blocks // per_byte)), np.uint8)
    scales = np.zeros((n, blocks), np.float32)
    padded = np.pad(w, ((0, blocks * block_size - k), (0, 0)))
    getattr(core, f"quantize_matmul_{bits}bits")(data, padded, scales, zeros, block_size, n, k, symmetric)
    return data, scales, zeros


def awkward(rng: np.random.Generator, k: int, n: int) -> NDArray[np.float32]:
    """Columns of all sizes, with zeros of both signs, ties, constants and one sign only."""
    w = (rng.standard_normal((k, n)) * 10.0 ** rng.integers(-12, 13, n)).astype(np.float32)
    kinds = rng.integers(0, 8, n)
    w[:, kinds == 0] = 0.0
    w[:, kinds == 1] = -0.0
    w[:, kinds == 2] = 0.7
    w[:, kinds == 3] = np.abs(w[:, kinds == 3])
    w[:, kinds == 4] = rng.integers(-8, 8, (k, int((kinds == 4).sum()))) / 2
    w[rng.random(w.shape) < 0.05] = 0.0
    w[rng.random(w.shape) < 0.02] *= -30.0
    return w


@given(
    shape=st.tuples(st.integers(1, 400), st.integers(1, 24)),
    bits=st.sampled_from([2, 4, 8]),
    block_size=st.sampled_from(BLOCK_SIZES),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_rtn_is_byte_equal_to_onnxruntime(
    shape: tuple[int, int], bits: int, block_size: int, symmetric: bool, seed: int
) -> None:
    w = awkward(np.random.default_rng(seed), *shape)
    data, scales, zeros = onnxruntime_quantizes(w, bits, block_size, symmetric)
    for rows in (w.T, np.ascontiguousarray(w.T)):
        found = quantize_blocks(rows, BlockScheme(bits, block_size, symmetric))
        assert found.data.tobytes() == data.tobytes()
        assert found.scales.tobytes() == scales.tobytes()
        if symmetric:
            assert found.zero_points is None
        else:
            assert found.zero_points is not None
            assert found.zero_points.tobytes() == zeros.tobytes()


def test_rtn_is_byte_equal_to_onnxruntime_on_a_large_matrix() -> None:
    w = (RNG.standard_normal((1024, 512)) * 0.02).astype(np.float32)
    for bits in (2, 4, 8):
        data, scales, zeros = onnxruntime_quantizes(w, bits, 32, False)
        found = quantize_blocks(w.T, BlockScheme(bits, 32))
        assert found.data.tobytes() == data.tobytes()
        assert found.scales.tobytes() == scales.tobytes()
        assert found.zero_points is not None
        assert found.zero_points.tobytes() == zeros.tobytes()


def definition(weights: BlockWeights) -> NDArray[np.float64]:
    """The reals, with integers read bit by bit."""
    scheme, (n, k) = weights.scheme, weights.shape
    bits, blocks = scheme.stored_bits, scheme.blocks(weights.k)
    size = scheme.block_size or k

    def unpack(packed: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
        spread = np.unpackbits(packed, axis=-1, bitorder="little")
        fields = spread[..., : spread.shape[-1] // bits * bits].reshape(*packed.shape[:-1], -1, bits)
        return np.asarray(fields.astype(np.int64) @ (1 << np.arange(bits)))[..., :count]

    q = unpack(weights.data, size).reshape(n, blocks, size)
    zeros: Any = 1 << (bits - 1)
    if weights.zero_points is not None:
        zeros = unpack(weights.zero_points, blocks)[..., None]
    reals = (q - zeros) * weights.scales.astype(np.float64)[..., None]
    return np.asarray(reals.reshape(n, blocks * size)[:, :k])


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 200)),
    scheme=st.builds(
        BlockScheme, st.sampled_from([2, 3, 4, 8]), st.sampled_from([0, *BLOCK_SIZES]), symmetric=st.booleans()
    ),
    algorithm=st.sampled_from(ALGORITHMS),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_weight_is_within_reach_of_its_real(
    shape: tuple[int, int], scheme: BlockScheme, algorithm: str, seed: int
) -> None:
    w = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    found = quantize_blocks(w, scheme, algorithm)
    size = scheme.block_size or shape[1]
    reals = found.dequantize()
    np.testing.assert_allclose(reals, definition(found), rtol=1e-6, atol=1e-12)
    if algorithm == "rtn":
        step = np.abs(np.repeat(found.scales, size, axis=1)[:, : shape[1]])
        # An asymmetric zero point is rounded, and a symmetric grid lacks the last step on one side.
        assert np.all(np.abs(reals - w) <= step * 1.001)
    q, scales, zeros = found.to_dequantize_linear()
    spread = [np.repeat(x, size, axis=0)[: shape[1]] for x in (scales, 0 * scales if zeros is None else zeros)]
    np.testing.assert_array_equal((q - spread[1].astype(np.float32)) * spread[0], reals.T)


def run(weights: BlockWeights, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """onnxruntime's MatMulNBits in float32."""
    n, k = weights.shape
    initializers = [numpy_helper.from_array(weights.data, "b"), numpy_helper.from_array(weights.scales, "s")]
    if weights.zero_points is not None:
        initializers.append(numpy_helper.from_array(weights.zero_points, "z"))
    node = helper.make_node(
        "MatMulNBits", ["x", *(i.name for i in initializers)], ["y"], domain="com.microsoft",
        K=k, N=n, bits=weights.scheme.stored_bits, block_size=weights.scheme.block_size, accuracy_level=1,
    )  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_onnxruntime_runs_it_to_the_reals(bits: int, symmetric: bool) -> None:
    for block_size in BLOCK_SIZES:
        for k in (block_size * 2, block_size * 3 - 6):
            w = RNG.standard_normal((24, k)).astype(np.float32)
            x = RNG.standard_normal((5, k)).astype(np.float32)
            for algorithm in ALGORITHMS:
                found = quantize_blocks(w, BlockScheme(bits, block_size, symmetric), algorithm)
                expected = x.astype(np.float64) @ definition(found).T
                np.testing.assert_allclose(run(found, x), expected, rtol=1e-4, atol=1e-3)


def correlated(k: int, samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    x = rng.standard_normal((samples, max(k // 6, 1))) @ rng.standard_normal((max(k // 6, 1), k))
    return np.asarray((x + 0.3 * rng.standard_normal((samples, k))) * (1 + 5 * rng.random(k) ** 8))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gptq_keeps_outputs_nearer_than_rtn(bits: int, act_order: bool, algorithm: str) -> None:
    k = 192
    x = correlated(k, 1000, RNG)
    hessian = x.T @ x
    w = (RNG.standard_normal((48, k)) * 0.02).astype(np.float32)
    for block_size, symmetric in ((32, False), (128, True), (0, False)):
        scheme = BlockScheme(bits, block_size, symmetric)
        plain = quantize_blocks(w, scheme)
        found = gptq(w, hessian, scheme, act_order=act_order, algorithm=algorithm)
        assert found.error(w, hessian) < 0.5 * plain.error(w, hessian)
        outputs = x @ (w - found.dequantize()).T.astype(np.float64)
        assert found.error(w, hessian) == pytest.approx(float((outputs**2).sum()), rel=1e-6)
        assert found.damping == 0.01
        # A multiple of the Hessian, such as the mean, says the same.
        mean = gptq(w, hessian / 1024, scheme, act_order=act_order, algorithm=algorithm)
        assert mean.data.tobytes() == found.data.tobytes()


def test_threads_and_layouts_give_the_same_bytes() -> None:
    w = RNG.standard_normal((70, 90)).astype(np.float32)
    x = correlated(90, 300, RNG)
    scheme = BlockScheme(4, 16)

    def searched(w: NDArray[Any], threads: int | None) -> BlockWeights:
        return quantize_blocks(w, scheme, "mse", threads=threads)

    def fed_back(w: NDArray[Any], threads: int | None) -> BlockWeights:
        return gptq(w, x.T @ x, scheme, threads=threads)

    for make in (searched, fed_back):
        one = make(w, 1)
        for other in (make(w, 2), make(w, None), make(np.asfortranarray(w), 3), make(w.astype(np.float64), 1)):
            assert other.data.tobytes() == one.data.tobytes()
            assert other.scales.tobytes() == one.scales.tobytes()


def test_importance_draws_precision_to_where_it_is() -> None:
    w = RNG.standard_normal((16, 64)).astype(np.float32)
    importance = np.where(np.arange(64) % 8 == 0, 100.0, 1.0)
    scheme = BlockScheme(3, 32)
    for algorithm in ALGORITHMS[1:]:
        plain, drawn = (quantize_blocks(w, scheme, algorithm, importance=i) for i in (None, importance))
        assert drawn.error(w, importance) < plain.error(w, importance)


def test_values_of_a_scheme() -> None:
    assert BlockScheme(4, -1) == BlockScheme(4, 0)
    assert BlockScheme(3).stored_bits == 4
    assert (BlockScheme(4, 32).blocks(65), BlockScheme(4, 0).blocks(65)) == (3, 1)
    found = quantize_blocks(np.ones((3, 65)), BlockScheme(4, 32))
    assert (found.shape, found.data.shape, found.scales.shape) == ((3, 65), (3, 3, 16), (3, 3))
    assert found.zero_points is not None
    assert found.nbytes == 3 * 3 * 16 + 3 * 3 * 4 + 3 * 2
    with pytest.raises(FrozenInstanceError):
        found.k = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        found.data[0] = 1
    assert found.error(np.ones((3, 65))) == 0.0
    assert requant.BlockScheme is BlockScheme


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BlockScheme(5), ConfigError, "expected bits of 2, 3, 4 or 8, got 5"),
        (lambda: BlockScheme(4, 48), ConfigError, "expected a block_size of 16, 32, 64, 128 or 256, got 48"),
        (lambda: BlockScheme(4, 512), ConfigError, "got 512"),
        (lambda: quantize_blocks(np.ones(3), BlockScheme()), ConfigError, r"expected rows of shape (N, K), got (3,)"),
        (lambda: quantize_blocks(np.ones((2, 3)), BlockScheme(), "best"), ConfigError, "choose one of rtn, mse, hqq"),
        (lambda: quantize_blocks([["a"]], BlockScheme()), TypeError, "expected an array of real numbers"),
        (lambda: quantize_blocks(np.ones((2, 3)), BlockScheme(), threads=-1), ConfigError, "threads of at least 0"),
        (
            lambda: quantize_blocks(np.ones((2, 3)), BlockScheme(), "mse", importance=[1, 2]),
            ConfigError,
            "importance has 2 elements, expected 3",
        ),
        (
            lambda: quantize_blocks(np.ones((2, 3)), BlockScheme(), "mse", importance=[1, -2, 3]),
            ConfigError,
            "importance -2 at index 1",
        ),
        (lambda: quantize_blocks([[1, np.nan]], BlockScheme()), DataError, "value NaN at index [0, 1] is not finite"),
        (lambda: quantize_blocks(np.array([[1], [-np.inf]]).T, BlockScheme()), DataError, "value -inf at index [0, 1]"),
        (lambda: gptq(np.ones((2, 3)), np.eye(2), BlockScheme()), ConfigError, "hessian of shape (3, 3), got (2, 2)"),
        (
            lambda: gptq(np.ones((1, 2)), np.array([["a"] * 2] * 2), BlockScheme()),
            TypeError,
            "expected a hessian of real numbers",
        ),
        (
            lambda: gptq(np.ones((1, 2)), np.array([[1, 0], [np.nan, 1]]), BlockScheme()),
            ConfigError,
            "hessian has NaN at [1, 0]",
        ),
        (lambda: gptq(np.ones((1, 2)), -np.eye(2), BlockScheme()), ConfigError, "hessian has -1 at [0, 0]"),
        (lambda: gptq(np.ones((1, 2)), np.eye(2), BlockScheme(), damping=-1), ConfigError, "damping -1 is not finite"),
        (
            lambda: gptq(np.ones((1, 2)), np.eye(2), BlockScheme(), static_groups=False),
            ConfigError,
            "act_order needs static_groups",
        ),
        (
            lambda: gptq(np.ones((1, 2)), [[1e-9, 1e9], [1e9, 0]], BlockScheme()),
            ConfigError,
            "hessian is not positive definite, even with 1",
        ),
        (
            lambda: quantize_blocks(np.ones((2, 3)), BlockScheme()).error(np.ones((3, 2))),
            ConfigError,
            "rows of shape (2, 3)",
        ),
        (
            lambda: quantize_blocks(np.ones((2, 3)), BlockScheme()).error(np.ones((2, 3)), np.eye(2)),
            ConfigError,
            "second_moment of shape (3, 3), got (2, 2)",
        ),
    ],
)
def test_wrong_input_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_damping_that_it_took_is_told() -> None:
    w = RNG.standard_normal((4, 32)).astype(np.float32)
    found = gptq(w, np.ones((32, 32)), BlockScheme(4, 16), damping=0.0)
    assert found.damping is not None
    assert 0 < found.damping < 0.01
    assert quantize_blocks(w, BlockScheme()).damping is None


def test_packed_blocks_take_it() -> None:
    w = RNG.standard_normal((20, 100)).astype(np.float32)
    found = quantize_blocks(w, BlockScheme(4, 32), "mse")
    packed = requant.PackedBlocks.from_nbits(found.data, found.scales, found.zero_points, k=100)
    np.testing.assert_array_equal(packed.dequantize(), found.dequantize().T)

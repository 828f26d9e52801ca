"""onnxruntime's MatMulNBits with 4 bits: equal results of equal weights, and no more error than its int8 arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from requant.arrays.matmul import PackedBlocks, qmatmul

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT, INT8 = 0, 4  # accuracy levels


def run(
    a: NDArray[np.float32], weights: list[NDArray[Any]], k: int, block_size: int, accuracy_level: int
) -> NDArray[np.float32]:
    ort = pytest.importorskip("onnxruntime")
    names = ["b", "scales", "zero_points"][: len(weights)]
    node = helper.make_node(
        "MatMulNBits", ["a", *names], ["y"], domain="com.microsoft",
        K=k, N=len(weights[0]), bits=4, block_size=block_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "nbits",
        [helper.make_tensor_value_info("a", 1, list(a.shape))],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in zip(names, weights, strict=True)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"a": a})[0])


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("shape", [(1, 512, 40), (5, 768, 33), (32, 300, 48)])
def test_equals_onnxruntime(shape: tuple[int, int, int], asymmetric: bool, block_size: int) -> None:
    (m, k, n), rng = shape, np.random.default_rng(block_size)
    blocks = -(-k // block_size)
    a = rng.standard_normal((m, k)).astype(np.float32)
    a[:, ::97] *= 8  # channels with outliers
    weights: list[NDArray[Any]] = [
        rng.integers(0, 256, (n, blocks, block_size // 2), np.uint8),
        (rng.random((n, blocks)) * 0.01 + 0.01).astype(np.float32),
    ]
    if asymmetric:
        weights.append(rng.integers(0, 256, (n, -(-blocks // 2)), np.uint8))
    packed = PackedBlocks.from_nbits(*weights, k=k)
    assert (packed.shape, packed.block_size) == ((k, n), block_size)

    exact = a.astype(np.float64) @ packed.dequantize().astype(np.float64)
    size = float(np.sqrt(np.mean(exact**2)))
    np.testing.assert_allclose(run(a, weights, k, block_size, EXACT), exact, rtol=0, atol=1e-4 * size)
    np.testing.assert_allclose(qmatmul(a, packed, activations="float"), exact, rtol=0, atol=1e-5 * size)

    def error(got: NDArray[np.float32]) -> float:
        return float(np.sqrt(np.mean((got - exact) ** 2))) / size

    ours, theirs = error(qmatmul(a, packed)), error(run(a, weights, k, block_size, INT8))
    assert ours < 0.03
    # Where it has no int8 kernel for a block size, onnxruntime computes with reals.
    assert ours <= 1.01 * theirs or theirs < 1e-5

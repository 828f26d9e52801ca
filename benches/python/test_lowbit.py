"""Low-bit weights beside onnxruntime's quantizer, NumPy's Cholesky and a read of the matrix, all on one core.

taskset -c 0 python -m pytest benches/python/test_lowbit.py --benchmark-only
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from requant.arrays.lowbit import ALGORITHMS, BlockScheme, gptq, quantize_blocks
from requant.gguf.blocks import BLOCK_TYPES, quantize_gguf

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE, BLOCK = 4096, 32


@pytest.fixture(scope="module")
def w() -> NDArray[np.float32]:
    """As MatMul has it, ``[K, N]``."""
    return np.random.default_rng(0).normal(0, 0.02, (SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def hessian() -> NDArray[np.float64]:
    """Positive definite."""
    x = np.random.default_rng(1).standard_normal((2 * SIZE, SIZE)).astype(np.float32)
    return np.asarray((x.T @ x).astype(np.float64))


@pytest.mark.benchmark(group="rtn int4")
def test_read_numpy(benchmark: Any, w: NDArray[np.float32]) -> None:
    benchmark(w.max)


@pytest.mark.benchmark(group="rtn int4")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_rtn_requant(benchmark: Any, w: NDArray[np.float32], layout: str, symmetric: bool) -> None:
    rows = w.T if layout == "columns" else np.ascontiguousarray(w.T)
    scheme = BlockScheme(4, BLOCK, symmetric)
    benchmark(quantize_blocks, rows, scheme, threads=1)


@pytest.mark.benchmark(group="rtn int4")
@pytest.mark.parametrize("symmetric", [False, True])
def test_rtn_onnxruntime(benchmark: Any, w: NDArray[np.float32], symmetric: bool) -> None:
    from onnxruntime.capi import _pybind_state as core

    blocks = SIZE // BLOCK
    data = np.zeros((SIZE, blocks, BLOCK // 2), np.uint8)
    scales, zeros = np.zeros((SIZE, blocks), np.float32), np.zeros((SIZE, blocks // 2), np.uint8)
    arguments = data, w, scales, zeros, BLOCK, SIZE, SIZE, symmetric
    benchmark.pedantic(core.quantize_matmul_4bits, arguments, rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="searches int4")
@pytest.mark.parametrize("algorithm", ALGORITHMS[1:])
def test_search_requant(benchmark: Any, w: NDArray[np.float32], algorithm: str) -> None:
    arguments = np.ascontiguousarray(w.T), BlockScheme(4, BLOCK), algorithm
    benchmark.pedantic(quantize_blocks, arguments, {"threads": 1}, rounds=3)


@pytest.mark.benchmark(group="gguf")
@pytest.mark.parametrize("dtype", [name for name in BLOCK_TYPES if name.startswith("q")])
def test_gguf_requant(benchmark: Any, w: NDArray[np.float32], dtype: str) -> None:
    benchmark.pedantic(quantize_gguf, (w, dtype), {"threads": 1}, rounds=3)


@pytest.mark.benchmark(group="gptq int4")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cholesky_numpy(benchmark: Any, hessian: NDArray[np.float64], dtype: str) -> None:
    damped = (hessian + 0.01 * hessian.trace() / SIZE * np.eye(SIZE)).astype(dtype)
    benchmark.pedantic(np.linalg.cholesky, (damped,), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="gptq int4")
@pytest.mark.parametrize("algorithm", ["rtn", "mse"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_requant(
    benchmark: Any, w: NDArray[np.float32], hessian: NDArray[np.float64], algorithm: str, act_order: bool
) -> None:
    arguments = w.T, hessian, BlockScheme(4, BLOCK)
    options = {"algorithm": algorithm, "act_order": act_order, "threads": 1}
    benchmark.pedantic(gptq, arguments, options, rounds=3)

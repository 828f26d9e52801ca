"""Products with 4-bit weights in blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import peers
from harness import Claim, Row

import requant

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = ("512x512x512", "1024x1024x1024", "128x768x3072", "16x4096x4096", "1x4096x4096")


def rows(vnni: bool) -> Iterator[Row]:  # noqa: ARG001 - the asked ratios are those of every machine
    for shape in SHAPES:
        yield row(shape, 32)
    yield row("1024x1024x1024", 128)


def row(shape: str, block_size: int) -> Row:
    m, k, n = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    a = rng.standard_normal((m, k)).astype(np.float32)
    a[:, ::97] *= 8  # channels with outliers, as transformers have
    b = rng.integers(0, 256, (n, k // block_size, block_size // 2), np.uint8)
    scales = (rng.random((n, k // block_size)) * 0.01 + 0.01).astype(np.float32)
    packed, out = requant.PackedBlocks.from_nbits(b, scales), np.empty((m, n), np.float32)

    def level(accuracy_level: int) -> Any:
        attributes = {"K": k, "N": n, "bits": 4, "block_size": block_size, "accuracy_level": accuracy_level}
        constants = {"b": b, "scales": scales}
        return peers.one_node("MatMulNBits", a, constants, output=np.float32, domain="com.microsoft", **attributes)

    runs = {
        "int8 activations": lambda: requant.qmatmul(a, packed, threads=1, out=out),
        "float activations": lambda: requant.qmatmul(a, packed, activations="float", threads=1, out=out),
        "onnxruntime MatMulNBits level 4": level(4),
        "onnxruntime MatMulNBits level 0": level(0),
    }
    exact = a.astype(np.float64) @ packed.dequantize().astype(np.float64)

    def error(result: np.ndarray) -> float:
        return float(np.sqrt(np.mean((result - exact) ** 2) / np.mean(exact**2)))

    own, other = error(runs["int8 activations"]()), error(runs["onnxruntime MatMulNBits level 4"]()[0])
    claim = Claim("int8 activations", "onnxruntime MatMulNBits level 4", 2.7 if m > 1 else 1.5)
    note = f"error {own:.1e}, onnxruntime level 4 {other:.1e}"
    return Row("4-bit weights", f"{shape}, blocks of {block_size}", 2 * m * k * n, "op", runs, (claim,), note)

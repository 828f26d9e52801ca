"""Products of 8-bit matrices."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import peers
from harness import PEAK, Claim, Row
from onnx import TensorProto

import requant

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = ["512x512x512", "1024x1024x1024", "2048x2048x2048"]
MEDIUM = ["128x768x3072", "196x2304x256"]
THIN = ["3136x576x64"]
SKINNY = ["16x4096x4096", "1x4096x4096"]
WEIGHT_ZERO_POINT = {"u8": 121, "s8": 0}
QLINEAR = ("x", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point")


def rows(vnni: bool) -> Iterator[Row]:
    """The GEMM rows. Without VNNI onnxruntime's u8s8 is no peer: it saturates, so the exact u8u8 stands in for it."""
    exact = "s8" if vnni else "u8"
    peer = f"onnxruntime MatMulInteger u8{exact}"
    peer_requantized = f"onnxruntime QLinearMatMul u8{exact}"
    share = 0.65
    for shape in LARGE + MEDIUM + THIN + SKINNY:
        claims = [Claim("u8s8 to i32", "NumPy float32", 4 if vnni else 1.4)]
        if shape in LARGE:
            claims.append(Claim("u8s8 to i32", PEAK, 0.78 if vnni else share))
            claims.append(Claim("u8s8 to i32", peer, 1.2 if vnni else 1))
        elif shape in MEDIUM:
            claims.append(Claim("u8s8 to i32", PEAK, 0.80 if vnni else share))
            claims.append(Claim("u8s8 to i32", peer, 1.25 if vnni else 1))
        elif shape in SKINNY:
            claims.append(Claim("u8s8 to i32", peer, (1.35 if shape.startswith("16x") else 1.2) if vnni else 1))
        if shape == "1024x1024x1024":
            claims.append(Claim("u8s8 to u8", PEAK, 0.80 if vnni else share))
            claims.append(Claim("u8s8 to u8", peer_requantized, 1.4 if vnni else 1))
        if shape not in SKINNY:
            claims += [Claim("s8s8 to i32", "u8s8 to i32", 0.95), Claim("u8u8 to i32", "u8s8 to i32", 0.95)]
            claims.append(Claim("s8s8 to i32", "onnxruntime MatMulInteger s8s8", 20 if vnni else 1))
            claims.append(Claim("u8u8 to i32", "onnxruntime MatMulInteger u8u8", 3.8 if vnni else 1))
        yield row(shape, claims)
    yield two_threads()


def row(shape: str, claims: list[Claim]) -> Row:
    m, k, n = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (m, k), np.uint8)
    b = {"u8": rng.integers(0, 256, (k, n), np.uint8), "s8": rng.integers(-128, 128, (k, n), np.int8)}
    packed = {name: requant.PackedWeights(value, zero_point=WEIGHT_ZERO_POINT[name]) for name, value in b.items()}
    b_scale = (rng.random(n) * 0.01 + 0.01).astype(np.float32)
    requantizer = requant.Requantizer(0.02, b_scale, 3.0, y_zero_point=128)
    sums, reals, integers = np.empty((m, n), np.int32), np.empty((m, n), np.float32), np.empty((m, n), np.uint8)
    x, y = a.astype(np.float32), b["s8"].astype(np.float32)
    matmul = requant.qmatmul
    runs = {
        "u8s8 to i32": lambda: matmul(a, packed["s8"], a_zero_point=128, threads=1, out=sums),
        "u8u8 to i32": lambda: matmul(a, packed["u8"], a_zero_point=128, threads=1, out=sums),
        "s8s8 to i32": lambda: matmul(a.view(np.int8), packed["s8"], threads=1, out=sums),
        "u8s8 to f32": lambda: matmul(
            a, packed["s8"], a_zero_point=128, a_scale=0.02, b_scale=b_scale, threads=1, out=reals
        ),
        "u8s8 to u8": lambda: matmul(
            a, packed["s8"], a_zero_point=128, requantizer=requantizer, threads=1, out=integers
        ),
        "NumPy float32": lambda: np.matmul(x, y, out=reals),
    }
    zero = {"a_zero_point": np.asarray(128, np.uint8)}
    for name, value in b.items():
        b_zero_point = np.asarray(WEIGHT_ZERO_POINT[name], value.dtype)
        constants = {"b": value, **zero, "b_zero_point": b_zero_point}
        runs[f"onnxruntime MatMulInteger u8{name}"] = peers.one_node(
            "MatMulInteger", a, constants, output=TensorProto.INT32
        )
        constants |= {
            "a_scale": np.asarray(0.02, np.float32), "b_scale": b_scale, "y_scale": np.asarray(3, np.float32),
            "b_zero_point": np.full(n, b_zero_point), "y_zero_point": np.asarray(128, np.uint8),
        }  # fmt: skip
        runs[f"onnxruntime QLinearMatMul u8{name}"] = peers.one_node(
            "QLinearMatMul", a, constants, output=TensorProto.UINT8, order=QLINEAR
        )
    runs["onnxruntime MatMulInteger s8s8"] = peers.one_node(
        "MatMulInteger", a.view(np.int8), {"b": b["s8"]}, output=TensorProto.INT32
    )
    wrong = np.mean(runs["u8s8 to i32"]() != runs["onnxruntime MatMulInteger u8s8"]()[0])
    note = f"{wrong:.0%} of the sums of onnxruntime's u8s8 are wrong: it saturates" if wrong else ""
    return Row("GEMM", shape, 2 * m * k * n, "op", runs, tuple(claims), note)


def two_threads() -> Row:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (1024, 1024), np.uint8)
    packed = requant.PackedWeights(rng.integers(-128, 128, (1024, 1024), np.int8))
    out = np.empty((1024, 1024), np.int32)
    runs = {
        f"{threads} thread{'s' * (threads > 1)}": lambda threads=threads: requant.qmatmul(
            a, packed, threads=threads, out=out
        )
        for threads in (1, 2)
    }
    claims = (Claim("2 threads", "1 thread", 1.8),)
    return Row("GEMM", "1024x1024x1024, threads", 2 * 1024**3, "op", runs, claims, "wall time", time.perf_counter)

"""Products with 4-bit weights beside onnxruntime's MatMulNBits, on one thread of one core.

    python benches/python/matmul_nbits.py [--rounds N] [--shapes MxKxN ...] [--blocks N ...] [--core N] [--record FILE]

Every round times each competitor once, by CPU time of the thread, beside a register-only loop of vpmaddwd and vpaddd: a
round in which that loop was slower than 94 % of its best is taken again, since something else had the core. Figures are
medians over rounds, in GOPS (a multiplication and an addition are two); errors are relative to the product of the
same weights in float64, as root mean squares. Weights are constants of both, packed once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matmul import QUIET, SAMPLE_SECONDS, TRIES, peak_binary

from requant.matmul import PackedBlocks, qmatmul

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = "512x512x512 1024x1024x1024 128x768x3072 16x4096x4096 1x4096x4096"


def session(a: np.ndarray, b: np.ndarray, scales: np.ndarray, accuracy_level: int) -> Callable[[], np.ndarray]:
    """MatMulNBits in onnxruntime with everything but ``a`` constant."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "MatMulNBits", ["a", "b", "scales"], ["y"], domain="com.microsoft",
        K=a.shape[1], N=len(b), bits=4, block_size=2 * b.shape[2], accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "nbits",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, list(a.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(b, "b"), numpy_helper.from_array(scales, "scales")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    run = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run
    return lambda: run(None, {"a": a})[0]


def measure(shape: str, block_size: int, rounds: int, peak: Callable[[], float]) -> dict[str, Any]:
    m, k, n = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    a = rng.standard_normal((m, k)).astype(np.float32)
    a[:, ::97] *= 8  # channels with outliers, as transformers have
    b = rng.integers(0, 256, (n, k // block_size, block_size // 2), np.uint8)
    scales = (rng.random((n, k // block_size)) * 0.01 + 0.01).astype(np.float32)
    packed, out = PackedBlocks.from_nbits(b, scales), np.empty((m, n), np.float32)
    runs: dict[str, Callable[[], np.ndarray]] = {
        "requant int8": lambda: qmatmul(a, packed, threads=1, out=out),
        "ort level 4": session(a, b, scales, 4),
        "requant float": lambda: qmatmul(a, packed, activations="float", threads=1, out=out),
        "ort level 0": session(a, b, scales, 0),
    }
    exact = a.astype(np.float64) @ packed.dequantize().astype(np.float64)
    size, operations = np.sqrt(np.mean(exact**2)), 2 * m * k * n
    error, repeats = {}, {}
    for name, run in runs.items():
        error[name] = float(np.sqrt(np.mean((run() - exact) ** 2)) / size)
        start = time.thread_time()
        run()
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(time.thread_time() - start, 1e-6)))
    best, rejected = peak(), 0
    kept: dict[str, list[float]] = {"peak": [], **{name: [] for name in runs}}
    for _ in range(rounds * TRIES):
        before, sample = peak(), {}
        for name, run in runs.items():
            run()  # the operands are in the cache, if they fit, and not those of the one before
            start = time.thread_time()
            for _ in range(repeats[name]):
                run()
            sample[name] = operations * repeats[name] / (time.thread_time() - start) / 1e9
        after = peak()
        best = max(best, before, after)
        if min(before, after) < QUIET * best:
            rejected += 1
            continue
        kept["peak"].append(statistics.fmean((before, after)))
        for name, gops in sample.items():
            kept[name].append(gops)
        if len(kept["peak"]) == rounds:
            break
    gops = {name: statistics.median(values) for name, values in kept.items() if values}
    return {
        "shape": shape, "block_size": block_size, "rounds": len(kept["peak"]), "rejected": rejected,
        "gops": gops, "error": error,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", default=SHAPES.split())
    parser.add_argument("--blocks", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    binary = peak_binary()
    os.sched_setaffinity(0, {arguments.core})

    def peak() -> float:
        return float(subprocess.run([binary], capture_output=True, text=True, check=True).stdout)

    results = []
    for shape in arguments.shapes:
        for block_size in arguments.blocks:
            result = measure(shape, block_size, arguments.rounds, peak)
            results.append(result)
            gops, error = result["gops"], result["error"]
            print(f"{shape} block {block_size}: {result['rounds']} quiet rounds, {result['rejected']} taken again")
            for name, peer in (("requant int8", "ort level 4"), ("requant float", "ort level 0")):
                for who in (name, peer):
                    print(f"    {who:14}{gops.get(who, float('nan')):8.1f} GOPS   error {error[who]:.2e}")
                if name in gops:
                    print(f"    {'':14}{gops[name] / gops[peer]:8.2f} x", flush=True)
    if arguments.record:
        arguments.record.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

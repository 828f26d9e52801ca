"""The integer GEMM beside numpy's float32 product and onnxruntime's integer ones, on one thread of one core.

    python benches/python/matmul.py [--rounds N] [--shapes MxKxN ...] [--core N] [--record FILE.json]

Every round times each competitor once, by CPU time of the thread, between two runs of a register-only loop of vpmaddwd
and vpaddd (the limit of exact AVX2 arithmetic): a round in which that loop was slower than 94 % of its best is taken
again, since something else had the core. Figures are medians over rounds, in GOPS (a multiplication and an addition
are two), and in percent of the loop. onnxruntime has its weights as constants, so that it packs them once too. Without
VNNI its u8s8 kernels saturate: the share of MatMulInteger's sums that are wrong stands beside its figure.
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

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np  # noqa: E402 - it reads the environment

from requant.matmul import PackedWeights, Requantizer, qmatmul  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
SHAPES = "512x512x512 1024x1024x1024 2048x2048x2048 128x768x3072 196x2304x256 3136x576x64 16x4096x4096 1x4096x4096"
WEIGHT_ZERO_POINT = {"u8": 121, "s8": 0}
QUIET = 0.94
SAMPLE_SECONDS = 0.02
TRIES = 6  # rounds that may be taken for one that counts


def peak_binary() -> Path:
    command = ["cargo", "build", "--quiet", "--release", "--package", "requant-core", "--example", "peak"]
    subprocess.run(command, cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / "examples" / "peak"


def peak() -> Callable[[], float]:
    """Runs the register-only loop, and gives its GOPS."""
    binary = peak_binary()
    return lambda: float(subprocess.run([binary], capture_output=True, text=True, check=True).stdout)


def session(
    op: str, a: np.ndarray, constants: dict[str, np.ndarray], output: int, attributes: dict[str, Any] | None = None
) -> Callable[[], Any]:
    """One node in onnxruntime with everything but ``a`` constant."""
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(a.dtype)
    names = ["a", *constants]
    if op == "QLinearMatMul":
        names = ["a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point"]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **(attributes or {}))], op,
        [helper.make_tensor_value_info("a", kind, list(a.shape))],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    run = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run
    feeds = {"a": a}
    return lambda: run(None, feeds)


def competitors(m: int, k: int, n: int) -> dict[str, Callable[[], Any]]:
    from onnx import TensorProto

    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (m, k), np.uint8)
    b = {"u8": rng.integers(0, 256, (k, n), np.uint8), "s8": rng.integers(-128, 128, (k, n), np.int8)}
    a_signed = a.view(np.int8)
    packed = {name: PackedWeights(value, zero_point=WEIGHT_ZERO_POINT[name]) for name, value in b.items()}
    b_scale = (rng.random(n) * 0.01 + 0.01).astype(np.float32)
    requantizer = Requantizer(0.02, b_scale, 3.0, y_zero_point=128)
    sums, reals, integers = np.empty((m, n), np.int32), np.empty((m, n), np.float32), np.empty((m, n), np.uint8)
    x, y = a.astype(np.float32), b["s8"].astype(np.float32)
    zero_points = {"a_zero_point": np.asarray(128, np.uint8)}
    runs: dict[str, Callable[[], Any]] = {
        "requant u8s8 i32": lambda: qmatmul(a, packed["s8"], a_zero_point=128, threads=1, out=sums),
        "requant u8u8 i32": lambda: qmatmul(a, packed["u8"], a_zero_point=128, threads=1, out=sums),
        "requant s8s8 i32": lambda: qmatmul(a_signed, packed["s8"], threads=1, out=sums),
        "requant u8s8 f32": lambda: qmatmul(
            a, packed["s8"], a_zero_point=128, a_scale=0.02, b_scale=b_scale, threads=1, out=reals
        ),
        "requant u8s8 u8": lambda: qmatmul(
            a, packed["s8"], a_zero_point=128, requantizer=requantizer, threads=1, out=integers
        ),
        "numpy f32": lambda: np.matmul(x, y, out=reals),
    }
    for name, value in b.items():
        b_zero_point = np.asarray(WEIGHT_ZERO_POINT[name], value.dtype)
        constants = {"b": value, **zero_points, "b_zero_point": b_zero_point}
        runs[f"ort MatMulInteger u8{name}"] = session("MatMulInteger", a, constants, TensorProto.INT32)
        constants |= {
            "a_scale": np.asarray(0.02, np.float32), "b_scale": b_scale, "y_scale": np.asarray(3, np.float32),
            "b_zero_point": np.full(n, b_zero_point), "y_zero_point": np.asarray(128, np.uint8),
        }  # fmt: skip
        runs[f"ort QLinearMatMul u8{name}"] = session("QLinearMatMul", a, constants, TensorProto.UINT8)
    return runs


def measure(shape: str, rounds: int, peak: Callable[[], float]) -> dict[str, Any]:
    m, k, n = map(int, shape.split("x"))
    runs = competitors(m, k, n)
    wrong = float(np.mean(runs["requant u8s8 i32"]() != runs["ort MatMulInteger u8s8"]()[0]))
    return {"shape": shape, "wrong": wrong, **interleave(runs, 2 * m * k * n, rounds, peak)}


def interleave(
    runs: dict[str, Callable[[], Any]], operations: int, rounds: int, peak: Callable[[], float]
) -> dict[str, Any]:
    """Median GOPS of each of ``runs``, which do so many operations, over rounds in which the core was quiet."""
    repeats = {}
    for name, run in runs.items():
        run()
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
    return {"rounds": len(kept["peak"]), "rejected": rejected, "gops": gops}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", default=SHAPES.split())
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    loop = peak()
    os.sched_setaffinity(0, {arguments.core})
    results = []
    for shape in arguments.shapes:
        result = measure(shape, arguments.rounds, loop)
        results.append(result)
        gops = result["gops"]
        print(f"{shape}: {result['rounds']} quiet rounds, {result['rejected']} taken again")
        for name, value in gops.items():
            note = f"   {result['wrong']:.0%} of the sums are wrong" if name == "ort MatMulInteger u8s8" else ""
            print(f"    {name:26}{value:8.1f} GOPS{100 * value / gops['peak']:6.0f} %{note}", flush=True)
    if arguments.record:
        arguments.record.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

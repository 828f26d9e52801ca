"""What calibration costs beside the bare float inference of the same samples, and whether its memory grows.

    python benches/python/calibration_cost.py [MODEL.onnx DATA.npz ...]

Without arguments it measures the shipped digits model and four generated networks, the last two as large as real ones.
Each measurement runs in a process of its own, pinned to one core or to two. The ratio is (statistics of every planned
tensor and the ranges of all ten methods) / (onnxruntime running the prepared float model over the same batches), the
median of interleaved rounds; on one core of CPU time, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import networks
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
SAMPLES = 256
NETWORKS = {
    "dense": partial(networks.plain, channels=32, blocks=6, depthwise=False),
    "depthwise": partial(networks.plain, channels=64, blocks=6, depthwise=True),
    "residual": networks.residual,
    "inverted": networks.inverted,
}


def measure(model: str, data: str, cores: int, samples: int) -> dict[str, float]:
    """Seconds of inference and of calibration, in this process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from requant import QuantConfig
    from requant.calibration.run import calibrate_graph
    from requant.data import DataOptions, open_data
    from requant.onnx.passes import prepare
    from requant.planning.build import build_plan
    from requant.runtime import open_runner
    from requant.stages import load_float

    config = QuantConfig(threads=cores, samples=samples)
    graph, _ = prepare(load_float(model))
    plan = build_plan(graph, config)
    options = DataOptions(samples=samples)

    def bare() -> None:
        runner = open_runner(graph.to_bytes(), threads=cores)
        for batch in open_data(data, graph.inputs, options).batches():
            runner.run(batch.feeds)

    def calibrated() -> None:
        calibrate_graph(graph, plan, open_data(data, graph.inputs, options), config).all_ranges(config)

    clock = time.process_time if cores == 1 else time.perf_counter
    times: dict[str, list[float]] = {"bare": [], "calibrated": []}
    for _ in range(ROUNDS):
        for job in (bare, calibrated):
            start = clock()
            job()
            times[job.__name__].append(clock() - start)
    bare_seconds = statistics.median(times["bare"])
    return {
        "ms_per_sample": bare_seconds / samples * 1e3,
        "ratio": statistics.median(c / b for b, c in zip(times["bare"], times["calibrated"], strict=True)),
        "tensors": len(plan.calibrated),
    }


def memory(model: str, data: str, samples: int) -> float:
    """Peak memory of one calibration over ``samples``, in MB."""
    import requant

    requant.calibrate(model, data, samples=samples)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(*arguments: object) -> str:
    """One measurement in a fresh process."""
    line = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Measure every model and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="pairs of a model and its data")
    parser.add_argument("--json", help="also write the rows there")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(Path(m), Path(d)) for m, d in zip(args.files[::2], args.files[1::2], strict=True)]
        if not pairs:
            pairs = [(ROOT / "examples/digits/digits.onnx", ROOT / "examples/digits/calib.npz")]
            for name, write in NETWORKS.items():
                path = Path(folder, f"{name}.onnx")
                size = write(path)
                images = np.random.default_rng(0).standard_normal((SAMPLES, 3, size, size), np.float32)
                np.savez(path.with_suffix(".npz"), x=images)
                pairs.append((path, path.with_suffix(".npz")))
        print(f"{'model':24}{'tensors':>8}{'ms/sample':>11}{'1 core':>8}{'2 cores':>9}{'MB 512/32':>11}")
        for model, data in pairs:
            one, two = (json.loads(child("--measure", model, data, cores, SAMPLES)) for cores in (1, 2))
            with np.load(data) as arrays:
                larger = {k: np.resize(arrays[k], (512, *arrays[k].shape[1:])) for k in arrays.files}
            big = Path(folder, "512.npz")
            np.savez(big, **larger)
            few, many = (float(child("--memory", model, big, samples)) for samples in (32, 512))
            row = {
                "model": model.parent.name if model.stem == "model" else model.stem,
                **one,
                "ratio_2_cores": two["ratio"],
                "memory_512_over_32": many / few,
            }
            rows.append(row)
            print(
                f"{row['model']:24}{row['tensors']:8}{row['ms_per_sample']:11.3f}{row['ratio']:8.2f}"
                f"{row['ratio_2_cores']:9.2f}{row['memory_512_over_32']:11.2f}",
                flush=True,
            )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--measure", model, data, cores, samples]:
            print(json.dumps(measure(model, data, int(cores), int(samples))))
        case ["--memory", model, data, samples]:
            print(memory(model, data, int(samples)))
        case _:
            main()

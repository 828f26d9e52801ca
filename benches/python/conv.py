"""Integer convolution beside onnxruntime's, on one thread of one core.

    python benches/python/conv.py [--rounds N] [--layers SIDExCHANNELSxFILTERSxKERNELxGROUPS ...] [--core N]
        [--record FILE.json]

Timed as matmul.py does it: every round times each competitor once, by CPU time of the thread, between two runs of the
register-only loop of vpmaddwd and vpaddd, and is taken again if that loop was slow. Figures are medians over rounds, in
GOPS and in percent of the loop. onnxruntime has its weights as constants and its images channels first, and may reorder
both as it likes. Without VNNI its u8s8 kernels saturate: the share of QLinearConv's results that are wrong stands
beside them.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matmul  # sets the number of threads before it imports NumPy
import numpy as np

from requant.conv import PackedConv, qconv2d
from requant.matmul import Requantizer

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS = "56x64x64x3x1 14x256x256x3x1 28x128x256x1x1 112x32x32x3x32 14x256x256x3x256 28x128x128x5x128"
WEIGHT_ZERO_POINT = {"u8": 121, "s8": 0}


def competitors(side: int, channels: int, filters: int, kernel: int, groups: int) -> dict[str, Callable[[], Any]]:
    from onnx import TensorProto

    rng = np.random.default_rng(0)
    shape = (filters, channels // groups, kernel, kernel)
    x = rng.integers(0, 256, (1, side, side, channels), np.uint8)
    x_first = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    weights = {"u8": rng.integers(0, 256, shape, np.uint8), "s8": rng.integers(-128, 128, shape, np.int8)}
    pads = [kernel // 2] * 4
    attributes = {"pads": pads, "group": groups}
    w_scale = (rng.random(filters) * 0.01 + 0.01).astype(np.float32)
    requantizer = Requantizer(0.02, w_scale, 3.0, y_zero_point=128)
    sums, integers = (np.empty((1, side, side, filters), dtype) for dtype in (np.int32, np.uint8))
    runs: dict[str, Callable[[], Any]] = {}
    for name, w in weights.items():
        packed = PackedConv(w, zero_point=WEIGHT_ZERO_POINT[name], pads=pads, groups=groups)
        runs[f"requant u8{name} i32"] = lambda packed=packed: qconv2d(x, packed, x_zero_point=128, threads=1, out=sums)
        runs[f"requant u8{name} u8"] = lambda packed=packed: qconv2d(
            x, packed, x_zero_point=128, requantizer=requantizer, threads=1, out=integers
        )
        x_zero_point, w_zero_point = np.asarray(128, np.uint8), np.asarray(WEIGHT_ZERO_POINT[name], w.dtype)
        constants = {"w": w, "x_zero_point": x_zero_point, "w_zero_point": w_zero_point}
        runs[f"ort ConvInteger u8{name}"] = matmul.session(
            "ConvInteger", x_first, constants, TensorProto.INT32, attributes
        )
        constants = {
            "x_scale": np.asarray(0.02, np.float32), "x_zero_point": x_zero_point, "w": w, "w_scale": w_scale,
            "w_zero_point": np.full(filters, w_zero_point), "y_scale": np.asarray(3, np.float32),
            "y_zero_point": np.asarray(128, np.uint8),
        }  # fmt: skip
        runs[f"ort QLinearConv u8{name}"] = matmul.session(
            "QLinearConv", x_first, constants, TensorProto.UINT8, attributes
        )
    reals = {"w": weights["s8"].astype(np.float32)}
    runs["ort Conv f32"] = matmul.session("Conv", x_first.astype(np.float32), reals, TensorProto.FLOAT, attributes)
    return runs


def measure(layer: str, rounds: int, peak: Callable[[], float]) -> dict[str, Any]:
    side, channels, filters, kernel, groups = map(int, layer.split("x"))
    runs = competitors(side, channels, filters, kernel, groups)
    exact, ort = runs["requant u8s8 u8"](), runs["ort QLinearConv u8s8"]()[0]
    wrong = float(np.mean(exact != np.moveaxis(ort, 1, -1)))
    operations = 2 * side * side * filters * (channels // groups) * kernel**2
    return {"layer": layer, "wrong": wrong, **matmul.interleave(runs, operations, rounds, peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", nargs="+", default=LAYERS.split())
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    peak = matmul.peak()
    os.sched_setaffinity(0, {arguments.core})
    results = []
    for layer in arguments.layers:
        result = measure(layer, arguments.rounds, peak)
        results.append(result)
        gops = result["gops"]
        print(f"{layer}: {result['rounds']} quiet rounds, {result['rejected']} taken again")
        for name, value in gops.items():
            note = f"   {result['wrong']:.0%} of the results are wrong" if name == "ort QLinearConv u8s8" else ""
            print(f"    {name:26}{value:8.1f} GOPS{100 * value / gops['peak']:6.0f} %{note}", flush=True)
    if arguments.record:
        arguments.record.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

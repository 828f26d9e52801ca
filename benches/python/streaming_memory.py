"""Memory and time of quantizing the weights of a model that is larger than memory, 27 GB as it is.

    .venv/bin/python benches/python/streaming_memory.py FOLDER [--layers 32] [--half] [-- OPTIONS OF requant quantize]

A transformer of the shape of a 7-billion-parameter language model, of normal weights in external data, is written to
FOLDER (and kept there for further runs), and ``requant quantize`` runs in a process of its own. Printed are its highest
``RssAnon`` and ``RssFile`` (Linux), memory that only it has, and pages of files, which the system takes back at will,
the highest sum of both, and its time beside that of input and output alone, before and after it: reading the weights,
which are not in the page cache then, and writing as many bytes as the result has.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_CHUNK = 1 << 22
_PAGE = 4096


class Model:
    """A model under construction, its matrices on disk."""

    def __init__(self, data: BinaryIO, dtype: type[np.floating[Any]]) -> None:
        self.data, self.dtype = data, dtype
        self.kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def matrix(self, name: str, *shape: int) -> str:
        """Normal weights, a few megabytes in memory at a time."""
        self.data.write(b"\0" * (-self.data.tell() % _PAGE))
        start, size = self.data.tell(), int(np.prod(shape))
        for done in range(0, size, _CHUNK):
            part = self.rng.standard_normal(min(_CHUNK, size - done), np.float32) * np.float32(shape[0] ** -0.5)
            self.data.write(part.astype(self.dtype))
        tensor = onnx.TensorProto(name=name, data_type=self.kind, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", Path(self.data.name).name),
            ("offset", start),
            ("length", self.data.tell() - start),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def vector(self, name: str, size: int) -> str:
        self.initializers.append(numpy_helper.from_array(np.ones(size, self.dtype), name))
        return name

    def product(self, x: str, name: str, terms: int, rows: int) -> str:
        return self.op("MatMul", x, self.matrix(name, terms, rows))


def write(path: Path, shape: tuple[int, ...], dtype: type[np.floating[Any]]) -> int:
    """A model of so many layers, of that width, inner width and vocabulary; returns its number of parameters."""
    layers, width, inner, words = shape
    with path.with_suffix(".bin").open("wb") as data:
        net = Model(data, dtype)
        x = net.op("Gather", net.matrix("embedding", words, width), "ids")
        for layer in range(layers):
            y = net.op("LayerNormalization", x, net.vector(f"{layer}.norm", width))
            q, k, v = (net.product(y, f"{layer}.{name}", width, width) for name in "qkv")
            seen = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
            x = net.op("Add", x, net.product(net.op("MatMul", seen, v), f"{layer}.o", width, width))
            y = net.op("LayerNormalization", x, net.vector(f"{layer}.norm2", width))
            gate = net.product(y, f"{layer}.gate", width, inner)
            gated = net.op(
                "Mul", net.op("Mul", gate, net.op("Sigmoid", gate)), net.product(y, f"{layer}.up", width, inner)
            )
            x = net.op("Add", x, net.product(gated, f"{layer}.down", inner, width))
        x = net.op("LayerNormalization", x, net.vector("norm", width))
        net.nodes.append(helper.make_node("MatMul", [x, net.matrix("head", width, words)], ["logits"], name="head"))
    graph = helper.make_graph(
        net.nodes,
        "transformer",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"])],
        [helper.make_tensor_value_info("logits", net.kind, ["n", "length", words])],
        net.initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return sum(int(np.prod(tensor.dims)) for tensor in net.initializers)


def watch(process: subprocess.Popen[bytes], peaks: dict[str, int]) -> None:
    """Keep the highest of each kind of memory while the process lives."""
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        now = {
            name: int(value.split()[0]) << 10 for name, value in (line.split(":", 1) for line in lines if "kB" in line)
        }
        now["both"] = now.get("RssAnon", 0) + now.get("RssFile", 0)
        for name in ("RssAnon", "RssFile", "both"):
            peaks[name] = max(peaks.get(name, 0), now.get(name, 0))
        time.sleep(0.02)


def evict(path: Path) -> None:
    """Take a file out of the page cache."""
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bare_io(path: Path, written: int) -> float:
    """Seconds that reading a file takes, and writing so many bytes of it to the disk."""
    evict(path)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file, path.with_suffix(".copy").open("wb", buffering=0) as copy:
        while chunk := file.read(_CHUNK * 4):
            copy.write(chunk[:written])
            written -= min(written, len(chunk))
        os.fsync(copy.fileno())
    took = time.perf_counter() - start
    path.with_suffix(".copy").unlink()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--words", type=int, default=32000)
    parser.add_argument("--half", action="store_true", help="weights of float16")
    parser.add_argument("options", nargs="*", help="of requant quantize")
    args = parser.parse_args()
    shape, dtype = (args.layers, args.width, args.inner, args.words), np.float16 if args.half else np.float32
    path = args.folder / f"{np.dtype(dtype)}-{'-'.join(map(str, shape))}.onnx"
    if not path.exists():
        count = write(path, shape, dtype)
        print(f"{count / 1e9:.2f} billion parameters written to {path}")
    options = args.options or ["--weight-only", "int4", "--algorithm", "rtn"]
    output = args.folder / "quantized.onnx"
    command = [sys.executable, "-m", "requant", "quantize", str(path), *options, "-o", str(output)]
    data = path.with_suffix(".bin")
    before = bare_io(data, sum(file.stat().st_size for file in args.folder.glob("quantized.onnx*")))
    evict(data)
    start = time.perf_counter()
    process = subprocess.Popen(command)
    peaks: dict[str, int] = {}
    thread = threading.Thread(target=watch, args=(process, peaks))
    thread.start()
    thread.join()
    took = time.perf_counter() - start
    size = sum(file.stat().st_size for file in (path, data))
    written = sum(file.stat().st_size for file in args.folder.glob("quantized.onnx*"))
    print(f"exit {process.wait()}, {size / 1e9:.2f} -> {written / 1e9:.2f} GB in {took:.1f} s", end="")
    print(f", input and output alone {before:.1f} and {bare_io(data, written):.1f} s")
    print(", ".join(f"{name} {value / 1e9:.2f} GB" for name, value in peaks.items()))


if __name__ == "__main__":
    main()

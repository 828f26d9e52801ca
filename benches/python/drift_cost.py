"""What watching a quantized model costs beside running it, when one request in fifty is looked at.

    python benches/python/drift_cost.py [MODEL.onnx DATA.npz ...]

For each model: the inputs alone (``observe`` beside a session of one's own), and all tensors (``run``, which answers
the request as well). CPU time of one thread, so that other work on the machine does not count; the median of
interleaved rounds of fifty requests, one of them looked at.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import requant
from requant.data import DataOptions, open_data
from requant.errors import ModelError
from requant.runtime import open_runner

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, EVERY = 15, 50


def cost(model: Path, data: Path) -> None:
    """Print both ratios."""
    quantized = requant.quantize(model, data, threads=1, samples=128).data
    watched = requant.DriftMonitor(quantized, tensors="all", every=EVERY, threads=1)
    batches = open_data(data, watched.inputs, DataOptions(samples=EVERY, batch_size=1)).batches()
    requests = [dict(batch.feeds) for batch in batches]
    requests = (requests * EVERY)[:EVERY]
    session = open_runner(quantized, threads=1)

    def plain() -> None:
        for feeds in requests:
            session.run(feeds)

    def inner() -> None:
        for feeds in requests:
            watched.run(feeds)

    ways = {"bare": plain, f"all {len(watched.tensors)} tensors": inner}
    try:
        boundary = requant.DriftMonitor(quantized, every=EVERY)
    except ModelError:  # its inputs are integers
        pass
    else:

        def outer() -> None:
            for feeds in requests:
                session.run(feeds)
                boundary.observe(feeds)

        ways["inputs"] = outer
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.thread_time()
            way()
            taken[name].append(time.thread_time() - start)
    bare = statistics.median(taken["bare"])
    for name in list(ways)[1:]:
        extra = statistics.median(t / b - 1 for t, b in zip(taken[name], taken["bare"], strict=True))
        print(f"{model.parent.name:22} {name:16} {bare / EVERY * 1e3:7.3f} ms a request, watching adds {extra:6.2%}")


if __name__ == "__main__":
    named = [Path(argument) for argument in sys.argv[1:]]
    digits = ROOT / "examples" / "digits"
    pairs = list(zip(named[::2], named[1::2], strict=True)) or [(digits / "digits.onnx", digits / "calib.npz")]
    for model_path, data_path in pairs:
        cost(model_path, data_path)

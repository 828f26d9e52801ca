"""What watching a quantized model costs beside running it, as rarely as a monitor looks by itself.

    python benches/python/drift_cost.py [MODEL.onnx DATA.npz ...]

For each model: the inputs alone (``observe`` beside a session of one's own), and all tensors (``run``, which answers
the request as well). CPU time of one thread, so that other work on the machine does not count; the median of
interleaved rounds of as many requests as one look comes on, 50 or more.
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requant
from requant.data import DataOptions, open_data
from requant.errors import ModelError
from requant.runtime import open_runner

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from requant import DriftMonitor

    Feeds = dict[str, NDArray[Any]]
    Way = Callable[[Feeds], object]

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, SETTLING = 15, 201


def cost(model: Path, data: Path) -> None:
    """Print a line for each way to watch."""
    quantized = requant.quantize(model, data, threads=1, samples=128).data
    bare = open_runner(quantized, threads=1).run
    settling = requant.DriftMonitor(quantized, tensors="all", threads=1)
    batches = open_data(data, settling.inputs, DataOptions(samples=50, batch_size=1)).batches()
    requests = [dict(batch.feeds) for batch in batches]
    for feeds in islice(cycle(requests), SETTLING):
        settling.run(feeds)
    watched = requant.DriftMonitor(quantized, tensors="all", every=settling.every, threads=1)
    watched.run(requests[0])
    added = measure(requests, bare, watched.run, watched)
    print(f"{model.parent.name:22} all {len(watched.tensors):3} tensors {added}")
    try:
        boundary = requant.DriftMonitor(quantized)
    except ModelError:  # no input of it is quantized
        return

    def observed(feeds: Feeds) -> None:
        bare(feeds)
        boundary.observe(feeds)

    print(f"{model.parent.name:22} inputs          {measure(requests, bare, observed, boundary)}")


def measure(requests: list[Feeds], bare: Way, way: Way, monitor: DriftMonitor) -> str:
    """What ``way``, which watches, adds to ``bare``."""
    taken: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for watching, run in ((False, bare), (True, way)):
            one_look = list(islice(cycle(requests), monitor.every))
            start = time.thread_time()
            for feeds in one_look:
                run(feeds)
            taken[watching].append(time.thread_time() - start)
    added = statistics.median(w / b - 1 for b, w in zip(*taken.values(), strict=True))
    alone = statistics.median(taken[False]) / monitor.every * 1e3
    return f"{alone:7.3f} ms a request, one look in {monitor.every:4} adds {added:6.2%}"


if __name__ == "__main__":
    named = [Path(argument) for argument in sys.argv[1:]]
    digits = ROOT / "examples" / "digits"
    pairs = list(zip(named[::2], named[1::2], strict=True)) or [(digits / "digits.onnx", digits / "calib.npz")]
    for model_path, data_path in pairs:
        cost(model_path, data_path)

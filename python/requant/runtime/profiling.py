"""What running takes, by the node and by the model."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import MissingDependencyError
from requant.runtime import installation
from requant.runtime.session import OrtRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from requant.runtime.opening import Runner
    from requant.serialized import SerializedModel


@dataclass(frozen=True, slots=True)
class Event:
    """A node that onnxruntime ran: its own name for it, microseconds, bytes of its outputs."""

    name: str
    microseconds: float
    output_bytes: int


def profile(model: SerializedModel, feeds: Mapping[str, NDArray[Any]], runs: int) -> list[Event]:
    """What onnxruntime really ran for ``model`` on one thread, node by node, with the median time of each.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelError: it cannot load or run the model.
    """
    if not installation.available():
        raise MissingDependencyError("timing nodes needs onnxruntime", hint="pip install 'requant[ort]'")
    durations: dict[str, list[float]] = {}
    events: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="requant-") as folder:
        runner = OrtRunner(model, threads=1, profile=folder)
        for _ in range(runs):
            runner.run(feeds)
        for event in json.loads(Path(runner.end_profile()).read_text("utf-8")):
            name = event["name"].removesuffix("_kernel_time")
            if event.get("cat") == "Node" and name != event["name"]:
                durations.setdefault(name, []).append(float(event["dur"]))
                events[name] = event["args"]
    return [
        Event(name, statistics.median(durations[name]), int(args.get("output_size", 0)))
        for name, args in events.items()
    ]


def run_seconds(runner: Runner, feeds: Mapping[str, NDArray[Any]], repeats: int) -> float:
    """Processor time of one run, the mean of ``repeats``; of this thread, the only one that works.

    By the clock, other load makes one of two models that are timed in turn several times slower than it is: the
    scheduler's turns fall in with theirs.
    """
    start = time.thread_time()
    for _ in range(repeats):
        runner.run(feeds)
    return max((time.thread_time() - start) / repeats, 1e-9)

"""How fast two models run: latency and throughput over threads and batch sizes, the two in turn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.data.spec import batching_of
from requant.runtime import open_runner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from requant.data import InputSpec
    from requant.runtime import Runner
    from requant.serialized import SerializedModel

    Feeds = Mapping[str, NDArray[Any]]

_SECONDS = 1.0  # for each number of threads and batch size
_BLOCK = 5  # runs of one model before the other has its turn
_BLOCKS = (4, 40)


@dataclass(frozen=True, slots=True)
class Speed:
    """Milliseconds that half and 95 % of the runs stay below, and samples in a second of running."""

    p50_ms: float
    p95_ms: float
    per_second: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Both models with so many threads on batches of so many samples; ``speedup`` is the ratio of their medians."""

    threads: int
    batch_size: int
    in_float: Speed
    quantized: Speed
    speedup: float


def thread_counts(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and ``most``."""
    counts = [1]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return tuple(dict.fromkeys([*counts, most]))


def fitting_batches(inputs: Sequence[InputSpec], sizes: Iterable[int]) -> tuple[int, ...]:
    """Those of the batch ``sizes`` that a model takes: the one it fixes, all of them, or 1 where it has no batch."""
    batching = batching_of(inputs)
    if not batching.rows:
        return (1,)
    return tuple(sizes) if batching.fixed is None else (batching.fixed,)


def time_models(
    models: tuple[SerializedModel | bytes, SerializedModel | bytes],
    sample: Feeds,
    threads: Iterable[int],
    batches: Sequence[int],
) -> tuple[Timing, ...]:
    """Time the float model and the quantized one.

    Args:
        models: the two, in this order.
        sample: the smallest feed that they take.
        threads: numbers of threads.
        batches: numbers of samples in a batch, as ``fitting_batches`` gives them.
    """
    timings = []
    for count in threads:
        runners = [open_runner(model, threads=count) for model in models]
        for size in batches:
            speeds = [_speed(times, size) for times in _run(runners, _repeated(sample, size))]
            timings.append(Timing(count, size, speeds[0], speeds[1], speeds[0].p50_ms / speeds[1].p50_ms))
    return tuple(timings)


def _repeated(sample: Feeds, size: int) -> dict[str, NDArray[Any]]:
    """A batch of ``size`` equal samples, where ``sample`` is a batch of one."""
    return {
        name: np.concatenate([array] * size) if array.ndim and len(array) == 1 else array
        for name, array in sample.items()
    }


def _run(runners: Sequence[Runner], feeds: Feeds) -> list[list[float]]:
    """Seconds of each run of each model, in blocks; the first of a block, which finds foreign caches, is left out."""
    start = time.perf_counter()
    for runner in runners:
        runner.run(feeds)
    once = time.perf_counter() - start
    low, high = _BLOCKS
    taken: list[list[float]] = [[] for _ in runners]
    for _ in range(min(high, max(low, int(_SECONDS / (once * _BLOCK))))):
        for runner, times in zip(runners, taken, strict=True):
            runner.run(feeds)
            for _ in range(_BLOCK):
                start = time.perf_counter()
                runner.run(feeds)
                times.append(time.perf_counter() - start)
    return taken


def _speed(times: Sequence[float], size: int) -> Speed:
    p50, p95 = (float(p) * 1e3 for p in np.percentile(times, (50, 95)))
    return Speed(p50, p95, size * len(times) / sum(times))

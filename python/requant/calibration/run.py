"""Run the float model over data and count what every planned activation holds.

Each batch is inferred once and handed to the compiled core once; several batches are under way at a time, a thread or
two each, which keeps cores busier than many threads on one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from requant import ops
from requant.calibration.observing import Observation, Observer, grouped, observe_group
from requant.calibration.table import CalibrationTable
from requant.errors import DataError
from requant.parallel import in_order
from requant.remote import map_remote
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from requant.config import QuantConfig
    from requant.data import Batch, Dataset
    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan
    from requant.types import Progress

logger = logging.getLogger(__name__)

#: Batches under way at most, whatever the number of cores: each holds the activations of a batch in memory.
WORKERS = 4

#: Seconds of a thread that a short batch takes, which costs less than to hand it over.
_SHORT = 0.001
#: The same where there is one worker: its batches may then be run by the caller, whom they keep from an interrupt.
_SHORT_ALONE = 0.05

#: Larger models are not written and read once more only to save time.
_REOPENED = 1 << 28
#: Values of a sample whose order costs about 0.2 ms.
_REORDERED = 1 << 18


def calibrate_graph(
    graph: Graph,
    plan: QuantPlan,
    dataset: Dataset,
    config: QuantConfig,
    progress: Progress | None = None,
    *,
    batches: Iterable[Batch] | None = None,
    executor: Executor | None = None,
) -> CalibrationTable:
    """Statistics of every tensor that ``plan`` calibrates, over all batches of ``dataset``.

    ``batches`` are those of ``dataset``, where they are being read already. With an ``executor`` its workers run the
    model, one thread each; statistics merge exactly, so that the table is the same.

    Raises:
        DataError: the data set is empty.
        CalibrationError: a tensor holds NaN or infinity for some sample.
    """
    inputs = {spec.name for spec in graph.inputs}
    fetched = tuple(name for name in plan.calibrated if name not in inputs)
    fed = tuple(name for name in plan.calibrated if name in inputs)
    logger.info("calibrating %d tensors on %s", len(fed) + len(fetched), dataset.description)
    model = graph.serialize(fetched) if fetched else None
    batches = dataset.batches() if batches is None else batches
    total = [ops.TensorStatistics() for _ in (*fed, *fetched)]
    if executor is not None and model is not None:
        from requant.onnx.saving import self_contained

        model = SerializedModel(self_contained(model))
    ordered = not _is_worth_reopening(graph, model, fetched)
    what = Observation(model, fed, fetched, _observable(graph, model, fetched), ordered=ordered)
    if executor is None:
        parts = _observe_here(what, batches, config, total)
    else:
        parts = _observe_there(what, batches, executor, total)
    samples = 0
    with closing(parts):
        for count in parts:
            samples += count
            if progress is not None:
                progress(samples, dataset.length)
    if progress is not None and samples != dataset.length:
        progress(dataset.length or samples, dataset.length)  # those that are held back are done, too
    if not samples:
        raise DataError(f"{dataset.description} holds no samples", hint="give at least one calibration sample")
    return CalibrationTable(dict(zip((*fed, *fetched), total, strict=True)), digest=graph.digest, samples=samples)


def _is_worth_reopening(graph: Graph, model: SerializedModel | None, fetched: tuple[str, ...]) -> bool:
    """Whether to spend 10 ms, more for larger models, on saving about 0.7 ns for each value that is reordered.

    The number of samples has no say: another order of summation may change the last bit of a mean, and the same
    samples give the same table in whatever form they come.
    """
    if model is None or model.size > _REOPENED:
        return False
    from requant.onnx.reorders import reordered

    return reordered(graph, set(fetched)) >= max(_REORDERED, model.size / 100)


def _observable(graph: Graph, model: SerializedModel | None, fetched: tuple[str, ...]) -> tuple[int, ...]:
    """Which of ``fetched`` are counted within a run: of large models none, as the file is read and written for it."""
    if model is None or len(model.proto) > _REOPENED:
        return ()
    from requant.onnx.observers import observable

    return observable(graph, fetched)


def _observe_here(
    what: Observation, batches: Iterable[Batch], config: QuantConfig, total: Sequence[ops.TensorStatistics]
) -> Generator[int, None, None]:
    """Take all batches into ``total``, several at once in threads; gives the number of samples of each."""
    workers = min(config.cores, WORKERS)
    observer = Observer(what, threads=config.cores // workers)
    # A batch is counted in a set of statistics that no other batch in progress uses; in the end all are merged.
    others = [observer.statistics() for _ in range(workers - 1)]
    idle = deque([total, *others])

    def observe(batch: Batch) -> int:
        statistics = idle.popleft()
        observer.observe(statistics, batch)
        idle.append(statistics)
        return batch.count

    with closing(_each(observe, batches, workers, observer.stop)) as counts:
        yield from counts
    for statistics in others:
        _merge(total, statistics)


def _each(
    observe: Callable[[Batch], int], batches: Iterable[Batch], workers: int, stop: Callable[[], None]
) -> Generator[int, None, None]:
    """``in_order``; but batches like a first one that is short take one worker less, and none where that leaves none.

    To read them keeps the caller's thread as busy as a worker, and to hand them over takes a third of their time. A
    worker that is the only one works no faster than the caller would, who takes no more once one was long: time may
    depend on values, and it is the caller whom an interrupt reaches.
    """
    limit = _SHORT if workers > 1 else _SHORT_ALONE
    batches = iter(batches)
    short: list[list[tuple[int, ...]]] = []
    others: list[Batch] = []

    def timed(batch: Batch) -> int:
        start = time.thread_time()
        count = observe(batch)
        if time.thread_time() - start < limit:
            short.append(_shapes(batch))
        return count

    def until_one_is_short() -> Iterator[Batch]:
        for batch in batches:
            yield batch
            if short:
                return

    def alike() -> Iterator[Batch]:
        for batch in batches:
            if _shapes(batch) != short[0]:
                others.append(batch)
                return
            yield batch

    def while_short() -> Iterator[int]:
        for batch in alike():
            seen = len(short)
            yield timed(batch)
            if len(short) == seen:
                return
            short.pop()  # it need not grow with the samples

    yield from in_order(timed, until_one_is_short(), workers, stop=stop)
    yield from in_order(observe, alike(), workers - 1, stop=stop) if workers > 1 else while_short()
    yield from in_order(observe, chain(others, batches), workers, stop=stop)


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [array.shape for array in batch.feeds.values()]


def _observe_there(
    what: Observation, batches: Iterable[Batch], executor: Executor, total: Sequence[ops.TensorStatistics]
) -> Generator[int, None, None]:
    """The same by the workers of ``executor``."""
    with closing(map_remote(executor, what, observe_group, grouped(batches))) as parts:
        for count, statistics in parts:
            _merge(total, statistics)
            yield count


def _merge(total: Sequence[ops.TensorStatistics], part: Sequence[ops.TensorStatistics]) -> None:
    for seen, other in zip(total, part, strict=True):
        seen.merge(other)

"""What is done with a batch of calibration samples: run the float model, count what its tensors hold.

Where onnxruntime runs it, most tensors are counted within the run, and are no outputs of it. The same here and in the
workers of an executor, so that both see the same.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.errors import CalibrationError, ModelError
from requant.observers import observe_many
from requant.runtime import held, joined, open_observing, open_runner
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.runtime import Runner
    from requant.serialized import SerializedModel

#: Batches that make up one item for an executor: its answer, statistics of constant size, is worth some inferences.
GROUP = 4


@dataclass(frozen=True, slots=True)
class Observation:
    """What a worker needs to observe.

    Attributes:
        model: gives the tensors ``fetched``; None if there are none.
        fed: the inputs to be observed.
        fetched: the inner tensors to be observed.
        observable: those of them, by position, that can be counted within a run.
        ordered: whether it is not worth while to leave the values of a tensor in the order in which they are computed.
    """

    model: SerializedModel | None
    fed: tuple[str, ...]
    fetched: tuple[str, ...]
    observable: tuple[int, ...] = ()
    ordered: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, in the order in which they are observed."""
        return self.fed + self.fetched

    def open(self) -> Observer:
        """An observer that uses one thread, as workers share their machine."""
        return Observer(self, threads=1)


class Observer:
    """Runs a model, and counts; safe to use from several threads, each with statistics of its own."""

    def __init__(self, what: Observation, *, threads: int) -> None:
        self.what = what
        self.threads = threads
        inner = set(range(len(what.fetched))) - set(what.observable)
        #: Of what is counted within a run all others.
        self._left = [*range(len(what.fed)), *(len(what.fed) + place for place in sorted(inner))]
        self._lock = threading.Lock()
        self._stopped = False
        self._giving: Runner | None = None
        self._counting: Runner | None = None
        if what.model is not None:
            self._counting = open_observing(what.model, what.observable, threads=threads, ordered=what.ordered)
            if self._counting is None:
                self._open_giving()

    def statistics(self) -> list[ops.TensorStatistics]:
        """Those of nothing, one for each tensor."""
        return [ops.TensorStatistics() for _ in self.what.names]

    def observe(self, statistics: Sequence[ops.TensorStatistics], batch: Batch) -> None:
        """Take ``batch`` into ``statistics``.

        Raises:
            CalibrationError: the model fails on it, or a tensor holds NaN or infinity.
        """
        places: Sequence[int] = self._left
        outputs = self._count(statistics, batch)
        if outputs is None:
            places, outputs = range(len(statistics)), self._give(batch)
        arrays = [*(batch.feeds[name] for name in self.what.fed), *outputs]
        observe_many([statistics[place] for place in places], arrays, threads=self.threads)
        for place, seen in enumerate(statistics):
            if seen.nan_count or seen.inf_count:
                known = dict(zip(places, arrays, strict=True))
                array = known[place] if place in known else self._give(batch)[place - len(self.what.fed)]
                raise _not_finite(self.what.names[place], batch, array)

    def stop(self) -> None:
        """Make what is under way in other threads end with an error."""
        self._stopped = True
        for runner in (self._counting, self._giving):
            if runner is not None:
                runner.stop()

    def _count(self, statistics: Sequence[ops.TensorStatistics], batch: Batch) -> list[Any] | None:
        """Run the model, and count within; the others of the tensors ``fetched``.

        None if it counted nothing: another runtime may run nodes in other threads than the one that has asked for it.
        """
        runner, expected = self._counting, len(self.what.observable)
        if runner is None:
            return None
        outputs: list[Any] = []
        problem = None
        ops.observe_here(statistics[len(self.what.fed) :], self.threads)
        try:
            outputs = runner.run(batch.feeds)
        except ModelError as error:
            problem = error
        finally:
            seen = ops.observe_here([], 1)
        if problem is None and seen == expected:
            given = len(self.what.fetched) - expected  # where that is none, the model has another output
            return [joined(output) for output in outputs[:given]]
        if seen or self._stopped:
            raise _failed(batch, problem or ModelError(f"onnxruntime counted {seen} of {expected} tensors"))
        self._counting = None
        return None

    def _give(self, batch: Batch) -> list[Any]:
        """Run the model; the tensors ``fetched``."""
        if self.what.model is None:
            return []
        try:
            return [joined(output) for output in self._open_giving().run(batch.feeds)]
        except ModelError as problem:
            raise _failed(batch, problem) from problem

    def _open_giving(self) -> Runner:
        assert self.what.model is not None
        with self._lock:
            if self._giving is None:
                self._giving = open_runner(
                    self.what.model, threads=self.threads, shared=True, ordered=self.what.ordered
                )
            return self._giving


def watch(
    graph: Graph, names: Iterable[str], batches: Iterable[Batch], *, threads: int
) -> Iterator[tuple[Batch, dict[str, list[NDArray[Any]]]]]:
    """Each batch, and what the named tensors of a float model hold in it: inputs, or what the model computes.

    That is one array; of tensors in bodies one for each time that they are computed, stacked where all have one shape,
    and none where it stands in a branch that is not taken.

    Raises:
        ModelError: the model cannot run.
    """
    inputs = {spec.name for spec in graph.inputs}
    fetched = [name for name in dict.fromkeys(names) if name not in inputs]
    runner = open_runner(graph.serialize(fetched), threads=threads, shared=True) if fetched else None
    for batch in batches:
        outputs = map(held, runner.run(batch.feeds)) if runner is not None else ()
        fed = {name: [np.asarray(array)] for name, array in batch.feeds.items()}
        yield batch, fed | dict(zip(fetched, outputs, strict=True))


def observe_group(observer: Observer, batches: tuple[Batch, ...]) -> tuple[int, list[ops.TensorStatistics]]:
    """Number of samples in ``batches``, and their statistics."""
    statistics = observer.statistics()
    for batch in batches:
        observer.observe(statistics, batch)
    return sum(batch.count for batch in batches), statistics


def grouped(batches: Iterable[Batch]) -> Iterator[tuple[Batch, ...]]:
    """``batches`` as items for an executor."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == GROUP:
            yield tuple(group)
            group.clear()
    if group:
        yield tuple(group)


def _failed(batch: Batch, problem: ModelError) -> CalibrationError:
    where = f"sample {batch.first}" if batch.count == 1 else f"samples {batch.first} to {batch.indices[-1]}"
    return CalibrationError(f"{where}: {problem.message}", hint=problem.hint)


def _not_finite(name: str, batch: Batch, array: Any) -> CalibrationError:
    bad = np.argwhere(~np.isfinite(array))
    if not len(bad):  # of a model that draws numbers, which ran twice
        return _failed(batch, ModelError(f"tensor {name!r} holds NaN or infinity in some runs, and not in others"))
    offset = int(bad[0][0]) if array.ndim and array.shape[0] == batch.count else 0
    return CalibrationError(
        f"tensor {name!r} holds {np.isnan(array).sum()} NaN and {counted(np.isinf(array).sum(), 'infinite value(s)')}, "
        f"first in sample {batch.indices[offset]}",
        hint="the float model itself overflows on this sample: repair the sample or the model",
    )

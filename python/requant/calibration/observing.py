"""What is done with a batch of calibration samples: run the float model, count what its tensors hold.

The same here and in the workers of an executor, so that both see the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.errors import CalibrationError, ModelError
from requant.runtime import held, joined, open_runner
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from requant.data import Batch
    from requant.onnx.graph import Graph
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
        ordered: whether it is not worth while to leave the values of a tensor in the order in which they are computed.
    """

    model: SerializedModel | None
    fed: tuple[str, ...]
    fetched: tuple[str, ...]
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
        self._runner = None
        if what.model is not None:
            self._runner = open_runner(what.model, threads=threads, shared=True, ordered=what.ordered)

    def statistics(self) -> list[ops.TensorStatistics]:
        """Those of nothing, one for each tensor."""
        return [ops.TensorStatistics() for _ in self.what.names]

    def observe(self, statistics: Sequence[ops.TensorStatistics], batch: Batch) -> None:
        """Take ``batch`` into ``statistics``.

        Raises:
            CalibrationError: the model fails on it, or a tensor holds NaN or infinity.
        """
        arrays = self._infer(batch)
        ops.observe_many(statistics, arrays, threads=self.threads)
        for name, seen, array in zip(self.what.names, statistics, arrays, strict=True):
            if seen.nan_count or seen.inf_count:
                raise _not_finite(name, batch, array)

    def stop(self) -> None:
        """Make what is under way in other threads end with an error."""
        if self._runner is not None:
            self._runner.stop()

    def _infer(self, batch: Batch) -> list[Any]:
        try:
            outputs = [joined(output) for output in self._runner.run(batch.feeds)] if self._runner is not None else []
        except ModelError as problem:
            where = f"sample {batch.first}" if batch.count == 1 else f"samples {batch.first} to {batch.indices[-1]}"
            raise CalibrationError(f"{where}: {problem.message}", hint=problem.hint) from problem
        return [batch.feeds[name] for name in self.what.fed] + outputs


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


def _not_finite(name: str, batch: Batch, array: Any) -> CalibrationError:
    bad = np.argwhere(~np.isfinite(array))
    offset = int(bad[0][0]) if array.ndim and array.shape[0] == batch.count else 0
    return CalibrationError(
        f"tensor {name!r} holds {np.isnan(array).sum()} NaN and {counted(np.isinf(array).sum(), 'infinite value(s)')}, "
        f"first in sample {batch.indices[offset]}",
        hint="the float model itself overflows on this sample: repair the sample or the model",
    )

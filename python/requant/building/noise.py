"""The noise of whole models, sample by sample, and whether one model clearly errs more than another."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.runtime import open_runner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from requant.data import Batch
    from requant.onnx.graph import Graph

    Array = NDArray[Any]

_FEW = 8  # samples that prove nothing
#: Times the noise, and the noise itself, of a model that is broken, however few samples say so.
_BROKEN, _LOUD = 10.0, 0.01


class Noise:
    """Power of the outputs' error for each sample, over the mean power of each output, summed up.

    Args:
        graph: the float model, which others are held against.
        batches: the samples.
        threads: for the runtime.
    """

    def __init__(self, graph: Graph, batches: Sequence[Batch], *, threads: int) -> None:
        self._graph, self._batches, self._threads = graph, batches, threads

    @cached_property
    def _exact(self) -> list[Sequence[Array]]:
        return list(self._run(self._graph))

    def _run(self, model: Graph) -> Iterator[Sequence[Array]]:
        if self._batches:
            runner = open_runner(model.serialize(), threads=self._threads, shared=True)
            yield from (runner.run(batch.feeds) for batch in self._batches)

    def of(self, model: Graph) -> Array:
        """The noise of a ``model`` of the same outputs, ``[samples]``."""
        powers: dict[int, list[Array]] = {}  # by output, [signal and error, samples] of each batch
        for batch, expected, found in zip(self._batches, self._exact, self._run(model), strict=True):
            for place, (exact, x) in enumerate(zip(expected, found, strict=True)):
                if exact.dtype.kind == "f" and exact.size:
                    error = x - exact if x.shape == exact.shape else exact  # another shape: all error
                    rows = [_power_by_sample(each, batch.count) for each in (exact, error)]
                    powers.setdefault(place, []).append(np.array(rows))
        total = np.zeros(sum(batch.count for batch in self._batches))
        for parts in powers.values():
            signal, noise = np.concatenate(parts, axis=1)
            total += noise / (signal.mean() or 1.0)
        return total


def clearly_more(noise: Array, other: Array) -> bool:
    """Whether the ``noise [samples]`` of one model is above that ``other`` by more than chance explains.

    That is, on average by more than two standard errors of the difference; on a few samples only if it is ten times as
    much and above -20 dB.
    """
    differences = noise - other
    if not np.isfinite(noise).all():
        return bool(np.isfinite(other).all())
    if noise.size and noise.mean() > max(_BROKEN * other.mean(), _LOUD):
        return True
    if len(noise) < _FEW:
        return False
    return bool(differences.mean() > 2 * differences.std(ddof=1) / math.sqrt(len(noise)))


def _power_by_sample(x: Array, count: int) -> Array:
    """The sum of squares of each of ``count`` samples; an equal share where ``x`` has no axis of them."""
    power = np.square(x, dtype=np.float64)
    if x.ndim and len(x) == count:
        rows: Array = power.reshape(count, -1).sum(axis=1)
        return rows
    return np.full(count, power.sum() / count)

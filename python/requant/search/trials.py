"""Quantized models, tried: how far their outputs are from the float model's, and what a metric says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.building.dynamic import plan_whole
from requant.data import Dataset, open_data
from requant.errors import ConfigError, DataError, ModelError, VerificationError
from requant.evaluation.distance import Distance, decibels, pooled
from requant.evaluation.evaluate import measure
from requant.evaluation.verify import run_each
from requant.metrics import get_metric
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.saving import self_contained
from requant.runtime import open_runner
from requant.serialized import SerializedModel
from requant.stages import (
    describe,
    load_float,
    open_judged,
    refuse_empty,
    verification_batches,
    with_data_options,
)
from requant.weights.plan import plan_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from requant.config import QuantConfig
    from requant.data import Batch, DataOptions
    from requant.metrics import Metric
    from requant.onnx.reading import Model
    from requant.planning.plan import QuantPlan
    from requant.runtime import Runner


@dataclass(frozen=True, slots=True)
class Score:
    """How good a model is.

    Attributes:
        noise: power of the outputs' error over that of the float model's outputs, of outputs that hold no reals the
            share of values that differ; of several outputs the largest.
        sqnr_db: the same as ``-10 log10(noise)`` (None: equal).
        value: the metric; None where there is none, or it is not finite.
        noise_error: the standard error of ``noise``, from its spread between samples; 0 where there is only one.
    """

    noise: float
    sqnr_db: float | None
    value: float | None
    noise_error: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """A metric and the samples to take it on."""

    metric: Metric
    dataset: Dataset | Recorded

    @property
    def refers(self) -> bool:
        """Whether it needs the float model's outputs."""
        return self.metric.refers(labelled=self.dataset.has_labels)


class Trials:
    """Scores of models; safe to use from several threads.

    Args:
        graph: the float model that outputs are held against.
        batches: samples to compare outputs on.
        judge: the metric to take as well.
    """

    def __init__(self, graph: Graph, batches: Sequence[Batch], judge: Judge | None) -> None:
        self.judge = judge
        self._names = [output.name for output in graph.outputs]
        self._batches = tuple(batches)
        self._lock, self._stopped = threading.Lock(), False
        self._runners: list[Runner] = []
        self._float = open_runner(graph.serialize(), threads=1)
        self._expected = [self._float.run(batch.feeds) for batch in batches]

    def context(self, graph: Graph) -> TrialContext:
        """What makes the same trials in another process."""
        judge = self.judge
        if judge is not None and isinstance(judge.dataset, Dataset):
            data = judge.dataset
            recorded = Recorded(data.description, data.has_labels, tuple(data.batches()))
            judge = Judge(judge.metric, recorded)
        return TrialContext(self_contained(graph.serialize()), self._batches, judge)

    def float_value(self, workers: int) -> float | None:
        """The metric of the float model."""
        return self._value(self._float, workers)

    def score(self, model: SerializedModel, workers: int = 1) -> Score:
        """How good a quantized model is, found by so many threads."""
        runner = open_runner(model, threads=1)
        with self._lock:
            if self._stopped:
                raise ModelError("stopped")
            self._runners.append(runner)
        try:
            noise, error = self._noise(runner, workers)
            return Score(noise, decibels(1.0, noise), self._value(runner, workers), error)
        finally:
            with self._lock:
                self._runners.remove(runner)

    def stop(self) -> None:
        """Make scores that are under way in other threads end with an error."""
        with self._lock:
            self._stopped = True
            for runner in (self._float, *self._runners):
                runner.stop()

    def _noise(self, runner: Runner, workers: int) -> tuple[float, float]:
        """The noise of the worst output, and its standard error: that of the output that may be worst."""
        distances: list[list[Distance]] = [[] for _ in self._names]  # of each output, sample by sample
        with closing(run_each([runner], self._batches, workers)) as found:
            for batch, expected, (_, (outputs,)) in zip(self._batches, self._expected, found, strict=True):
                for seen, wanted, got in zip(distances, expected, outputs, strict=True):
                    seen.extend(_compare(wanted, got, batch.count))
        found_noise = [pooled(seen) for seen in distances]
        noise = max(noise for noise, _ in found_noise)
        return noise, max(noise + error for noise, error in found_noise) - noise

    def _value(self, runner: Runner, workers: int) -> float | None:
        if self.judge is None:
            return None
        runners = [runner, self._float] if self.judge.refers else [runner]
        try:
            return measure(runners, self._names, self.judge.dataset, self.judge.metric, workers=workers)[1][0]
        except VerificationError:
            return None


def _compare(wanted: NDArray[Any], got: NDArray[Any], samples: int) -> Iterator[Distance]:
    """The distances of an output of so many samples, or one of all where its first axis is not that of samples.

    Of an output that holds no reals (classes, indices, masks) the error is the share that differs.
    """
    if wanted.dtype.kind != "f":
        equal = wanted == got if wanted.shape == got.shape else np.zeros(wanted.shape)
        wanted, got = np.ones(wanted.shape), np.asarray(equal, np.float64)
    apart = samples > 1 and wanted.ndim > 0 and len(wanted) == samples and wanted.shape == got.shape
    for one, other in zip(wanted, got, strict=True) if apart else [(wanted, got)]:
        distance = Distance()
        distance.add(one, other)
        yield distance


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """Batches of a data set, kept: what workers elsewhere judge by."""

    description: str
    has_labels: bool
    kept: tuple[Batch, ...]

    @property
    def length(self) -> int:
        """Number of samples."""
        return sum(batch.count for batch in self.kept)

    def batches(self) -> Iterator[Batch]:
        """One pass over them."""
        return iter(self.kept)


@dataclass(frozen=True, slots=True, eq=False)
class TrialContext:
    """What a worker needs to score models: the float model in one file, samples to compare on, the metric."""

    model: bytes
    batches: tuple[Batch, ...]
    judge: Judge | None

    def open(self) -> Trials:
        """Trials in that worker."""
        return Trials(Graph.load(self.model), self.batches, self.judge)


def score_bytes(trials: Trials, model: bytes) -> Score:
    """The score of a model in one file."""
    return trials.score(SerializedModel(model))


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What trials of a model need before it is calibrated.

    Attributes:
        graph: the float model.
        prepared: the same, prepared.
        changes: what preparation did, a line each.
        plan: all that would be quantized in it.
        dataset: calibration samples, some of them held back.
        judge: the metric, if there is one.
    """

    graph: Graph
    prepared: Graph
    changes: tuple[str, ...]
    plan: QuantPlan
    dataset: Dataset
    judge: Judge | None

    def trials(self) -> tuple[Trials, tuple[Batch, ...]]:
        """Trials on the samples that calibration has not seen, and these; after calibration.

        Raises:
            DataError: there are no such samples.
        """
        batches, _ = verification_batches(self.dataset)
        if not batches:
            raise DataError(f"no sample of {self.dataset.description} is left to compare on", hint="give more samples")
        return Trials(self.graph, batches, self.judge), batches


def set_up(
    model: Model,
    data: object,
    config: QuantConfig,
    *,
    data_options: DataOptions | None,
    evaluation: object,
    metric: str | Callable[..., object],
    labels: str | None,
) -> Setup:
    """Load and check everything, as ``requant.quantize`` does; arguments as there.

    Raises:
        RequantError: a subclass says which input was wrong.
    """
    found = get_metric(metric)
    if data is None:
        raise DataError("trials need calibration data, and none was given", hint="pass samples (data=..., --data FILE)")
    refuse_iterator(evaluation, "evaluation samples")
    graph = load_float(model)
    options = with_data_options(config, data_options)
    own_labels = labels if evaluation is None else None
    dataset = open_data(data, graph.inputs, options, labels=own_labels, hold_back=True)
    judge = None
    if evaluation is not None:
        judge = Judge(found, open_judged(evaluation, graph, options, found, labels))
    prepared, changes = prepare(graph)
    plan = plan_whole(prepared, config) if config.weight_only is None else plan_weights(prepared, config)
    refuse_empty(plan, graph.origin)
    return Setup(graph, prepared, describe(changes), plan, dataset, judge)


def refuse_dynamic(config: QuantConfig) -> None:
    """Refuse what has no ranges to try.

    Raises:
        ConfigError: ``config`` is a dynamic one.
    """
    if config.dynamic:
        raise ConfigError("trials need ranges, and dynamic quantization calibrates none", hint="leave out dynamic")


def refuse_iterator(data: object, what: str) -> None:
    """Refuse what can be read only once.

    Raises:
        DataError: ``data`` is such a thing.
    """
    if isinstance(data, Iterator):
        raise DataError(
            f"{what} are read for every trial, and a {type(data).__name__} can be read only once",
            hint="give a list, arrays or files",
        )

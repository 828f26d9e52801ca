"""How good a model is, by a metric: of one model, or of two on the same samples."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from requant.config import QuantConfig
from requant.data import open_data
from requant.documents import document_of
from requant.errors import DataError, VerificationError
from requant.evaluation.verify import run_each
from requant.metrics import Against, Case, get_metric
from requant.pages import results
from requant.pages.page import fragment
from requant.report import Accuracy
from requant.runtime import open_runner
from requant.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from requant.data import Batch, DataOptions, Dataset
    from requant.metrics import Metric
    from requant.onnx.graph import Graph
    from requant.onnx.reading import Model
    from requant.runtime import Runner
    from requant.types import Progress

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A metric of a model on a data set.

    Attributes:
        model: what the model is called.
        metric: name of the metric.
        value: the figure.
        higher_is_better: in which direction models improve.
        samples: number of samples.
        against: what outputs were held against: labels, float model, the tokens that were fed, or nothing.
        float_value: the float model's figure, where one was given and is not itself what outputs were held against.
        kept: the share of it that the model keeps, 1 being as good; None where there is no such share.
        data: what the samples were.
        seconds: how long it took.
    """

    model: str
    metric: str
    value: float
    higher_is_better: bool
    samples: int
    against: str
    float_value: float | None
    kept: float | None
    data: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        return document_of(self, SCHEMA)

    def _repr_html_(self) -> str:
        return fragment(results.evaluation(self))


def evaluate(
    model: Model,
    data: object,
    *,
    metric: str | Callable[..., object] = "top1",
    labels: str | None = None,
    float_model: Model | None = None,
    data_options: DataOptions | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model, float or quantized.

    Args:
        model: path, bytes, ModelProto or onnx_ir.Model.
        data: samples, in any form that ``requant.quantize`` takes.
        metric: ``top1``, ``top5``, ``mae``, ``mse``, ``cosine``, ``perplexity``, ``kl``, ``kl99`` (the divergence of
            the next token from the float model's, its mean and the value that 99 % stay below), ``module:function``,
            or a function ``(outputs: dict of arrays, labels: array or None) -> float`` (less is better where it has an
            attribute ``higher_is_better`` that is false).
        labels: name of the labels in ``data``, where it is not ``labels``, ``label``, ``targets``, ``target`` or ``y``.
        float_model: the model to measure beside it; ``mae``, ``mse`` and ``cosine`` without labels compare with its
            outputs.
        data_options: which samples, and how they are cut and images scaled.
        threads: CPU threads; 0 uses all cores.
        progress: called after each batch with the samples done and their number (None if unknown).

    Raises:
        ConfigError: there is no such metric.
        DataError: the data does not fit the model, or lacks labels that the metric needs.
        VerificationError: the figure is not finite.

    Example:
        >>> requant.evaluate("model.int8.onnx", "eval.npz", metric="top5").value  # doctest: +SKIP
    """
    watch = Stopwatch()
    workers = QuantConfig(threads=threads).cores
    judge = get_metric(metric)
    graph = load(model)
    other = None if float_model is None else load(float_model)
    dataset = open_data(data, graph.inputs, data_options, labels=labels)
    check_labels(judge, dataset, dataset.has_labels, referred=other is not None)
    names = [output.name for output in graph.outputs]
    if other is not None:
        check_interface(graph, other)
    graphs = [graph] if other is None else [graph, other]
    runners = [open_runner(g.serialize(), threads=1) for g in graphs]
    samples, values = measure(runners, names, dataset, judge, workers=workers, progress=progress)
    compared = judge.refers(labelled=dataset.has_labels)
    float_value = None if other is None or compared else values[1]
    return Evaluation(
        model=graph.origin,
        metric=judge.name,
        value=values[0],
        higher_is_better=judge.higher_is_better,
        samples=samples,
        against=_against(judge, dataset),
        float_value=float_value,
        kept=None if float_value is None else judge.kept(values[0], float_value),
        data=dataset.description,
        seconds=watch.elapsed,
    )


class Samples(Protocol):
    """What is measured on: a data set, or batches of one that were kept."""

    @property
    def description(self) -> str:
        """What they are, for people."""

    @property
    def length(self) -> int | None:
        """How many there are; None if that is unknown."""

    def batches(self) -> Iterator[Batch]:
        """One pass over them."""


def check_labels(metric: Metric, dataset: Samples, labelled: bool, *, referred: bool = True) -> None:
    """Refuse samples that are not ``labelled`` for a metric that needs labels, and no model where it needs one.

    ``referred`` says that there is a model to compare with.

    Raises:
        DataError: there are none, or there is none.
    """
    if metric.against is Against.MODEL and not referred:
        raise DataError(
            f"{metric.name} compares with the float model, and none is given",
            hint="give it (float_model=..., --float FILE)",
        )
    if labelled or metric.against in (Against.ANYTHING, Against.TOKENS, Against.MODEL):
        return
    if metric.against is Against.LABELS or not referred:
        other = ["choose cosine (--metric cosine)"] if metric.against is Against.LABELS else []
        instead = " and ".join(other if referred else [*other, "give the float model (--float FILE)"])
        raise DataError(
            f"{dataset.description}: it has no labels, and {metric.name} needs them",
            hint=f"name them labels, targets or y beside the inputs, or say --labels NAME, or {instead}",
        )


def measure(
    runners: Sequence[Runner],
    names: Sequence[str],
    dataset: Samples,
    metric: Metric,
    *,
    workers: int,
    progress: Progress | None = None,
) -> tuple[int, list[float]]:
    """Number of samples, and the figure of each model; the last one's outputs are what targets are taken from.

    Args:
        runners: one or more models with the outputs ``names``.
        names: their outputs, in order.
        dataset: the samples.
        metric: the metric.
        workers: batches under way at once.
        progress: as for ``evaluate``.

    Raises:
        VerificationError: a figure is not finite.
    """
    parts: list[list[Any]] = [[] for _ in runners]
    samples = 0
    with closing(run_each(runners, dataset.batches(), workers)) as compared:
        for batch, results in compared:
            check_labels(metric, dataset, batch.labels is not None)  # an iterable may have some and lack others
            outputs = [dict(zip(names, result, strict=True)) for result in results]
            for part, own in zip(parts, outputs, strict=True):
                part.append(metric.measure(Case(batch.feeds, own, batch.count, batch.labels, outputs[-1])))
            samples += batch.count
            if progress is not None:
                progress(samples, dataset.length)
    values = [metric.value(part) for part in parts]
    for value in values:
        if not math.isfinite(value):
            raise VerificationError(f"{metric.name} is {value}", hint="outputs hold NaN or infinity, or are far off")
    return samples, values


def measure_accuracy(
    runners: Sequence[Runner], names: Sequence[str], dataset: Dataset, metric: Metric, *, workers: int
) -> Accuracy:
    """The figures of a float model and a quantized one, in this order; the float one's outputs are the targets."""
    samples, (quantized, reference) = measure(tuple(reversed(runners)), names, dataset, metric, workers=workers)
    return Accuracy(metric.name, samples, reference, quantized)


def load(model: Model) -> Graph:
    """Load a model, float or quantized, in a form that can be run."""
    from requant.onnx.graph import Graph
    from requant.onnx.passes.widen import runnable

    return runnable(Graph.load(model))


def check_interface(graph: Graph, other: Graph) -> None:
    """Refuse two models that are not forms of one.

    Raises:
        DataError: their inputs or outputs have other names.
    """
    for kind in ("inputs", "outputs"):
        own, wanted = ([spec.name for spec in getattr(g, kind)] for g in (graph, other))
        if own != wanted:
            raise DataError(
                f"{graph.origin} has the {kind} {', '.join(own)}, {other.origin} has {', '.join(wanted)}",
                hint="give two forms of one model",
            )


def _against(metric: Metric, dataset: Dataset) -> str:
    if metric.refers(labelled=dataset.has_labels):
        return "float model"
    if dataset.has_labels:
        return "labels"
    return "the tokens that were fed" if metric.against is Against.TOKENS else "nothing"

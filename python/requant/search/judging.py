"""Who judges what models keep by the samples that are held back: a metric, or how near the outputs stay."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from requant.errors import DataError, VerificationError
from requant.evaluation.evaluate import measure
from requant.metrics import Against, get_metric
from requant.runtime import open_runner
from requant.search.trials import Judge, Recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requant.data import Batch
    from requant.metrics import Metric
    from requant.search.trials import Score, Setup

#: What is kept where no labels are held back: by language models; by models that give maps or sequences; by others.
OWN_PERPLEXITY = "perplexity of held-back samples"
COSINE = "cosine of the outputs"
FIDELITY = "output fidelity"


class Judgement:
    """What share of the float model's quality a score is, and how much of it is sure.

    Noise stands for something else, and differs from sample to sample: what is left with a standard error more of it is
    as good as sure. A metric that was given is what it is on the samples it was given with.

    Raises:
        DataError: the float model's figure is not finite, or 0.
    """

    def __init__(self, judge: Judge | None, float_value: float | None, *, cosine: bool) -> None:
        self._judge, self._float_value, self._cosine = judge, float_value, cosine
        if judge is not None and not float_value:
            figure = "not finite" if float_value is None else "0"
            raise DataError(
                f"{judge.metric.name} of the float model is {figure}: there is no share of it to keep",
                hint="choose another metric, or leave it out to keep the outputs",
            )

    def share(self, score: Score) -> tuple[float, float] | None:
        """What a model of this score keeps, and what it surely keeps."""
        if self._judge is None:
            return self._equal(score.noise), self._equal(score.noise + score.noise_error)
        if score.value is None or self._float_value is None:
            return None
        kept = self._judge.metric.kept(score.value, self._float_value)
        return None if kept is None else (kept, kept)

    def _equal(self, noise: float) -> float:
        equal = max(1.0 - noise, 0.0)
        return math.sqrt(equal) if self._cosine else equal


def find_judge(setup: Setup, batches: tuple[Batch, ...], metric: Metric, *, asked: bool) -> tuple[Judge | None, str]:
    """Who judges by the samples that are held back, and what is kept then; None are the outputs.

    A metric that was ``asked`` for judges where there is what it needs; another one where it fits the labels.
    """
    labelled = bool(batches) and all(batch.labels is not None for batch in batches)
    what = f"what is held back of {setup.dataset.description}"
    if labelled or (asked and metric.against is not Against.LABELS):
        judge = Judge(metric, Recorded(what, labelled, batches))
        if asked or _value(setup, judge):
            return judge, metric.name
    language = Judge(get_metric("perplexity"), Recorded(what, False, tuple(replace(b, labels=None) for b in batches)))
    perplexity = _value(setup, language)
    outputs = open_runner(setup.graph.serialize(), threads=1).run(batches[0].feeds)
    if perplexity is not None and perplexity < outputs[0].shape[-1]:
        return language, OWN_PERPLEXITY
    return None, COSINE if all(_is_dense(output.shape) for output in outputs) else FIDELITY


def _is_dense(shape: Sequence[int]) -> bool:
    """Whether an output is a map or a sequence: more than one value, along each of two axes, of a sample."""
    return sum(size > 1 for size in shape[1:]) > 1


def _value(setup: Setup, judge: Judge) -> float | None:
    """The float model's figure; None where the metric does not fit the model or the samples."""
    runner = open_runner(setup.graph.serialize(), threads=1)  # of its own: where measuring fails it has been stopped
    names = [output.name for output in setup.graph.outputs]
    try:
        return measure([runner], names, judge.dataset, judge.metric, workers=1)[1][0]
    except (DataError, VerificationError):
        return None

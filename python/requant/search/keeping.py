"""Quantize to a target: the fastest model found that keeps a share of the float model's quality, and the way to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

from requant.concluding import Given, Held
from requant.documents import finite
from requant.errors import ConfigError, DataError
from requant.evaluation.evaluate import check_labels
from requant.metrics import DEFAULT, get_metric
from requant.pages.page import fragment
from requant.pages.results import quantization
from requant.runtime import cpu_kind
from requant.search.bits import BitSearch
from requant.search.floats import Search
from requant.search.judging import COSINE, Judgement, find_judge
from requant.search.trials import Trials, refuse_dynamic, refuse_iterator, set_up
from requant.search.variants import Variants
from requant.stages import configured, open_judged, with_data_options
from requant.stopwatch import Stopwatch
from requant.targets import get_target
from requant.weightonly import read_samples, refuse_executor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from requant.config import QuantConfig
    from requant.data import DataOptions
    from requant.onnx.reading import Model
    from requant.quantized import QuantizedModel
    from requant.search.walk import ModelWalk, Step
    from requant.types import Progress

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """The result of a search.

    Attributes:
        model: the best model: of those that meet the target the one with most nodes in integers, less those that had to
            go to float for it to be no slower than the float model; the fastest where latency was asked for; where only
            weights are quantized, the smallest; if none meets the target, the one that keeps most.
        config: the options that make it; quantizing with them gives the same bytes.
        target: the share that was to be kept.
        share: the share that the model keeps of what is held back.
        met: whether that is enough, and what it keeps of the evaluation's metric, if there is one, is too.
        kept: what it is a share of: the name of the metric, or what stands for one without labels.
        evaluated: the share that it keeps of the metric on the evaluation samples, if there are some.
        chosen: which of the steps it is.
        steps: every model that was tried, in this order.
        interrupted: whether the search was broken off; the model is the best one until then.
        measured: whether how fast models ran on this machine chose among them: another run may choose another one.
    """

    model: QuantizedModel
    config: QuantConfig
    target: float
    share: float
    met: bool
    kept: str
    evaluated: float | None
    chosen: int
    steps: tuple[Step, ...]
    interrupted: bool
    measured: bool

    def to_dict(self) -> dict[str, Any]:
        """What was walked and found, as JSON types; the model's own report is not part of it."""
        names = ("target", "share", "met", "kept", "evaluated", "chosen", "interrupted", "measured")
        found = {name: getattr(self, name) for name in names}
        steps = [asdict(step) for step in self.steps]
        return finite({"schema": SCHEMA, **found, "config": self.config.to_dict(), "steps": steps})

    def to_html(self) -> str:
        """One self-contained page: the model's report, and every model that was tried; at most 500 KB."""
        return self.model.report.to_html(self)

    def _repr_html_(self) -> str:
        return fragment(quantization(self.model.report, self))


def quantize_to_keep(
    model: Model,
    data: object,
    share: float,
    config: QuantConfig | Mapping[str, Any] | None = None,
    *,
    data_options: DataOptions | None = None,
    evaluation: object = None,
    metric: str | Callable[..., object] | None = None,
    labels: str | None = None,
    progress: Progress | None = None,
    search_progress: Progress | None = None,
    executor: Executor | None = None,
    **overrides: Any,
) -> Kept:
    """Quantize a model as far as a share of its quality is kept, and no further than it is faster for it.

    Samples that are held back from ``data`` judge: by ``metric`` where they have labels, or it needs none. Without,
    a model that tells the next of the tokens it is fed is judged by its perplexity. Any other is judged by ``noise``,
    the power of its worst output's error over that of the output: where all outputs are maps or sequences (of three
    axes or more) by ``sqrt(1 - noise)``, the least cosine that they can have (0.99 is an SQNR of 17 dB), elsewhere by
    ``1 - noise``, called output fidelity (20 dB).

    With ``weight_only`` the smallest model is looked for instead, however fast it is: weights get more bits than were
    asked for, or stay float, where that serves the quality most for its bytes.

    An interrupt (Ctrl-C) ends the search; the best model until then is what is returned.

    Args:
        model: path, bytes, ModelProto or onnx_ir.Model of the float model.
        data: calibration samples, in any form that ``requant.quantize`` takes; they may have labels.
        share: what is to be kept, above 0 and at most 1.
        config: how to quantize, as a ``QuantConfig`` or its options by name: the first model that is tried.
        data_options: how samples are cut and images are scaled; ``config`` wins where it sets the same.
        evaluation: samples to take the metric on in the end; they choose nothing, but ``met`` depends on them.
        metric: what to judge by, as for ``requant.evaluate``; unset: top1 where the labels are of classes.
        labels: name of the labels in ``evaluation``, or in ``data`` if there is none.
        progress: called after each calibration batch, as for ``requant.quantize``.
        search_progress: called after each trial with the trials done and how many there will be, as far as is known.
        executor: whose workers calibrate and find the noise of nodes, processes here or a cluster; the result is the
            same.
        **overrides: options of ``QuantConfig`` by name.

    Returns:
        The best model found; ``met`` says whether it keeps the share.

    Raises:
        RequantError: a subclass says which input was wrong and how to mend it.

    Example:
        >>> requant.quantize_to_keep("model.onnx", "calib.npz", 0.99).met  # doctest: +SKIP
    """
    config = configured(config, overrides)
    _refuse(config, share, executor)
    refuse_iterator(data, "samples")
    refuse_iterator(evaluation, "evaluation samples")
    found = get_metric(DEFAULT if metric is None else metric)
    watch = Stopwatch()
    with watch("prepare"):
        own_labels = labels if evaluation is None else None
        setup = set_up(
            model, data, config, data_options=data_options, evaluation=None, metric=DEFAULT, labels=own_labels
        )
        judged = None
        if evaluation is not None:
            judged = open_judged(evaluation, setup.graph, with_data_options(config, data_options), found, labels)
        given = Given(setup.graph, setup.prepared, setup.changes, setup.dataset, judged, found)
    with watch("calibrate"):
        start = _prepare_search(given, config, progress, executor)
    held = Held.back(given, dynamic=False)
    if not held.batches:
        raise DataError(f"no sample of {setup.dataset.description} is left to judge by", hint="give more samples")
    with watch("search"):
        if metric is not None and judged is None:
            check_labels(found, setup.dataset, setup.dataset.has_labels)
        judge, kept = find_judge(setup, held.batches, found, asked=metric is not None)
        trials = Trials(setup.graph, held.batches, judge)
        judgement = Judgement(judge, trials.float_value(config.cores), cosine=kept == COSINE)
        search = start(trials, judgement.share, held=held, target=share, progress=search_progress)
        interrupted = not _walk(search)
    chosen = search.best()
    step = search.steps[chosen]
    final, result = search.conclude(watch)
    accuracy = result.report.accuracy
    evaluated = None if accuracy is None else found.kept(accuracy.quantized_value, accuracy.float_value)
    return Kept(
        model=result,
        config=final,
        target=share,
        share=step.share or 0.0,
        met=search.meets(step) and (accuracy is None or (evaluated is not None and evaluated >= share)),
        kept=kept,
        evaluated=evaluated,
        chosen=chosen,
        steps=tuple(search.steps),
        interrupted=interrupted,
        measured=search.measured,
    )


def _refuse(config: QuantConfig, share: Any, executor: Executor | None) -> None:
    """Refuse what a search cannot do.

    Raises:
        ConfigError: there is such a thing.
    """
    if not isinstance(share, Real) or not 0 < float(share) <= 1:
        raise ConfigError(f"keep is {share!r}, expected a share above 0 and at most 1")
    refuse_dynamic(config)
    if config.weight_only is not None:
        if config.target_bits is not None:
            raise ConfigError("keep and target_bits both choose the bits of layers", hint="leave out one or the other")
        refuse_executor(executor)


def _walk(search: ModelWalk) -> bool:
    """Search; False where an interrupt ended it after some model had been tried."""
    try:
        search.walk()
    except KeyboardInterrupt:
        if not search.steps:
            raise
        return False
    return True


def _prepare_search(
    given: Given, config: QuantConfig, progress: Progress | None, executor: Executor | None
) -> Callable[..., ModelWalk]:
    """Read the calibration samples; what starts the walk then."""
    if config.weight_only is not None:
        return partial(BitSearch, given, config, read_samples(given.dataset, config))
    # The recipe of what is found shall not measure again, and plans are others where latency is to be measured. Nor
    # shall it depend on the machine: for which kind it was made stands in it.
    cpu = config.cpu or (cpu_kind() if get_target(config.target).costs else None)
    variants = Variants(given, replace(config, optimize="none", cpu=cpu), progress, executor)
    return partial(Search, given, variants, latency=config.optimize == "latency", executor=executor)

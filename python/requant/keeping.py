"""Quantize to a target: the fewest layers in float with which a share of the float model's quality is kept.

1. The method asked for; if that does not do, the one with the least output noise on samples that are held back from
   calibration. Evaluation data says when to stop; it has no say in ranges, so none in the choice of a method.
2. Every node's noise with that method, alone in integers (``requant.ablation``).
3. The nodes with most noise go to float: 1, 2, 4, ... of them, until the target is met; bisection finds how few do.
4. Of these, those with the largest weights come first to be tried in integers again; what the target allows stays so.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.ablation import try_without
from requant.api import quantize
from requant.building import builder
from requant.calibration import calibrate_graph
from requant.config import METHODS
from requant.data import open_data
from requant.dynamic import plan_whole
from requant.errors import ConfigError, DataError, VerificationError
from requant.evaluation import measure
from requant.metrics import get_metric
from requant.onnx.ops import OPS, Kind
from requant.planning import build_plan
from requant.rules import Rule
from requant.runtime import open_runner
from requant.stages import configured, first_samples
from requant.transforms import transform
from requant.trials import Judge, refuse_iterator, set_up
from requant.verify import measure_latency, one_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from requant.calibration import CalibrationTable, Progress
    from requant.config import QuantConfig
    from requant.data import Batch, DataOptions
    from requant.onnx.reading import Model
    from requant.plan import QuantPlan
    from requant.quantized import QuantizedModel
    from requant.trials import Score, Setup

logger = logging.getLogger(__name__)

SCHEMA = 1
#: What is kept where there is no evaluation data: by language models, by others.
OWN_PERPLEXITY = "perplexity of held-back samples"
FIDELITY = "1 - output noise"
_RETURNS = 16  # nodes at most that are tried in integers again


@dataclass(frozen=True, slots=True)
class Step:
    """A model that was tried.

    Attributes:
        method: the calibration method.
        in_float: the nodes that the search left in float.
        integer_nodes: how many nodes run on integers.
        share: what it keeps; None where its metric is no number, or the float model's is 0.
        score: how good it is.
        bytes: its size.
        latency_ms: median time of one sample on one thread.
        speedup: against the float model.
    """

    method: str
    in_float: tuple[str, ...]
    integer_nodes: int
    share: float | None
    score: Score
    bytes: int
    latency_ms: float
    speedup: float


@dataclass(frozen=True, slots=True)
class Kept:
    """The result of a search.

    Attributes:
        model: the best model: the smallest part in float that meets the target, else the one that keeps most.
        config: the options that make it; quantizing with them gives the same bytes.
        target: the share that was to be kept.
        share: the share that the model keeps.
        met: whether that is enough.
        kept: what it is a share of: the name of the metric, or what stands for one without evaluation data.
        chosen: which of the steps it is.
        steps: every model that was tried, in this order.
    """

    model: QuantizedModel
    config: QuantConfig
    target: float
    share: float
    met: bool
    kept: str
    chosen: int
    steps: tuple[Step, ...]

    def to_dict(self) -> dict[str, Any]:
        """What was walked and found, as JSON types; the model's own report is not part of it."""
        found = {name: getattr(self, name) for name in ("target", "share", "met", "kept", "chosen")}
        return {"schema": SCHEMA, **found, "config": self.config.to_dict(), "steps": [asdict(s) for s in self.steps]}

    def to_html(self) -> str:
        """One self-contained page: the model's report, and every model that was tried; at most 500 KB."""
        return self.model.report.to_html(self)


def quantize_to_keep(
    model: Model,
    data: object,
    share: float,
    config: QuantConfig | Mapping[str, Any] | None = None,
    *,
    data_options: DataOptions | None = None,
    evaluation: object = None,
    metric: str | Callable[..., object] = "top1",
    labels: str | None = None,
    progress: Progress | None = None,
    search_progress: Progress | None = None,
    **overrides: Any,
) -> Kept:
    """Quantize a model as far as a share of its quality is kept.

    With ``evaluation`` the share is that of the float model's ``metric``. Without, samples that are held back from
    calibration judge: a model that tells the next of the tokens it is fed by its perplexity, any other by 1 minus the
    power of the outputs' error over that of the outputs (0.99 is an SQNR of 20 dB).

    Args:
        model: path, bytes or ModelProto of the float model.
        data: calibration samples, in any form that ``requant.quantize`` takes.
        share: what is to be kept, above 0 and at most 1.
        config: how to quantize, as a ``QuantConfig`` or its options by name; its method is the first to be tried.
        data_options: how samples are cut and images are scaled; ``config`` wins where it sets the same.
        evaluation: samples to judge by; ranges never depend on them.
        metric: what to judge by, as for ``requant.evaluate``.
        labels: name of the labels in ``evaluation``.
        progress: called after each calibration batch, as for ``requant.quantize``.
        search_progress: called after each trial with the trials done; their number is not known before.
        **overrides: options of ``QuantConfig`` by name.

    Returns:
        The best model found; ``met`` says whether it keeps the share.

    Raises:
        RequantError: a subclass says which input was wrong and how to mend it.

    Example:
        >>> requant.quantize_to_keep("model.onnx", "calib.npz", 0.99).met  # doctest: +SKIP
    """
    config = configured(config, overrides)
    if not 0 < share <= 1:
        raise ConfigError(f"keep is {share}, expected a share above 0 and at most 1")
    if config.weight_only is not None:
        raise ConfigError("keep leaves layers in float, and weight-only none", hint="choose bits by target_bits")
    if config.optimize != "none":
        raise ConfigError("a search to keep a share does not optimize latency", hint="leave out keep or optimize")
    if config.smooth == "auto":
        config = replace(config, smooth="none")  # what auto chooses depends on the plan: the config would not repeat it
    refuse_iterator(data, "samples")
    setup = set_up(model, data, config, data_options=data_options, evaluation=evaluation, metric=metric, labels=labels)
    sample = first_samples(setup.dataset.batches())
    transformed = transform(setup.prepared, setup.plan, config, sample)
    setup = replace(setup, prepared=transformed.graph, plan=transformed.plan)
    table = calibrate_graph(setup.prepared, _untied(setup.plan), setup.dataset, config, progress)
    table = table.with_factors(transformed.factors)
    own = _own_judge(setup) if setup.judge is None else None
    search = _Search(replace(setup, judge=setup.judge or own), (table, sample), config, share, search_progress)
    chosen = search.walk()
    step = search.steps[chosen]
    result = quantize(
        model,
        data,
        search.config(step.method, step.in_float),
        table=table,
        data_options=data_options,
        evaluation=evaluation,
        metric=metric,
        labels=labels,
    )
    return Kept(
        model=result,
        config=search.config(step.method, step.in_float),
        target=share,
        share=step.share or 0.0,
        met=search.meets(step),
        kept=setup.judge.metric.name if setup.judge is not None else FIDELITY if own is None else OWN_PERPLEXITY,
        chosen=chosen,
        steps=tuple(search.steps),
    )


def _untied(plan: QuantPlan) -> QuantPlan:
    """``plan`` with every range calibrated that another plan may not take from another tensor."""
    tensors = {name: replace(tensor, source=None, joined=()) for name, tensor in plan.tensors.items()}
    return replace(plan, tensors=tensors)


def _own_judge(setup: Setup) -> Judge | None:
    """Perplexity on the held-back samples, for a model that tells their next tokens better than chance."""
    _, batches = setup.trials()
    dataset = open_data([dict(batch.feeds) for batch in batches], setup.graph.inputs)
    metric = get_metric("perplexity")
    runner = open_runner(setup.graph.serialize(), threads=1)
    names = [output.name for output in setup.graph.outputs]
    try:
        _, (perplexity,) = measure([runner], names, dataset, metric, workers=1)
    except (DataError, VerificationError):
        return None
    vocabulary = np.asarray(runner.run(batches[0].feeds)[0]).shape[-1]
    return Judge(metric, dataset) if perplexity < vocabulary else None


class _Search:
    """A walk over models, each a method and a set of nodes in float."""

    def __init__(
        self,
        setup: Setup,
        seen: tuple[CalibrationTable, Sequence[Batch]],
        config: QuantConfig,
        target: float,
        progress: Progress | None,
    ) -> None:
        self.setup, self.base, self.target = setup, config, target
        self.table, self.first = seen
        self.trials, batches = setup.trials()
        self.sample = one_sample(batches[0], setup.graph.inputs)
        self.float_value = self.trials.float_value(config.cores)
        if setup.judge is not None and not self.float_value:
            figure = "not finite" if self.float_value is None else "0"
            raise DataError(
                f"{setup.judge.metric.name} of the float model is {figure}: there is no share of it to keep",
                hint="choose another metric, or leave out the evaluation data to keep the outputs",
            )
        self.steps: list[Step] = []
        self.index: dict[tuple[str, frozenset[str]], int | None] = {}
        self.done = 0
        self.progress = progress

    def walk(self) -> int:
        """Which step is the best one."""
        first = self.try_out(self.base.method, frozenset())
        assert first is not None  # a plan without integers was refused
        if self.meets(self.steps[first]):
            return first
        for method in METHODS:
            self.try_out(method, frozenset())
        whole = min(self.steps, key=lambda step: step.score.noise)
        if not self.meets(whole):
            self.leave_out(whole.method)
        return self.best(whole.method)

    def best(self, method: str) -> int:
        """Of the steps with ``method`` that meet the target the one with most nodes in integers, then the smallest.

        If none does, the one that keeps most; of equals the first.
        """
        own = [i for i, step in enumerate(self.steps) if step.method == method]
        good = [i for i in own if self.meets(self.steps[i])]
        if not good:
            return max(own, key=lambda i: self.steps[i].share or 0.0)
        return min(good, key=lambda i: (-self.steps[i].integer_nodes, self.steps[i].bytes))

    def leave_out(self, method: str) -> None:
        """Leave the noisiest nodes in float, as few as will do."""
        order = self.by_noise(method)

        def enough(count: int) -> bool:
            tried = self.try_out(method, frozenset(order[:count]))
            return tried is not None and self.meets(self.steps[tried])

        low, high = 0, 1
        while high < len(order) and not enough(high):
            low, high = high, high * 2
        high = min(high, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        if not enough(high):
            return
        kept = frozenset(order[:high])
        for name in sorted(kept, key=lambda name: (-self.weight_bytes(name), name))[:_RETURNS]:
            tried = self.try_out(method, kept - {name})
            if tried is not None and self.meets(self.steps[tried]):
                kept -= {name}

    def by_noise(self, method: str) -> list[str]:
        """The nodes that add noise, those with most first."""
        config = replace(self.config(method, ()), rest="keep")  # what is left out is float altogether
        plan = build_plan(self.setup.prepared, config)
        build = builder(
            self.setup.graph, self.setup.prepared, config, plan, self.table.ranges(plan, config), sample=self.first
        )
        everything = frozenset(node.name for node in plan.nodes)
        kinds = {node.name: OPS[node.op_type].kind for node in plan.nodes}
        names = [name for name, kind in kinds.items() if kind is not Kind.MOVE]
        # What computes is tried alone in integers, what follows alone in float.
        left_out = [everything - {n} if kinds[n] is Kind.COMPUTE else frozenset({n}) for n in names]
        trials, _ = replace(self.setup, judge=None).trials()
        sets = [frozenset[str](), *left_out]
        (_, whole), *tried = try_without(trials, build, sets, self.base.cores, lambda *_: self.advance())
        noise = {
            name: score.noise if kinds[name] is Kind.COMPUTE else whole.noise - score.noise
            for name, (_, score) in zip(names, tried, strict=True)
        }
        return sorted((name for name in names if noise[name] > 0), key=lambda name: -noise[name])

    def try_out(self, method: str, in_float: frozenset[str]) -> int | None:
        """The step with this method and these nodes in float, tried once; None if nothing is in integers then."""
        key = (method, in_float)
        if key not in self.index:
            self.index[key] = self._tried(method, in_float)
        return self.index[key]

    def _tried(self, method: str, in_float: frozenset[str]) -> int | None:
        names = tuple(sorted(in_float))
        config = self.config(method, names)
        plan = plan_whole(self.setup.prepared, config)
        if not plan.nodes:
            return None
        build = builder(
            self.setup.graph, self.setup.prepared, config, plan, self.table.ranges(plan, config), sample=self.first
        )
        model = build({}).model
        score = self.trials.score(model, self.base.cores)
        runners = open_runner(self.setup.graph.serialize(), threads=1), open_runner(model, threads=1)
        latency = measure_latency(runners, self.sample)
        share = self.share(score)
        step = Step(method, names, len(plan.nodes), share, score, model.size, latency.quantized_ms, latency.speedup)
        self.steps.append(step)
        self.advance()
        logger.info("%s with %d nodes in float keeps %s", method, len(names), share)
        return len(self.steps) - 1

    def share(self, score: Score) -> float | None:
        """What a model of this score keeps."""
        judge = self.setup.judge
        if judge is None:
            return max(1.0 - score.noise, 0.0)
        if score.value is None or self.float_value is None:
            return None
        return judge.metric.kept(score.value, self.float_value)

    def meets(self, step: Step) -> bool:
        """Whether the step keeps enough."""
        return step.share is not None and step.share >= self.target

    def config(self, method: str, in_float: Iterable[str]) -> QuantConfig:
        """The options that make a step: a rule, behind all others, for each node in float."""
        rules = [Rule(name, quantize=False) for name in in_float]
        return self.base.with_options(method=method, rules=(*self.base.rules, *rules))

    def weight_bytes(self, name: str) -> int:
        """Size of the node's weight in float."""
        node = next(node for node in self.setup.plan.nodes if node.name == name)
        weight = self.setup.prepared.model.graph.initializers.get(node.weight or "")
        return 0 if weight is None or weight.const_value is None else weight.const_value.nbytes

    def advance(self) -> None:
        """Another trial is done."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, None)

"""Which layers quantization hurts: each node or block alone in integers, and each alone in float."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from requant.documents import document_of
from requant.errors import ConfigError
from requant.onnx.ops import OPS, Kind
from requant.onnx.saving import self_contained
from requant.pages import results
from requant.pages.bars import bar_chart
from requant.pages.page import fragment, page
from requant.parallel import in_order
from requant.planning.plan import BlockedNode
from requant.remote import map_remote
from requant.search.trials import refuse_dynamic, score_bytes, set_up
from requant.stages import configured, observe, recall
from requant.stopwatch import Stopwatch
from requant.weightonly import builder_apart, refuse_table, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from requant.calibration.table import CalibrationTable
    from requant.config import QuantConfig
    from requant.data import DataOptions
    from requant.onnx.reading import Model
    from requant.planning.placement import Candidate
    from requant.planning.plan import NodePlan
    from requant.search.trials import Score, Setup, TrialContext, Trials
    from requant.types import Progress
    from requant.weightonly import LowBitModel

    #: A node that is tried, on integers or with integer weights.
    Tried = NodePlan | BlockedNode
    #: Makes the model in which the nodes named stay float.
    Attempt = Callable[[Mapping[str, str]], Candidate | LowBitModel]

SCHEMA = 1
_REASON = "it is tried without"


@dataclass(frozen=True, slots=True)
class Part:
    """A node or block, and how good the model is depending on it.

    Attributes:
        name: the node's name, or what the names of the block begin with.
        op_types: op types of its nodes.
        nodes: names of its nodes.
        noise: what it adds to the outputs' noise, as a ratio to their power: the noise when only it is in integers, or,
            where it cannot be alone there, the noise that leaves when only it is in float (0 where none does).
        in_integers: the model when only it is in integers; None where it cannot be (an op that only follows others).
        in_float: the model when only it is in float.
    """

    name: str
    op_types: tuple[str, ...]
    nodes: tuple[str, ...]
    noise: float
    in_integers: Score | None
    in_float: Score


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What each part of a model contributes to its error.

    Attributes:
        model: what the model is called.
        config: how it was quantized.
        data: what the samples were.
        samples: number of samples that outputs were compared on; calibration has not seen them, if there were enough.
        metric: name of the metric, if there was one.
        evaluation: the samples that it was taken on.
        float_value: the metric of the float model.
        quantized: the model with everything in integers.
        parts: the nodes or blocks, the one with most noise first.
        seconds: how long it took.
    """

    model: str
    config: Mapping[str, Any]
    data: str
    samples: int
    metric: str | None
    evaluation: str | None
    float_value: float | None
    quantized: Score
    parts: tuple[Part, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        return document_of(self, SCHEMA)

    def to_svg(self) -> str:
        """A bar chart of the shares of the noise: one self-contained SVG element."""
        total = sum(part.noise for part in self.parts) or 1.0
        bars = [(part.name, part.noise, f"{part.noise / total:.1%}{_alone(part.in_integers)}") for part in self.parts]
        return bar_chart(f"{self.model}: share of the output noise", bars)

    def to_html(self) -> str:
        """One self-contained page, at most 500 KB."""
        return page(self.model, results.sensitivity(self))

    def _repr_html_(self) -> str:
        return fragment(results.sensitivity(self))


def _alone(score: Score | None) -> str:
    return "" if score is None or score.sqnr_db is None else f", {score.sqnr_db:.1f} dB alone"


def sensitivity(
    model: Model,
    data: object,
    config: QuantConfig | Mapping[str, Any] | None = None,
    *,
    depth: int | None = None,
    table: CalibrationTable | None = None,
    data_options: DataOptions | None = None,
    evaluation: object = None,
    metric: str | Callable[..., object] = "top1",
    labels: str | None = None,
    progress: Progress | None = None,
    search_progress: Progress | None = None,
    executor: Executor | None = None,
    **overrides: Any,
) -> Sensitivity:
    """Try every node that would be quantized alone in integers, and alone in float.

    The model is calibrated once; each trial is a model of its own, compared with the float model on samples that are
    held back from calibration. With ``weight_only`` the weights of a node are integers or float; each is rounded once,
    by what its layer reads in the float model.

    Args:
        model: path, bytes, ModelProto or onnx_ir.Model of the float model.
        data: calibration samples, in any form that ``requant.quantize`` takes.
        config: how to quantize, as a ``QuantConfig`` or its options by name; ``overrides`` change single options.
            What a trial leaves in float is float altogether, whatever ``rest`` says.
        depth: try blocks instead of nodes: those whose names agree in so many parts, ``/`` and ``.`` being between
            parts: with 1 ``/layer.3/proj`` and ``/layer.3/norm`` are ``layer``, with 2 ``layer.3``.
        table: statistics collected earlier by ``calibrate`` for this model and these options.
        data_options: how samples are cut and images are scaled; ``config`` wins where it sets the same.
        evaluation: samples to take ``metric`` on for each trial.
        metric: what to judge by, as for ``requant.evaluate``.
        labels: name of the labels in ``evaluation``.
        progress: called after each calibration batch, as for ``requant.quantize``.
        search_progress: called after each trial with the trials done and their number.
        executor: whose workers calibrate and judge the trials, processes here or a cluster; the figures are the same.
        **overrides: options of ``QuantConfig`` by name.

    Raises:
        RequantError: a subclass says which input was wrong and how to mend it.

    Example:
        >>> requant.sensitivity("model.onnx", "calib.npz").parts[0].name  # doctest: +SKIP
    """
    watch = Stopwatch()
    config = configured(config, overrides)
    if depth is not None and depth < 1:
        raise ConfigError(f"depth is {depth}, expected at least 1")
    refuse_dynamic(config)
    if config.optimize != "none":
        raise ConfigError(
            f"optimize is {config.optimize}, and trials say themselves which node stays float",
            hint="leave out optimize: latency has no part in the ranking",
        )
    if config.weight_only is not None:
        refuse_table(table)
    else:
        config = replace(config, rest="keep")  # what is left out is float altogether
    setup = set_up(model, data, config, data_options=data_options, evaluation=evaluation, metric=metric, labels=labels)
    graph, judge = setup.graph, setup.judge
    nodes, build = _built(setup, config, table, progress, executor)
    trials, batches = setup.trials()
    parts = _parts(nodes, depth)
    everything = frozenset(node.name for node in nodes)
    left_out = [frozenset[str](), *parts.values(), *(everything - names for names in parts.values())]
    if executor is None:
        tried = try_without(trials, build, left_out, config.cores, search_progress)
    else:
        tried = try_elsewhere(executor, trials.context(graph), build, left_out, search_progress)
    (_, whole), *rest = tried
    found = []
    for (name, names), (_, in_float), (integer, alone) in zip(
        parts.items(), rest[: len(parts)], rest[len(parts) :], strict=True
    ):
        members = [node for node in nodes if node.name in names]
        found.append(_part(name, members, whole, in_float, alone if integer & names else None))
    return Sensitivity(
        model=graph.origin,
        config=config.to_dict(),
        data=setup.dataset.description,
        samples=sum(batch.count for batch in batches),
        metric=None if judge is None else judge.metric.name,
        evaluation=None if judge is None else judge.dataset.description,
        float_value=trials.float_value(config.cores),
        quantized=whole,
        parts=tuple(sorted(found, key=lambda part: -part.noise)),
        seconds=watch.elapsed,
    )


def _part(name: str, members: Sequence[Tried], whole: Score, in_float: Score, in_integers: Score | None) -> Part:
    noise = max(whole.noise - in_float.noise, 0.0) if in_integers is None else in_integers.noise
    op_types = tuple(dict.fromkeys(node.op_type for node in members))
    return Part(name, op_types, tuple(node.name for node in members), noise, in_integers, in_float)


def _built(
    setup: Setup,
    config: QuantConfig,
    table: CalibrationTable | None,
    progress: Progress | None,
    executor: Executor | None,
) -> tuple[Sequence[Tried], Attempt]:
    """What is tried, and what makes the model without some of it."""
    if config.weight_only is not None:
        plan, batches = settle(setup.prepared, setup.plan, config, setup.dataset)
        return plan.blocked, builder_apart(setup.graph, setup.prepared, plan, config, batches)
    if table is None:
        observed = observe(setup.prepared, setup.plan, setup.dataset, config, progress, executor=executor)
    else:
        table.check(setup.graph)
        observed = recall(setup.prepared, setup.plan, table, setup.dataset, config)
    return observed.plan.nodes, observed.builder(setup.graph, config)


def _parts(nodes: Sequence[Tried], depth: int | None) -> dict[str, frozenset[str]]:
    """Names of nodes by name of their part; ops that only move values are no parts, but go with their block."""
    blocks: dict[str, list[Tried]] = {}
    for node in nodes:
        blocks.setdefault(node.name if depth is None else block_name(node.name, depth), []).append(node)
    return {
        name: frozenset(node.name for node in members)
        for name, members in blocks.items()
        if any(isinstance(node, BlockedNode) or OPS[node.op_type].kind is not Kind.MOVE for node in members)
    }


def block_name(name: str, depth: int) -> str:
    """The first ``depth`` parts of a node's name, without the sign before them."""
    parts = re.findall(r"[^/.]+[/.]?", name)
    return "".join(parts[:depth]).rstrip("/.") or name


def try_without(
    trials: Trials, build: Attempt, left_out: Sequence[frozenset[str]], workers: int, progress: Progress | None
) -> Iterator[tuple[frozenset[str], Score]]:
    """For each set of nodes that is left in float, the nodes that then run on integers and the score."""

    def score(nodes: frozenset[str]) -> tuple[frozenset[str], Score]:
        candidate = build(dict.fromkeys(sorted(nodes), _REASON))
        return candidate.integer, trials.score(candidate.model)

    with closing(in_order(score, left_out, workers, stop=trials.stop)) as tried:
        for done, result in enumerate(tried, start=1):
            if progress is not None:
                progress(done, len(left_out))
            yield result


def try_elsewhere(
    executor: Executor,
    context: TrialContext,
    build: Attempt,
    left_out: Sequence[frozenset[str]],
    progress: Progress | None,
) -> Iterator[tuple[frozenset[str], Score]]:
    """The same by the workers of ``executor``; models are built here, so that they are the same bytes."""
    integer: list[frozenset[str]] = []

    def models() -> Iterator[bytes]:
        for nodes in left_out:
            candidate = build(dict.fromkeys(sorted(nodes), _REASON))
            integer.append(candidate.integer)
            yield self_contained(candidate.model)

    with closing(map_remote(executor, context, score_bytes, models())) as scores:
        for done, score in enumerate(scores, start=1):
            if progress is not None:
                progress(done, len(left_out))
            yield integer[done - 1], score

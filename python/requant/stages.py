"""The stages that several of the public functions go through: load, sample, observe, tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, tee
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from requant.building.build import builder
from requant.building.proving import unproven
from requant.building.resolve import check_weights
from requant.calibration.gains import output_gains
from requant.calibration.run import calibrate_graph
from requant.config import QuantConfig
from requant.data import DataOptions, Dataset, open_data
from requant.data.dataset import HOLD_BACK_AT_MOST
from requant.errors import CalibrationError, DataError, ModelError
from requant.evaluation.evaluate import check_labels
from requant.onnx.foreign import typed
from requant.onnx.graph import Graph
from requant.onnx.names import name_of
from requant.onnx.nodes import is_float
from requant.onnx.passes.widen import runnable
from requant.runtime import unknown
from requant.transforms import SAMPLES, Transformed, repeat, transform
from requant.weights.plan import NO_BLOCKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from requant.calibration.table import CalibrationTable
    from requant.data import Batch
    from requant.metrics import Metric
    from requant.onnx.passes import Preparation
    from requant.onnx.reading import Model
    from requant.planning.placement import Build
    from requant.planning.plan import QuantPlan
    from requant.types import Progress

#: Samples on which it is measured what errors of activations cost, about.
_WEIGHED = 16
#: Reasons that follow from others, and are told last.
_SAY_LITTLE = frozenset({"it has no weights", "its input is float", "no integer op reads its output"})


def configured(config: QuantConfig | Mapping[str, Any] | None, overrides: Mapping[str, Any]) -> QuantConfig:
    """The config that a caller means."""
    if config is not None and not isinstance(config, QuantConfig | Mapping):
        recipe = "; for a recipe give QuantConfig.from_recipe(...)" if isinstance(config, str | PurePath) else ""
        raise TypeError(f"expected config as a QuantConfig or its options by name, got {type(config).__name__}{recipe}")
    if not isinstance(config, QuantConfig):
        config = QuantConfig.from_dict(config or {})
    return config.with_options(**overrides)


def with_data_options(config: QuantConfig, options: DataOptions | None) -> DataOptions:
    """``options``, with what ``config`` says of samples, batch size and seed."""
    if options is not None and not isinstance(options, DataOptions):
        raise TypeError(f"expected data_options as DataOptions, got {type(options).__name__}")
    chosen = options or DataOptions()
    return replace(
        chosen,
        samples=chosen.samples if config.samples is None else config.samples,
        batch_size=chosen.batch_size if config.batch_size is None else config.batch_size,
        seed=chosen.seed if config.seed is None else config.seed,
    )


def load_float(model: Model) -> Graph:
    """Load a model in a form that can be run, refusing one that is quantized already."""
    graph = Graph.load(model)
    refuse_quantized(graph.quantized_ops(), graph.origin)
    for spec in graph.inputs:
        if 0 in spec.shape:
            raise ModelError(
                f"input {spec.name!r} of {graph.origin} has no elements: its shape is {spec.shape}",
                hint="export it with the sizes it will be fed; a size that is free is a name, not 0",
            )
    return runnable(typed(graph))


def refuse_quantized(present: Sequence[str], origin: str) -> None:
    """Refuse a model in which there are ops of quantization: those ``present``."""
    if present:
        raise ModelError(
            f"{origin} is quantized already: it holds {', '.join(present)}",
            hint="quantize the float model it was made from",
        )


def refuse_empty(plan: QuantPlan, origin: str) -> None:
    """Refuse a plan in which nothing is quantized.

    Raises:
        ModelError: it is one.
    """
    if not plan.nodes and not plan.dynamic and not plan.blocked:
        found = Counter((skip.op_type, skip.reason) for skip in plan.skipped).most_common()
        found.sort(key=lambda each: each[0][1] in _SAY_LITTLE)
        reasons = ", ".join(f"{count} {op_type} ({reason})" for (op_type, reason), count in found[:3])
        hint = "`requant inspect` tells why for each op"
        if any(reason.endswith(NO_BLOCKS) for (_, reason), _ in found):
            hint = "leave out weight_only (--weight-only): with data, or with dynamic=True (--dynamic), more can"
        raise ModelError(f"nothing in {origin} can be quantized" + (f": {reasons}" if reasons else ""), hint=hint)


def describe(changes: tuple[Preparation, ...]) -> tuple[str, ...]:
    """What preparation did, a line each."""
    return tuple(str(change) for change in changes)


def describe_data(dataset: Dataset | None, table: CalibrationTable | None = None) -> str:
    """What the samples were."""
    if dataset is not None:
        return dataset.description
    return "no data" if table is None else "calibration table"


def open_judged(evaluation: object, graph: Graph, options: DataOptions, judge: Metric, labels: str | None) -> Dataset:
    """All samples to judge by; ``options`` say how they are cut.

    Raises:
        DataError: they are not what ``graph`` takes, or lack the labels that ``judge`` needs.
    """
    judged = open_data(evaluation, graph.inputs, replace(options, samples=None, seed=None), labels=labels)
    check_labels(judge, judged, judged.has_labels)
    return judged


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """A prepared model as its data wants it.

    Attributes:
        transformed: the model and its plan.
        table: the statistics, where ranges need some.
        sample: the first samples.
        held: samples that were held back.
    """

    transformed: Transformed
    table: CalibrationTable | None
    sample: tuple[Batch, ...]
    held: tuple[Batch, ...] = ()

    @property
    def graph(self) -> Graph:
        """The prepared model, with its transforms."""
        return self.transformed.graph

    @property
    def plan(self) -> QuantPlan:
        """All that is quantized in it."""
        return self.transformed.plan

    def weighed(self, config: QuantConfig) -> Observed:
        """The same with what method ``auto`` chooses by, measured and proved on some of the sample."""
        if self.table is None or self.table.gains:
            return self
        few = tuple(first_batches(self.sample, _WEIGHED))
        gains = output_gains(self.graph, self.plan, few, threads=config.cores)
        table = self.table.with_gains(gains)
        failed = unproven(self.graph, self.plan, table, config, few)
        return replace(self, table=table.with_gains(gains, failed))

    def builder(self, given: Graph, config: QuantConfig) -> Build:
        """Makes the quantized model, or a part of it, for the float model ``given``."""
        choices = {} if self.table is None else self.table.choices(self.plan, config)
        return builder(given, self.graph, config, self.plan, choices, sample=self.sample, held=self.held)


def observe(
    graph: Graph,
    plan: QuantPlan,
    dataset: Dataset | None,
    config: QuantConfig,
    progress: Progress | None = None,
    *,
    executor: Executor | None = None,
) -> Observed:
    """What the samples tell of the prepared ``graph``: nothing, where no range is to be calibrated."""
    if not plan.calibrated:
        return Observed(Transformed(graph, plan), None, ())
    assert dataset is not None  # refused before
    # One pass, since some data can be read only once: what is read of it ahead comes again.
    ahead, batches = tee(dataset.batches())
    sample = first_samples(ahead)
    del ahead  # otherwise all batches would be kept for it
    transformed = transform(graph, plan, config, sample, dataset.batches() if dataset.stable else sample)
    try:
        table = calibrate_graph(
            transformed.graph, transformed.plan, dataset, config, progress, batches=batches, executor=executor
        )
    except CalibrationError:
        check_weights(graph, plan)  # one of them may be the reason
        raise
    observed = Observed(
        transformed, table.with_factors(transformed.factors, transformed.shifts), sample, tuple(dataset.held_back())
    )
    return observed.weighed(config) if config.weighs_outputs else observed


def recall(
    graph: Graph, plan: QuantPlan, table: CalibrationTable, dataset: Dataset | None, config: QuantConfig
) -> Observed:
    """What ``table`` tells of the prepared ``graph``, and the samples of ``dataset`` that repairs look at.

    Raises:
        CalibrationError: the table does not fit the graph.
    """
    transformed = repeat(graph, plan, config, table.factors, table.shifts)
    if dataset is None:
        return Observed(transformed, table, ())
    return Observed(transformed, table, first_samples(dataset.batches()), tuple(dataset.held_back()))


def first_samples(batches: Iterable[Batch]) -> tuple[Batch, ...]:
    """What transforms and repairs look at."""
    return tuple(first_batches(batches, SAMPLES))


def first_batches(batches: Iterable[Batch], samples: int) -> Iterator[Batch]:
    """Batches until they make up that many samples."""
    seen = 0
    for batch in batches:
        yield batch
        seen += batch.count
        if seen >= samples:
            return


def verification_batches(
    dataset: Dataset | None, *, dynamic: bool = False, runs: bool = True
) -> tuple[tuple[Batch, ...], tuple[str, ...]]:
    """Samples to compare the two models on, and what must be said of them; ``runs``: whether they can be run at all."""
    if dataset is not None and dynamic:  # has seen no sample yet
        return tuple(first_batches(dataset.batches(), HOLD_BACK_AT_MOST)), ()
    if dataset is not None:
        held_back = tuple(dataset.held_back())
        if held_back:
            return held_back, ()
        with suppress(DataError):  # of a source that can be read only once nothing is left
            few = "too few samples to hold some back: the outputs were compared on calibration samples"
            return tuple(islice(dataset.batches(), 1)), (few,)
    missing = "no samples to compare the two models on: output error and latency were not measured"
    return (), (f"{missing}, and that the model runs was checked on zeros" if runs else missing,)


def float_notes(graph: Graph, plan: QuantPlan, size: int) -> Iterator[str]:
    """Which constants of the prepared ``graph`` stay float and why, if they are most of a file of ``size`` bytes."""
    reasons = {skip.node: skip.reason for skip in plan.skipped}
    stored = {node.name for node in plan.dynamic}
    found: Counter[tuple[str, str]] = Counter()
    seen = set()
    for node in graph.all_nodes():
        reason = "" if node.name in stored else reasons.get(name_of(node), "")
        for value in node.inputs if reason else ():
            if value is not None and value.const_value is not None and is_float(value) and value not in seen:
                seen.add(value)
                found[node.op_type, reason] += value.const_value.nbytes
    if 2 * found.total() > size:
        ((op_type, reason), _), *_ = found.most_common(1)
        remedy = "; quantized with data, or with --dynamic, they become int8" if reason.endswith(NO_BLOCKS) else ""
        share = f"{100 * min(found.total() / size, 1.0):.0f} %"
        yield f"{share} of the file are constants that stay float, most of them of {op_type}: {reason}{remedy}"


def source_notes(graph: Graph, dataset: Dataset | None) -> Iterator[str]:
    """What there is to say of the float model, and of its samples."""
    if foreign := unknown(graph.foreign_ops()):
        yield f"{', '.join(foreign)}: unknown to onnxruntime, so the model was checked, but not loaded and run"
    if retyped := graph.retyped():
        yield f"bfloat16 inputs and outputs became float32: {', '.join(retyped)}"
    if graph.is_rounded():
        yield "onnxruntime lacks kernels for this model's float64: it is computed in float32, and was compared in that"
    if dataset is not None:
        yield from dataset.warnings

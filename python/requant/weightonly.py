"""Weight-only quantization, in the order it is done: load, prepare, plan, round, insert, verify."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from requant.building.build import storage_notes
from requant.concluding import Given, Held, advice_of_latency, verify
from requant.data import open_data
from requant.errors import ConfigError, ModelError
from requant.evaluation.distance import decibels
from requant.evaluation.verify import is_large, measure_latency
from requant.onnx.lowbit import insert_blocks, needed_opset, with_opset
from requant.onnx.passes import prepare
from requant.onnx.rescale import rescale
from requant.onnx.storage import Stored, store_half
from requant.quantized import QuantizedModel
from requant.report import Latency, Report, TensorQuality
from requant.runtime import refuse_unknown
from requant.stages import (
    describe,
    describe_data,
    first_batches,
    float_notes,
    load_float,
    open_judged,
    refuse_empty,
    source_notes,
    with_data_options,
)
from requant.stopwatch import Stopwatch
from requant.version import __version__
from requant.weights import AUTO
from requant.weights.arithmetic import arithmetic_of, describe_arithmetic
from requant.weights.budget import assign_bits
from requant.weights.plan import plan_weights
from requant.weights.resolve import Rounded, round_apart, round_weights, wants_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from requant.calibration.table import CalibrationTable
    from requant.config import QuantConfig
    from requant.data import Batch, DataOptions, Dataset
    from requant.evaluation.verify import Feeds, Runners
    from requant.metrics.spec import Metric
    from requant.onnx.graph import Graph
    from requant.onnx.reading import Model
    from requant.planning.plan import QuantPlan
    from requant.serialized import SerializedModel
    from requant.types import Progress
    from requant.weights.resolve import LayerError

#: Samples that layers are rounded by, where the config does not say.
SAMPLES = 128


def quantize_weights(
    model: Model,
    data: object,
    config: QuantConfig,
    *,
    data_options: DataOptions | None,
    evaluation: object,
    labels: str | None,
    judge: Metric,
    progress: Progress | None,
) -> QuantizedModel:
    """What ``requant.quantize`` does where ``config.weight_only`` is set; arguments as there.

    Raises:
        RequantError: a subclass says which input was wrong and how to mend it.
    """
    watch = Stopwatch()
    with watch("load"):
        graph = load_float(model)
        if data is not None or evaluation is not None:
            refuse_unknown(graph.foreign_ops(), graph.origin, "without data, weights need no run")
        options = with_data_options(config, data_options)
        dataset = None if data is None else open_data(data, graph.inputs, options, hold_back=True)
        judged = None if evaluation is None else open_judged(evaluation, graph, options, judge, labels)
    with watch("prepare"):
        prepared, changes = prepare(graph)
        given = Given(graph, prepared, describe(changes), dataset, judged, judge)
        plan = plan_weights(prepared, config)
        refuse_empty(plan, graph.origin)
    with watch("calibrate"):
        plan, batches = settle(prepared, plan, config, dataset)
        rounded = round_to_plan(given, plan, config, batches, progress)
    return conclude_weights(given, config, rounded, Held.back(given, dynamic=not batches), watch=watch)


def refuse_table(table: CalibrationTable | None) -> None:
    """Refuse statistics, which tell nothing of weights.

    Raises:
        ConfigError: there are some.
    """
    if table is not None:
        raise ConfigError("a table holds ranges, and weights need none", hint="leave out table or weight_only")


def refuse_executor(executor: Executor | None) -> None:
    """Refuse other processes, between which there is nothing to share out.

    Raises:
        ConfigError: there is an executor.
    """
    if executor is not None:
        raise ConfigError("weights are quantized in one process, layer by layer", hint="leave out executor")


@dataclass(frozen=True, slots=True, eq=False)
class LowBitModel:
    """A model whose weights have few bits.

    Attributes:
        model: the model.
        plan: which weights, and how many bits.
        rounded: how they were rounded.
        samples: by how many samples.
        notes: what must be said of it.
    """

    model: SerializedModel
    plan: QuantPlan
    rounded: Rounded
    samples: int
    notes: tuple[str, ...]

    @property
    def integer(self) -> frozenset[str]:
        """The nodes whose weights are integers."""
        return frozenset(node.name for node in self.plan.blocked)

    @property
    def mean_bits(self) -> float:
        """The bits that a weight takes on average, scales and zero points included."""
        weights = self.rounded.weights.values()
        return 8 * sum(each.nbytes for each in weights) / max(1, sum(math.prod(each.shape) for each in weights))


def read_samples(dataset: Dataset | None, config: QuantConfig) -> tuple[Batch, ...]:
    """The samples that layers are rounded by; none where there is no data."""
    return () if dataset is None else tuple(first_batches(dataset.batches(), config.samples or SAMPLES))


def settle(
    prepared: Graph, plan: QuantPlan, config: QuantConfig, dataset: Dataset | None
) -> tuple[QuantPlan, tuple[Batch, ...]]:
    """``plan`` with the bits that a target gives each weight, and the samples that weights are rounded by."""
    batches = read_samples(dataset, config) if config.target_bits is not None or looks_at_data(plan) else ()
    if config.target_bits is not None:
        plan = assign_bits(prepared, plan, config.target_bits, batches, threads=config.cores)
    return plan, batches


def looks_at_data(plan: QuantPlan) -> bool:
    """Whether some weight is rounded by what its layer reads, where there is data."""
    return wants_data(plan) or any(node.algorithm == AUTO for node in plan.blocked)


def round_to_plan(
    given: Given, plan: QuantPlan, config: QuantConfig, batches: Sequence[Batch], progress: Progress | None = None
) -> LowBitModel:
    """The model with the weights of ``plan`` rounded, by ``batches`` where the plan looks at data."""
    prepared = _with_needed_opset(given.prepared, plan, config)
    used = batches if looks_at_data(plan) else ()
    rounded = round_weights(prepared, plan, used, threads=config.cores, progress=progress)
    built, notes = build(given.graph, prepared, plan, rounded, config)
    return LowBitModel(built, plan, rounded, sum(batch.count for batch in batches), notes)


def builder_apart(
    given: Graph, prepared: Graph, plan: QuantPlan, config: QuantConfig, batches: Sequence[Batch]
) -> Callable[[Mapping[str, str]], LowBitModel]:
    """Makes models with the weights of ``plan``, but for those of nodes that are left out, which stay float.

    Each weight is rounded once, as if all others stayed float.
    """
    prepared = _with_needed_opset(prepared, plan, config)
    used = batches if looks_at_data(plan) else ()
    rounded = round_apart(prepared, plan, used, threads=config.cores)

    def build_without(left: Mapping[str, str]) -> LowBitModel:
        rest = replace(plan, blocked=tuple(node for node in plan.blocked if node.name not in left))
        some = Rounded({node.key: rounded.weights[node.key] for node in rest.blocked})
        built, notes = build(given, prepared, rest, some, config)
        return LowBitModel(built, rest, some, sum(batch.count for batch in used), notes)

    return build_without


def _with_needed_opset(prepared: Graph, plan: QuantPlan, config: QuantConfig) -> Graph:
    return with_opset(prepared, needed_opset(plan)) if config.format == "qdq" else prepared


def conclude_weights(
    given: Given, config: QuantConfig, found: LowBitModel, held: Held, *, watch: Stopwatch
) -> QuantizedModel:
    """The verified model, and its report.

    Args:
        given: what it was made from.
        config: how.
        found: the model.
        held: what to compare on.
        watch: what the stages before took.

    Raises:
        VerificationError: it is no valid model, or not finite where the float model is.
    """
    graph, built, plan = given.graph, found.model, found.plan
    with watch("verify"):
        verified = verify(given, built, held, workers=config.cores)
        arithmetic = arithmetic_of(built) if verified.runners else None
        speed = (
            tuple(_speed(verified.runners, held.feeds, verified.latency))
            if verified.runners and verified.latency
            else ()
        )
    report = Report(
        version=__version__,
        model=graph.origin,
        config=config.to_dict(),
        float_bytes=graph.size,
        quantized_bytes=built.size,
        prepared=given.changes,
        quantized=dict(Counter(plan.op_types)),
        skipped=plan.skipped,
        data=describe_data(given.dataset),
        calibration_samples=found.samples,
        verification_samples=sum(batch.count for batch in held.batches),
        outputs=verified.outputs,
        tensors=tuple(map(_quality, found.rounded.errors)),
        latency=verified.latency,
        accuracy=verified.accuracy,
        notes=(
            *verified.narrowing,
            *describe_arithmetic(arithmetic, config),
            *speed,
            *advice_of_latency(config, verified.latency),
            *_notes(plan, config),
            *_size_notes(built),
            *float_notes(given.prepared, plan, built.size),
            *source_notes(graph, given.dataset),
            *found.rounded.notes(),
            *found.notes,
            *held.notes,
        ),
        seconds=dict(watch.seconds),
    )
    return QuantizedModel(built, report, plan, None, graph.file.files)


def build(
    given: Graph, prepared: Graph, plan: QuantPlan, rounded: Rounded, config: QuantConfig
) -> tuple[SerializedModel, tuple[str, ...]]:
    """The quantized model, and what to know of it."""
    qdq = config.format == "qdq"
    model = rescale(prepared, rounded.factors) if rounded.factors else prepared
    model = insert_blocks(model, plan, rounded.weights, qdq=qdq, activations=config.activations)
    stored = Stored()
    if given.holds_half():
        model, stored = store_half(model, exactly=True)
    return model.serialize(), tuple(storage_notes(stored))


def _quality(error: LayerError) -> TensorQuality:
    """A weight as the report has it; nothing of it is called clipped, as grids may end inside of a block."""
    return TensorQuality(
        error.name, "weight", error.lo, error.hi, error.scale, 0, error.noise, 0.0, 0.0,
        decibels(error.signal, error.noise),
    )  # fmt: skip


def _speed(runners: Runners, feeds: Feeds, whole: Latency) -> Iterator[str]:
    """Tokens per second of the float model and the quantized one: of the ``whole`` sequence, and of one token."""
    ids = [array for array in feeds.values() if array.dtype.kind in "iu" and array.ndim == 2]
    if not ids or len({array.shape for array in ids}) != 1 or len(ids) != len(feeds):
        return
    found = [("prefill", ids[0].size, whole)]
    with suppress(ModelError):  # the length is fixed inside
        one = {name: np.ascontiguousarray(array[:, :1]) for name, array in feeds.items()}
        found.append(("one token", len(ids[0]), measure_latency(runners, one)))
    for what, tokens, took in found:
        before, after = (1e3 * tokens / ms for ms in (took.float_ms, took.quantized_ms))
        yield f"{what}: {before:,.0f} -> {after:,.0f} tokens per second, without a cache, on 1 thread"


def _size_notes(built: SerializedModel) -> Iterator[str]:
    if is_large(built):
        yield "the quantized model is larger than memory should be: it was loaded whole, and run in pieces"


def _notes(plan: QuantPlan, config: QuantConfig) -> Iterator[str]:
    bits = Counter(node.scheme.bits for node in plan.blocked)
    if len(bits) > 1:
        yield "bits of weights: " + ", ".join(f"{b} ({count})" for b, count in sorted(bits.items()))
    if 3 in bits:
        yield "3-bit weights are stored in 4 bits, as no runtime packs 3: they save no bytes"
    if config.format == "qdq" and config.activations != "int8":
        yield (
            "onnxruntime rounds activations to int8 where it fuses DequantizeLinear and MatMul, unless "
            "session.qdq_matmulnbits_accuracy_level is 1"
        )

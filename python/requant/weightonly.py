"""Weight-only quantization, in the order it is done: load, prepare, plan, round, insert, verify."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from requant.building import storage_notes
from requant.data import open_data
from requant.errors import ModelError
from requant.evaluation import measure_accuracy
from requant.metrics import get_metric
from requant.onnx.lowbit import insert_blocks, needed_opset, with_opset
from requant.onnx.passes import prepare
from requant.onnx.rescale import rescale
from requant.onnx.storage import Stored, store_half
from requant.quantized import QuantizedModel
from requant.report import Latency, Report, TensorQuality
from requant.runtime import refuse_unknown, unknown
from requant.stages import (
    Stopwatch,
    describe,
    describe_data,
    first_batches,
    load_float,
    open_judged,
    refuse_empty,
    source_notes,
    verification_batches,
    with_data_options,
)
from requant.verify import check_model, compare_outputs, decibels, is_large, measure_latency, one_sample, zero_feeds
from requant.version import __version__
from requant.weights import AUTO
from requant.weights.arithmetic import arithmetic_of, describe_arithmetic
from requant.weights.budget import assign_bits
from requant.weights.plan import plan_weights
from requant.weights.resolve import round_weights, wants_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from requant.calibration import Progress
    from requant.config import QuantConfig
    from requant.data import DataOptions
    from requant.onnx.graph import Graph
    from requant.onnx.reading import Model
    from requant.plan import QuantPlan
    from requant.serialized import SerializedModel
    from requant.verify import Feeds, Runners
    from requant.weights.resolve import LayerError, Rounded

#: Samples that layers are rounded by, where the config does not say.
SAMPLES = 128
_IDS_RANK = 2


def quantize_weights(
    model: Model,
    data: object,
    config: QuantConfig,
    *,
    data_options: DataOptions | None,
    evaluation: object,
    labels: str | None,
    metric: str | Callable[..., object],
    progress: Progress | None,
) -> QuantizedModel:
    """What ``requant.quantize`` does where ``config.weight_only`` is set; arguments as there.

    Raises:
        RequantError: a subclass says which input was wrong and how to mend it.
    """
    judge = get_metric(metric)
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
        plan = plan_weights(prepared, config)
        refuse_empty(plan, graph.origin)
    with watch("calibrate"):
        auto = any(node.algorithm == AUTO for node in plan.blocked)
        walks = wants_data(plan) or auto or config.target_bits is not None
        samples = config.samples or SAMPLES
        batches = tuple(first_batches(dataset.batches(), samples)) if dataset is not None and walks else ()
        if config.target_bits is not None:
            plan = assign_bits(prepared, plan, config.target_bits, batches, threads=config.cores)
        if config.format == "qdq":
            prepared = with_opset(prepared, needed_opset(plan))
        rounded = round_weights(prepared, plan, batches, threads=config.cores, progress=progress)
    with watch("quantize"):
        built, notes = build(graph, prepared, plan, rounded, config)
    runs = not unknown(graph.foreign_ops())
    held, note = verification_batches(dataset, dynamic=not batches, runs=runs)
    feeds = one_sample(held[0], graph.inputs) if held else zero_feeds(graph.inputs)
    with watch("verify"):
        runners = check_model(graph, built, feeds, threads=1)
        names = [output.name for output in graph.outputs]
        outputs = compare_outputs(runners, names, held, workers=config.cores) if runners and held else ()
        latency = measure_latency(runners, feeds) if runners and held else None
        accuracy = measure_accuracy(runners, names, judged, judge, workers=config.cores) if runners and judged else None
        arithmetic = arithmetic_of(built) if runners else None
        speed = tuple(_speed(runners, feeds, latency)) if runners and latency else ()
    report = Report(
        version=__version__,
        model=graph.origin,
        config=config.to_dict(),
        float_bytes=graph.size,
        quantized_bytes=built.size,
        prepared=describe(changes),
        quantized=dict(Counter(plan.op_types)),
        skipped=plan.skipped,
        data=describe_data(dataset),
        calibration_samples=sum(batch.count for batch in batches),
        verification_samples=sum(batch.count for batch in held),
        outputs=outputs,
        tensors=tuple(map(_quality, rounded.errors)),
        latency=latency,
        accuracy=accuracy,
        notes=(
            *describe_arithmetic(arithmetic, config),
            *speed,
            *_notes(plan, config),
            *_size_notes(built),
            *source_notes(graph, dataset),
            *rounded.notes(),
            *notes,
            *note,
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
    model = insert_blocks(model, plan, rounded.weights, qdq=qdq, activations=config.activations or "float")
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
    ids = [array for array in feeds.values() if array.dtype.kind in "iu" and array.ndim == _IDS_RANK]
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
    if config.format == "qdq" and (config.activations or "float") == "float":
        yield (
            "onnxruntime rounds activations to int8 where it fuses DequantizeLinear and MatMul, unless "
            "session.qdq_matmulnbits_accuracy_level is 1"
        )

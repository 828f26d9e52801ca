"""The main job, in the order it is done: load, prepare, plan, calibrate, resolve, insert, verify."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from requant.building import builder
from requant.data import DataOptions, open_data
from requant.dynamic import plan_whole
from requant.errors import ConfigError, DataError, ModelError
from requant.evaluation import measure_accuracy
from requant.metrics import get_metric
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.placement import place
from requant.plan import Form
from requant.planning import build_plan
from requant.quantized import QuantizedModel, view_tensor
from requant.report import Report, by_quality
from requant.runtime import saturates
from requant.stages import (
    Stopwatch,
    configured,
    describe,
    describe_data,
    first_samples,
    load_float,
    observe,
    open_judged,
    refuse_empty,
    refuse_quantized,
    source_notes,
    verification_batches,
    with_data_options,
)
from requant.targets import get_target
from requant.transforms import Transformed, repeat
from requant.types import QuantType
from requant.verify import (
    check_model,
    compare_outputs,
    measure_latency,
    one_sample,
    tensor_quality,
    weight_quality,
    zero_feeds,
)
from requant.version import __version__
from requant.weightonly import quantize_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Executor

    from requant.calibration import CalibrationTable, Progress
    from requant.config import QuantConfig
    from requant.data import Dataset
    from requant.onnx.reading import Model
    from requant.plan import QuantPlan


#: How many activations the report shows the histogram of.
_VIEWS = 12


@dataclass(frozen=True)
class Inspection:
    """What a model is and what would become of it; no data is needed."""

    model: str
    size: int
    opset: int
    ir_version: int
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    op_types: Mapping[str, int]
    weight_bytes: int
    prepared: tuple[str, ...]
    plan: QuantPlan
    quantized_ops: tuple[str, ...]


def quantize(
    model: Model,
    data: object = None,
    config: QuantConfig | Mapping[str, Any] | None = None,
    *,
    table: CalibrationTable | None = None,
    data_options: DataOptions | None = None,
    evaluation: object = None,
    labels: str | None = None,
    metric: str | Callable[..., object] = "top1",
    progress: Progress | None = None,
    executor: Executor | None = None,
    **overrides: Any,
) -> QuantizedModel:
    """Quantize a float ONNX model to a verified integer one.

    Args:
        model: path, bytes or ModelProto of the float model.
        data: calibration samples: a path (.npz, .npy, a folder of them, of images or of ``test_data_set_*``), an array,
            a dict of arrays, or any iterable of such samples. Not needed with ``table``; with ``dynamic=True`` they
            only serve to compare the two models.
        config: how to quantize, as a ``QuantConfig`` or its options by name; ``overrides`` change single options.
        table: statistics collected earlier by ``calibrate`` for this model.
        data_options: how samples are cut and images are scaled; ``config`` wins where it sets the same.
        evaluation: samples to judge both models by, in any form that ``data`` may have; ranges never depend on them.
        labels: name of the labels in ``evaluation``, where it is not ``labels``, ``label``, ``y`` or ``targets``.
        metric: what to judge by, as for ``requant.evaluate``.
        progress: called after each calibration batch with the samples done and their number (None if unknown).
        executor: whose workers run the model over the samples, processes here or a cluster; the result is the same.
        **overrides: options of ``QuantConfig`` by name.

    Returns:
        The model, checked by onnx.checker, loaded and run once; ``.save(path)`` writes it, ``.report`` tells about it.

    Raises:
        RequantError: a subclass says which input was wrong and how to mend it.

    Example:
        >>> result = requant.quantize("model.onnx", "calib.npz", method="mse")  # doctest: +SKIP
        >>> result.save("model.int8.onnx")  # doctest: +SKIP
    """
    config = configured(config, overrides)
    if config.weight_only is not None:
        _refuse_beside_weights(table, executor)
        return quantize_weights(
            model,
            data,
            config,
            data_options=data_options,
            evaluation=evaluation,
            labels=labels,
            metric=metric,
            progress=progress,
        )
    judge = get_metric(metric)
    watch = Stopwatch()
    with watch("load"):
        graph = load_float(model)
        options = with_data_options(config, data_options)
        _check_sources(config, data, table)
        _refuse_foreign(graph, config, samples_given=data is not None or evaluation is not None)
        dataset = None if data is None else open_data(data, graph.inputs, options, hold_back=not config.dynamic)
        judged = None if evaluation is None else open_judged(evaluation, graph, options, judge, labels)
    with watch("prepare"):
        prepared, changes = prepare(graph)
        plan = plan_whole(prepared, config)
        refuse_empty(plan, graph.origin)
    with watch("calibrate"):
        if table is None and plan.calibrated:
            assert dataset is not None  # refused above
            transformed, table, sample = observe(prepared, plan, dataset, config, progress, executor=executor)
        elif table is not None:
            table.check(graph)
            transformed = repeat(prepared, plan, config, table.factors)
            sample = () if dataset is None else first_samples(dataset.batches())
        else:
            transformed, sample = Transformed(prepared, plan), ()
        prepared, plan = transformed.graph, transformed.plan
    batches, note = verification_batches(dataset, dynamic=config.dynamic)
    feeds = one_sample(batches[0], graph.inputs) if batches else zero_feeds(graph.inputs)
    ranges = {} if table is None else table.ranges(plan, config)
    with watch("quantize"):
        build = builder(graph, prepared, config, plan, ranges, sample=sample)
        if config.optimize == "latency":
            chosen, placed = place(prepared, graph.serialize(), build, feeds)
            note = (*note, placed)
        else:
            chosen = build({})
        plan = chosen.plan
    with watch("verify"):
        runners = check_model(graph, chosen.model, feeds, threads=1)  # latency is that of one thread
        names = [output.name for output in graph.outputs]
        outputs = compare_outputs(runners, names, batches, workers=config.cores) if runners and batches else ()
        latency = measure_latency(runners, feeds) if runners and batches else None
        accuracy = measure_accuracy(runners, names, judged, judge, workers=config.cores) if runners and judged else None
        tensors = (
            *tensor_quality(prepared, plan, chosen.resolved, table),
            *weight_quality(prepared, plan, chosen.weights),
        )
    worst = [tensor for tensor in by_quality(tensors) if tensor.kind == "activation"][:_VIEWS]
    report = Report(
        version=__version__,
        model=graph.origin,
        config=config.completed().to_dict(),
        float_bytes=graph.size,
        quantized_bytes=chosen.model.size,
        prepared=(*describe(changes), *transformed.done, *chosen.done),
        quantized=dict(Counter(plan.op_types)),
        stored=dict(Counter(node.op_type for node in plan.dynamic if node.form is Form.STORED)),
        skipped=plan.skipped,
        data=describe_data(dataset, table),
        calibration_samples=0 if table is None else table.samples,
        verification_samples=sum(batch.count for batch in batches),
        outputs=outputs,
        tensors=tensors,
        latency=latency,
        accuracy=accuracy,
        notes=(*transformed.notes, *_notes(config, graph, dataset, chosen.resolved.widened), *chosen.notes, *note),
        seconds=dict(watch.seconds),
        ranges=() if table is None else tuple(view_tensor(plan, table, tensor) for tensor in worst),
    )
    return QuantizedModel(chosen.model, report, plan, table, graph.file.files)


def calibrate(
    model: Model,
    data: object,
    config: QuantConfig | Mapping[str, Any] | None = None,
    *,
    data_options: DataOptions | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    **overrides: Any,
) -> CalibrationTable:
    """Collect the statistics from which every method's ranges follow; arguments as for ``quantize``."""
    config = configured(config, overrides)
    if config.weight_only is not None:
        raise ConfigError("weight-only quantization has no ranges", hint="quantize with weight_only right away")
    if config.dynamic:
        raise ConfigError("dynamic quantization has nothing to calibrate", hint="quantize with dynamic=True right away")
    graph = load_float(model)
    prepared, _ = prepare(graph)
    plan = build_plan(prepared, config)
    dataset = open_data(data, graph.inputs, with_data_options(config, data_options), hold_back=True)
    return observe(prepared, plan, dataset, config, progress, executor=executor)[1]


def inspect(model: Model, config: QuantConfig | Mapping[str, Any] | None = None, **overrides: Any) -> Inspection:
    """What ``model`` consists of, and what would be quantized and what not, and why."""
    config = configured(config, overrides)
    graph = Graph.load(model)
    prepared, changes = prepare(graph)
    initializers = prepared.model.graph.initializers.values()
    return Inspection(
        model=graph.origin,
        size=graph.size,
        opset=graph.opset,
        ir_version=graph.model.ir_version,
        inputs=graph.inputs,
        outputs=graph.outputs,
        op_types=dict(Counter(node.op_type for node in graph.all_nodes()).most_common()),
        weight_bytes=sum(v.const_value.nbytes for v in initializers if v.const_value is not None),
        prepared=describe(changes),
        plan=plan_whole(prepared, config),
        quantized_ops=tuple(graph.quantized_ops()),
    )


def refuse_hopeless(inspection: Inspection) -> None:
    """Refuse what ``quantize`` would refuse.

    Raises:
        ModelError: the model is quantized already, or nothing in it can be.
    """
    refuse_quantized(inspection.quantized_ops, inspection.model)
    refuse_empty(inspection.plan, inspection.model)


def _refuse_beside_weights(table: CalibrationTable | None, executor: Executor | None) -> None:
    if table is not None:
        raise ConfigError("a table holds ranges, and weights need none", hint="leave out table or weight_only")
    if executor is not None:
        raise ConfigError("weights are quantized in one process, layer by layer", hint="leave out executor")


def _check_sources(config: QuantConfig, data: object, table: CalibrationTable | None) -> None:
    """Refuse a static run with nothing to calibrate on, and statistics that a dynamic one would not use."""
    if config.dynamic and table is not None:
        raise ConfigError(
            "a table holds calibrated ranges, and dynamic quantization has none", hint="leave out table or dynamic"
        )
    if not config.dynamic and data is None and table is None:
        raise DataError(
            "static quantization needs calibration data, and none was given",
            hint="pass samples (data=..., --data FILE) or statistics of an earlier run (table=..., --table FILE); "
            "dynamic=True (--dynamic) needs none",
        )


def _refuse_foreign(graph: Graph, config: QuantConfig, *, samples_given: bool) -> None:
    """Refuse to run a model whose ops the runtime does not know."""
    foreign = graph.foreign_ops()
    if foreign and (not config.dynamic or samples_given or config.optimize == "latency"):
        raise ModelError(
            f"{graph.origin} cannot be run here: onnxruntime does not know {', '.join(foreign)}",
            hint="dynamic=True (--dynamic) without data quantizes the other ops without running it",
        )


def _notes(config: QuantConfig, graph: Graph, dataset: Dataset | None, widened: tuple[str, ...]) -> Iterator[str]:
    if not config.dynamic and dataset is None and (config.rounding == "reconstruct" or config.bias_correction):
        yield "no samples to repair weights by: they were rounded to nearest"
    target = get_target(config.target)
    activations = config.activation_scheme.dtype
    if not config.dynamic and activations in target.float_activations:
        allowed = " on x86, unless session.qdqisint8allowed is set" if activations is QuantType.INT8 else ""
        yield (
            f"{config.target} computes with {activations} activations in float, between Q and DQ{allowed}; "
            f"{target.activations[0]} runs on integers everywhere"
        )
    guarded = target.pair_products and config.saturation == "safe"
    if saturates() and config.weights == "int8" and activations is QuantType.UINT8 and not guarded:
        yield (
            "this CPU has no VNNI: onnxruntime saturates here, and the figures above show it; "
            "--target ort-cpu --saturation safe or --weights uint8 avoid it"
        )
    yield from source_notes(graph, dataset)
    if widened:
        yield f"weight scale widened for a bias in {len(widened)} nodes: {', '.join(widened[:5])}"

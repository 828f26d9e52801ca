"""The main job, in the order it is done: load, prepare, plan, calibrate, resolve, insert, verify."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice, tee
from typing import TYPE_CHECKING, Any

from requant.building import builder
from requant.calibration import CalibrationTable, calibrate_graph
from requant.config import QuantConfig
from requant.data import DataOptions, Dataset, open_data
from requant.data.dataset import HOLD_BACK_AT_MOST
from requant.dynamic import plan_whole
from requant.errors import ConfigError, DataError, ModelError, closest
from requant.evaluation import check_labels, measure_accuracy
from requant.files import check_outputs
from requant.metrics import get_metric
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.passes.widen import without_bfloat16
from requant.onnx.saving import save_model, self_contained
from requant.placement import place
from requant.plan import Form, build_plan
from requant.ranges import view_range
from requant.report import Report, by_quality
from requant.runtime import saturates
from requant.targets import get_target
from requant.transforms import SAMPLES, Transformed, repeat, transform
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from requant.calibration import Progress
    from requant.data import Batch
    from requant.onnx.passes import Preparation
    from requant.onnx.reading import Model
    from requant.plan import QuantPlan
    from requant.ranges import RangeView
    from requant.report import TensorQuality
    from requant.serialized import SerializedModel


#: How many activations the report shows the histogram of.
_VIEWS = 12


@dataclass(frozen=True)
class QuantizedModel:
    """A verified quantized model, the report, and what led to it; no ``table`` where nothing was calibrated."""

    model: SerializedModel
    report: Report
    plan: QuantPlan
    table: CalibrationTable | None
    sources: tuple[Path, ...]

    @property
    def data(self) -> bytes:
        """The model as the bytes of one file.

        Raises:
            ModelError: It would pass 2 GiB.
        """
        return self_contained(self.model)

    def save(self, path: str | Path, *, external_data: bool = False) -> None:
        """Write the model; what is at ``path`` is replaced at once or not at all.

        Args:
            path: Where to.
            external_data: Put the tensors into a file beside it. Done anyway where one file would pass 2 GiB.

        Raises:
            OutputError: ``path`` is a file of the float model, or cannot be written.
        """
        check_outputs([path], self.sources)
        save_model(self.model, path, external_data=external_data)

    def view_range(self, name: str) -> RangeView:
        """Histogram of activation ``name``, the range that was chosen, and what narrower and wider ones would cost.

        Raises:
            ConfigError: it is no activation that was calibrated.
        """
        found = next((t for t in self.report.tensors if t.name == name and t.kind == "activation"), None)
        if found is None or self.table is None:
            known = [tensor.name for tensor in self.report.tensors if tensor.kind == "activation"]
            raise ConfigError(
                f"{name!r} is no activation that was calibrated{closest(name, known)}",
                hint="the report lists them (--report FILE)" if known else "dynamic quantization calibrates none",
            )
        return _view(self.plan, self.table, found)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


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
        return _weight_only(
            (model, data, config),
            (table, executor),
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
        whole = replace(options, samples=None, seed=None)
        judged = None if evaluation is None else open_data(evaluation, graph.inputs, whole, labels=labels)
        if judged is not None:
            check_labels(judge, judged, judged.has_labels)
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
        ranges=() if table is None else tuple(_view(plan, table, tensor) for tensor in worst),
    )
    return QuantizedModel(chosen.model, report, plan, table, graph.file.files)


def _weight_only(
    given: tuple[Model, object, QuantConfig], unused: tuple[CalibrationTable | None, Executor | None], **options: Any
) -> QuantizedModel:
    from requant.weightonly import quantize_weights  # which is built on this module

    table, executor = unused
    if table is not None:
        raise ConfigError("a table holds ranges, and weights need none", hint="leave out table or weight_only")
    if executor is not None:
        raise ConfigError("weights are quantized in one process, layer by layer", hint="leave out executor")
    return quantize_weights(*given, **options)


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


def load_float(model: Model) -> Graph:
    """Load a model in a form that can be run, refusing one that is quantized already."""
    graph = Graph.load(model)
    _refuse_quantized(graph.quantized_ops(), graph.origin)
    return without_bfloat16(graph)


def refuse_hopeless(inspection: Inspection) -> None:
    """Refuse what ``quantize`` would refuse.

    Raises:
        ModelError: the model is quantized already, or nothing in it can be.
    """
    _refuse_quantized(inspection.quantized_ops, inspection.model)
    refuse_empty(inspection.plan, inspection.model)


def _refuse_quantized(present: Sequence[str], origin: str) -> None:
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
        raise ModelError(f"nothing in {origin} can be quantized", hint="`requant inspect` tells why for each op")


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


def describe_data(dataset: Dataset | None, table: CalibrationTable | None = None) -> str:
    """What the samples were."""
    if dataset is not None:
        return dataset.description
    return "no data" if table is None else "calibration table"


def _view(plan: QuantPlan, table: CalibrationTable, tensor: TensorQuality) -> RangeView:
    planned = plan.tensors[tensor.name]
    seen = table[tensor.name if tensor.name in table else planned.source or tensor.name]
    return view_range(tensor.name, seen, tensor.scale, tensor.zero_point, planned.scheme.dtype)


def describe(changes: tuple[Preparation, ...]) -> tuple[str, ...]:
    """What preparation did, a line each."""
    return tuple(str(change) for change in changes)


def configured(config: QuantConfig | Mapping[str, Any] | None, overrides: Mapping[str, Any]) -> QuantConfig:
    """The config that a caller means."""
    if not isinstance(config, QuantConfig):
        config = QuantConfig.from_dict(config or {})
    return config.with_options(**overrides)


def with_data_options(config: QuantConfig, options: DataOptions | None) -> DataOptions:
    """``options``, with what ``config`` says of samples, batch size and seed."""
    chosen = options or DataOptions()
    return replace(
        chosen,
        samples=chosen.samples if config.samples is None else config.samples,
        batch_size=chosen.batch_size if config.batch_size is None else config.batch_size,
        seed=chosen.seed if config.seed is None else config.seed,
    )


def observe(
    graph: Graph,
    plan: QuantPlan,
    dataset: Dataset,
    config: QuantConfig,
    progress: Progress | None = None,
    *,
    executor: Executor | None = None,
) -> tuple[Transformed, CalibrationTable, tuple[Batch, ...]]:
    """The prepared ``graph`` as its data wants it, the statistics of that, and the first samples."""
    # One pass, since some data can be read only once: what is read of it ahead comes again.
    ahead, batches = tee(dataset.batches())
    sample = first_samples(ahead)
    del ahead  # otherwise all batches would be kept for it
    transformed = transform(graph, plan, config, sample)
    table = calibrate_graph(
        transformed.graph, transformed.plan, dataset, config, progress, batches=batches, executor=executor
    )
    return transformed, table.with_factors(transformed.factors), sample


def first_samples(batches: Iterable[Batch]) -> tuple[Batch, ...]:
    """What transforms and repairs look at."""
    return tuple(_first(batches, SAMPLES))


def verification_batches(
    dataset: Dataset | None, *, dynamic: bool = False
) -> tuple[tuple[Batch, ...], tuple[str, ...]]:
    """Samples to compare the two models on, and what must be said of them."""
    if dataset is not None and dynamic:  # has seen no sample yet
        return tuple(_first(dataset.batches(), HOLD_BACK_AT_MOST)), ()
    if dataset is not None:
        held_back = tuple(dataset.held_back())
        if held_back:
            return held_back, ()
        with suppress(DataError):  # of a source that can be read only once nothing is left
            few = "too few samples to hold some back: the outputs were compared on calibration samples"
            return tuple(islice(dataset.batches(), 1)), (few,)
    return (), (
        "no samples to compare the two models on: output error and latency were not measured, "
        "and that the model runs was checked on zeros",
    )


def _first(batches: Iterable[Batch], samples: int) -> Iterator[Batch]:
    """Batches until they make up that many samples."""
    seen = 0
    for batch in batches:
        yield batch
        seen += batch.count
        if seen >= samples:
            return


def _notes(config: QuantConfig, graph: Graph, dataset: Dataset | None, widened: tuple[str, ...]) -> Iterator[str]:
    if not config.dynamic and dataset is None and (config.rounding == "reconstruct" or config.bias_correction):
        yield "no samples to repair weights by: they were rounded to nearest"
    if foreign := graph.foreign_ops():
        yield f"{', '.join(foreign)}: unknown to onnxruntime, so the model was checked, but not loaded and run"
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
    if retyped := graph.retyped():
        yield f"bfloat16 inputs and outputs became float32: {', '.join(retyped)}"
    if dataset is not None:
        yield from dataset.warnings
    if widened:
        yield f"weight scale widened for a bias in {len(widened)} nodes: {', '.join(widened[:5])}"


class Stopwatch:
    """Seconds that each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - start, 3)

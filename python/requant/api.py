"""The main job, in the order it is done: load, prepare, plan, calibrate, resolve, insert, verify."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.calibration import CalibrationTable, calibrate_graph
from requant.config import QuantConfig
from requant.data import DataOptions, Dataset, open_data
from requant.errors import DataError, ModelError, OutputError
from requant.files import write_atomically
from requant.onnx.export import insert_qdq
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.plan import build_plan
from requant.report import Report, SkippedNode
from requant.resolve import resolve
from requant.targets import get_target
from requant.verify import (
    check_model,
    compare_outputs,
    measure_latency,
    measure_top1,
    one_sample,
    tensor_quality,
    zero_feeds,
)
from requant.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from requant.calibration import Progress
    from requant.data import Batch
    from requant.onnx.passes import Preparation
    from requant.onnx.reading import Model
    from requant.plan import QuantPlan


@dataclass(frozen=True)
class QuantizedModel:
    """A verified quantized model: its bytes, the report, and what led to it."""

    data: bytes
    report: Report
    plan: QuantPlan
    table: CalibrationTable | None
    sources: tuple[Path, ...]

    def save(self, path: str | Path) -> None:
        """Write the model; the file at ``path`` is replaced at once or not at all.

        Raises:
            OutputError: ``path`` is a file of the float model, or cannot be written.
        """
        refuse_same_file(self.sources, path)
        write_atomically(path, self.data)

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
    config: QuantConfig | None = None,
    *,
    table: CalibrationTable | None = None,
    data_options: DataOptions | None = None,
    evaluation: object = None,
    labels: str | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> QuantizedModel:
    """Quantize a float ONNX model to a verified integer one.

    Args:
        model: path, bytes or ModelProto of the float model.
        data: calibration samples: a path (.npz, .npy, a folder of them, of images or of ``test_data_set_*``), an array,
            a dict of arrays, or any iterable of such samples. Not needed with ``table``.
        config: how to quantize; ``overrides`` change single options of it.
        table: statistics collected earlier by ``calibrate`` for this model.
        data_options: how samples are cut and images are scaled; ``config`` wins where it sets the same.
        evaluation: labelled samples, in any form that ``data`` may have; gives top-1 of both models.
        labels: name of the labels in ``evaluation``, where it is not ``labels``, ``label``, ``y`` or ``targets``.
        progress: called after each calibration batch with the samples done and their number (None if unknown).
        **overrides: options of ``QuantConfig`` by name.

    Returns:
        The model, checked by onnx.checker, loaded and run once; ``.save(path)`` writes it, ``.report`` tells about it.

    Raises:
        RequantError: a subclass says which input was wrong and how to mend it.

    Example:
        >>> result = requant.quantize("model.onnx", "calib.npz", method="mse")  # doctest: +SKIP
        >>> result.save("model.int8.onnx")  # doctest: +SKIP
    """
    config = (config or QuantConfig()).with_options(**overrides)
    watch = _Stopwatch()
    with watch("load"):
        graph = load_float(model)
        options = _data_options(config, data_options)
        if data is None and table is None:
            raise DataError(
                "static quantization needs calibration data, and none was given",
                hint="pass samples (data=..., --data FILE) or statistics of an earlier run (table=..., --table FILE)",
            )
        dataset = None if data is None else open_data(data, graph.inputs, options, hold_back=True)
        labelled = None if evaluation is None else open_data(evaluation, graph.inputs, options, labels=labels)
    with watch("prepare"):
        prepared, changes = prepare(graph)
        plan = build_plan(prepared, config)
        if not plan.nodes:
            raise ModelError(
                f"nothing in {graph.origin} can be quantized for {config.target}",
                hint="`requant inspect` tells why for each op",
            )
    with watch("calibrate"):
        if table is None:
            assert dataset is not None
            table = calibrate_graph(prepared, plan, dataset, config, progress)
        table.check(graph)
    with watch("quantize"):
        resolved = resolve(prepared, plan, table.ranges(plan, config), config)
        data_out = insert_qdq(prepared, plan, resolved).to_bytes()
    with watch("verify"):
        held_back, unseen = _verification_batches(dataset)
        feeds = one_sample(held_back[0], graph.inputs) if held_back else zero_feeds(graph.inputs)
        check_model(data_out, feeds, threads=config.threads)
        report = Report(
            version=__version__,
            model=graph.origin,
            config=config.to_dict(),
            float_bytes=graph.size,
            quantized_bytes=len(data_out),
            prepared=describe(changes),
            quantized=dict(Counter(node.op_type for node in plan.nodes)),
            skipped=tuple(SkippedNode(s.node, s.op_type, s.reason) for s in plan.skipped),
            data=dataset.description if dataset is not None else "calibration table",
            calibration_samples=table.samples,
            verification_samples=sum(batch.count for batch in held_back),
            outputs=compare_outputs(graph, data_out, held_back, threads=config.threads) if held_back else (),
            tensors=tensor_quality(prepared, plan, resolved, table),
            latency=measure_latency(graph, data_out, feeds),
            accuracy=None if labelled is None else measure_top1(graph, data_out, labelled, threads=config.threads),
            notes=tuple(_notes(config, dataset, resolved.widened, unseen=unseen)),
            seconds=watch.seconds,
        )
    return QuantizedModel(data_out, report, plan, table, graph.file.files)


def calibrate(
    model: Model,
    data: object,
    config: QuantConfig | None = None,
    *,
    data_options: DataOptions | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> CalibrationTable:
    """Collect the statistics from which every method's ranges follow; arguments as for ``quantize``."""
    config = (config or QuantConfig()).with_options(**overrides)
    graph = load_float(model)
    prepared, _ = prepare(graph)
    plan = build_plan(prepared, config)
    dataset = open_data(data, graph.inputs, _data_options(config, data_options), hold_back=True)
    return calibrate_graph(prepared, plan, dataset, config, progress)


def inspect(model: Model, config: QuantConfig | None = None, **overrides: Any) -> Inspection:
    """What ``model`` consists of, and what would be quantized and what not, and why."""
    config = (config or QuantConfig()).with_options(**overrides)
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
        plan=build_plan(prepared, config),
        quantized_ops=tuple(graph.quantized_ops()),
    )


def load_float(model: Model) -> Graph:
    """Load a model, refusing one that is quantized already."""
    graph = Graph.load(model)
    present = graph.quantized_ops()
    if present:
        raise ModelError(
            f"{graph.origin} is quantized already: it holds {', '.join(present)}",
            hint="quantize the float model it was made from",
        )
    return graph


def refuse_same_file(sources: Iterable[str | Path], output: str | Path) -> None:
    """Refuse to write the quantized model over the float one.

    Raises:
        OutputError: ``output`` leads to one of the files ``sources``.
    """
    second = Path(output)
    if second.exists() and any(Path(source).exists() and second.samefile(source) for source in sources):
        raise OutputError(f"output {output} is the float model itself", hint="give the quantized model another name")


def describe(changes: tuple[Preparation, ...]) -> tuple[str, ...]:
    """What preparation did, a line each."""
    return tuple(str(change) for change in changes)


def _data_options(config: QuantConfig, options: DataOptions | None) -> DataOptions:
    """``options``, with what ``config`` says of samples, batch size and seed."""
    chosen = options or DataOptions()
    return replace(
        chosen,
        samples=chosen.samples if config.samples is None else config.samples,
        batch_size=chosen.batch_size if config.batch_size is None else config.batch_size,
        seed=chosen.seed if config.seed is None else config.seed,
    )


def _verification_batches(dataset: Dataset | None) -> tuple[tuple[Batch, ...], bool]:
    """Samples to compare the two models on, and whether calibration has not seen them."""
    if dataset is None:
        return (), True
    held_back = tuple(dataset.held_back())
    if held_back:
        return held_back, True
    try:
        return tuple(islice(dataset.batches(), 1)), False
    except DataError:  # a source of few samples that can be read only once
        return (), True


def _notes(config: QuantConfig, dataset: Dataset | None, widened: tuple[str, ...], *, unseen: bool) -> Iterator[str]:
    if config.activations not in get_target(config.target).activations:
        yield (
            f"{config.target} runs {config.activations} activations in float on x86, "
            "unless session.qdqisint8allowed is set; uint8 runs on integers everywhere"
        )
    if dataset is not None:
        yield from dataset.warnings
    if not unseen:
        yield "too few samples to hold some back: the outputs were compared on calibration samples"
    if widened:
        yield f"weight scale widened for an int32 bias in {len(widened)} nodes: {', '.join(widened[:5])}"


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - start, 3)

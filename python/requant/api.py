"""The main job, in the order it is done: load, prepare, plan, calibrate, resolve, insert, verify."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from requant.building.dynamic import plan_whole
from requant.calibration.run import calibrate_graph
from requant.calibration.table import CalibrationTable
from requant.concluding import Given, Held, conclude
from requant.data import DataOptions, open_data
from requant.documents import finite
from requant.errors import ConfigError, DataError
from requant.metrics import DEFAULT, get_metric
from requant.onnx.foreign import typed
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.pages import results
from requant.pages.page import fragment
from requant.planning.build import build_plan, presumed_in_float
from requant.planning.placement import place
from requant.planning.selection import left_in_float
from requant.runtime import refuse_unknown
from requant.stages import (
    configured,
    describe,
    load_float,
    observe,
    open_judged,
    recall,
    refuse_empty,
    refuse_quantized,
    with_data_options,
)
from requant.stopwatch import Stopwatch
from requant.weightonly import quantize_weights, refuse_executor, refuse_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from requant.config import QuantConfig
    from requant.data.spec import InputSpec
    from requant.onnx.graph import OutputSpec
    from requant.onnx.reading import Model
    from requant.planning.plan import QuantPlan
    from requant.quantized import QuantizedModel
    from requant.types import Progress


INSPECTION_SCHEMA = 1


@dataclass(frozen=True)
class Inspection:
    """What a model is and what would become of it; ``to_dict`` gives JSON types.

    Attributes:
        model: path of the model, or what stands for it.
        size: bytes of its files.
        opset: version of ONNX's own operators.
        ir_version: version of the file format.
        inputs: name, dtype and shape of each input; a shape has None, or a name, where it is free.
        outputs: the same of each output.
        op_types: how many nodes of each type there are, in bodies of If, Loop and Scan as well.
        weight_bytes: what the constants take after preparation.
        prepared: what preparation would change, a line each.
        plan: which nodes would become integer, and why the others would not.
        quantized_ops: types of quantizing ops in it: not empty where it is quantized already.
    """

    model: str
    size: int
    opset: int
    ir_version: int
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    op_types: Mapping[str, int]
    weight_bytes: int
    prepared: tuple[str, ...]
    plan: QuantPlan
    quantized_ops: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What ``requant inspect --json`` prints; ``schema`` is its version."""
        found = {
            "schema": INSPECTION_SCHEMA,
            "model": self.model,
            "bytes": self.size,
            "weight_bytes": self.weight_bytes,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "inputs": [_described(spec) for spec in self.inputs],
            "outputs": [_described(spec) for spec in self.outputs],
            "ops": dict(self.op_types),
            "prepared": list(self.prepared),
            "already_quantized": list(self.quantized_ops),
            "nodes": [asdict(node) for node in self.plan.nodes],
            "dynamic": [asdict(node) for node in self.plan.dynamic],
            "blocked": [asdict(node) for node in self.plan.blocked],
            "activations": list(self.plan.tensors),
            "calibrated": list(self.plan.calibrated),
            "skipped": [asdict(skip) for skip in self.plan.skipped],
        }
        return finite(found)

    def _repr_html_(self) -> str:
        return fragment(results.inspection(self))


def _described(spec: InputSpec | OutputSpec) -> dict[str, Any]:
    """An input or output as JSON types; what is unknown is None."""
    dtype = None if spec.dtype is None else str(spec.dtype)
    return {"name": spec.name, "dtype": dtype, "shape": None if spec.shape is None else list(spec.shape)}


def quantize(
    model: Model,
    data: object = None,
    config: QuantConfig | Mapping[str, Any] | None = None,
    *,
    table: CalibrationTable | None = None,
    data_options: DataOptions | None = None,
    evaluation: object = None,
    labels: str | None = None,
    metric: str | Callable[..., object] = DEFAULT,
    progress: Progress | None = None,
    executor: Executor | None = None,
    **overrides: Any,
) -> QuantizedModel:
    """Quantize a float ONNX model to a verified integer one.

    Args:
        model: path, bytes, ModelProto or onnx_ir.Model of the float model.
        data: calibration samples: a path (.npz, .npy, a folder of them, of images or of ``test_data_set_*``), an array,
            a dict of arrays, or any iterable of such samples. Not needed with ``table``; with ``dynamic=True`` they
            only serve to compare the two models.
        config: how to quantize, as a ``QuantConfig`` or its options by name; ``overrides`` change single options.
        table: statistics collected earlier by ``calibrate`` for this model.
        data_options: how samples are cut and images are scaled; ``config`` wins where it sets the same.
        evaluation: samples to judge both models by, in any form that ``data`` may have; ranges never depend on them.
        labels: name of the labels in ``evaluation``, where it is not ``labels``, ``label``, ``targets``,
            ``target`` or ``y``.
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
    config, judge = configured(config, overrides), get_metric(metric)
    if evaluation is None:
        _refuse_unjudged(labels, metric)
    if config.weight_only is not None:
        refuse_table(table)
        refuse_executor(executor)
        return quantize_weights(
            model,
            data,
            config,
            data_options=data_options,
            evaluation=evaluation,
            labels=labels,
            judge=judge,
            progress=progress,
        )
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
        given = Given(graph, prepared, describe(changes), dataset, judged, judge)
    with watch("calibrate"):
        if table is not None:
            table.check(graph)
            observed = recall(prepared, plan, table, dataset, config)
        else:
            observed = observe(prepared, plan, dataset, config, progress, executor=executor)
    held = Held.back(given, dynamic=config.dynamic)
    note = ""
    with watch("quantize"):
        build = observed.builder(graph, config)
        if config.optimize == "latency":
            presumed = presumed_in_float(observed.graph, config)
            chosen, note = place(observed.graph, graph.serialize(), build, held.feeds, presumed)
        else:
            chosen = build({})
    return conclude(given, config, observed, chosen, held, watch=watch, notes=(note,) if note else (), advise=True)


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
    """Collect the statistics from which every method's ranges follow, in one pass.

    Args:
        model: path, bytes, ModelProto or onnx_ir.Model of the float model.
        data: calibration samples, in any form that ``requant.quantize`` takes; one in eight is held back, as there.
        config: how the model will be quantized, as a ``QuantConfig`` or its options by name: which tensors become
            integer, and which transforms come before, depends on it; the method does not matter yet.
        data_options: how samples are cut and images are scaled; ``config`` wins where it sets the same.
        progress: called after each batch with the samples done and their number (None if unknown).
        executor: whose workers run the model over the samples, processes here or a cluster; the result is the same.
        **overrides: options of ``QuantConfig`` by name.

    Returns:
        The statistics of each activation, for ``quantize(table=...)``; ``.save(path)`` writes them.

    Raises:
        RequantError: a subclass says which input was wrong and how to mend it.

    Example:
        >>> table = requant.calibrate("model.onnx", "calib.npz")  # doctest: +SKIP
        >>> requant.quantize("model.onnx", table=table, method="entropy")  # doctest: +SKIP
    """
    config = configured(config, overrides)
    if config.weight_only is not None:
        raise ConfigError("weight-only quantization has no ranges", hint="quantize with weight_only right away")
    if config.dynamic:
        raise ConfigError("dynamic quantization has nothing to calibrate", hint="quantize with dynamic=True right away")
    graph = load_float(model)
    prepared, _ = prepare(graph)
    plan = build_plan(prepared, config)
    dataset = open_data(data, graph.inputs, with_data_options(config, data_options), hold_back=True)
    table = observe(prepared, plan, dataset, config, progress, executor=executor).weighed(config).table
    return calibrate_graph(prepared, plan, dataset, config, progress) if table is None else table


def inspect(model: Model, config: QuantConfig | Mapping[str, Any] | None = None, **overrides: Any) -> Inspection:
    """What ``model`` consists of, and what would be quantized and what not, and why; needs no data.

    Args:
        model: path, bytes, ModelProto or onnx_ir.Model; one that is quantized already may be looked at, too.
        config: how it would be quantized, as a ``QuantConfig`` or its options by name.
        **overrides: options of ``QuantConfig`` by name.

    Raises:
        ConfigError: an option that does not exist or fit, or a rule that matches nothing.
        MissingFileError: there is no such file.
        ModelError: the model cannot be read or is invalid.

    Example:
        >>> requant.inspect("model.onnx", target="tensorrt").plan.skipped  # doctest: +SKIP
    """
    config = configured(config, overrides)
    graph = typed(Graph.load(model))
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
        plan=plan_whole(prepared, config, left_in_float(prepared, config)),
        quantized_ops=tuple(graph.quantized_ops()),
    )


def refuse_hopeless(inspection: Inspection) -> None:
    """Refuse what ``quantize`` would refuse.

    Raises:
        ModelError: the model is quantized already, or nothing in it can be.
    """
    refuse_quantized(inspection.quantized_ops, inspection.model)
    refuse_empty(inspection.plan, inspection.model)


def _refuse_unjudged(labels: str | None, metric: str | Callable[..., object]) -> None:
    """Refuse what says how models are judged, by samples that are not given."""
    chosen = {"labels": labels, "metric": None if metric == DEFAULT else metric}
    for name in (name for name, value in chosen.items() if value is not None):
        raise ConfigError(
            f"{name} says how models are judged, and no samples to judge by are given",
            hint=f"give evaluation, or leave out {name}",
        )


def _check_sources(config: QuantConfig, data: object, table: CalibrationTable | None) -> None:
    """Refuse a static run with nothing to calibrate on, and statistics that a dynamic one would not use."""
    if table is not None and not isinstance(table, CalibrationTable):
        raise TypeError(f"expected a CalibrationTable, such as CalibrationTable.load gives, got {type(table).__name__}")
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
    if not config.dynamic or samples_given or config.optimize == "latency":
        refuse_unknown(graph.foreign_ops(), graph.origin, "dynamic=True (--dynamic) without data needs no run")

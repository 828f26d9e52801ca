"""Prove a quantized model before anyone gets it: valid, loads, runs, and how far from the float model it is."""

from __future__ import annotations

import statistics
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import ModelError, VerificationError
from requant.evaluation.distance import Distance, decibels
from requant.onnx.blocks import rounding_error
from requant.parallel import in_order
from requant.report import Latency, OutputQuality, TensorQuality
from requant.runtime import open_runner, run_seconds, unknown

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from requant.building.dynamic import IntegerWeights
    from requant.building.resolve import Resolved
    from requant.calibration.choosing import Choice
    from requant.calibration.table import CalibrationTable
    from requant.data import Batch, InputSpec
    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan
    from requant.runtime import Runner
    from requant.serialized import SerializedModel
    from requant.types import QuantParams

    Feeds = Mapping[str, NDArray[Any]]
    #: The float model and the quantized one.
    Runners = tuple[Runner, Runner]
    #: What each of several models makes of one batch.
    Outputs = tuple[list[NDArray[Any]], ...]

_LATENCY_SECONDS = 0.6
_LATENCY_PAIRS = (5, 50)


def check_model(reference: Graph, model: SerializedModel, feeds: Feeds, *, threads: int) -> Runners | None:
    """The last gate before a file is written: the checker, the runtime, one sample. Returns both models, opened.

    With ops that no library is registered for there is only the checker, and None is returned. Where the float model
    itself cannot run on ``feeds`` (zeros of a guessed shape), loading is all that is asked. A model that is too large
    for memory is loaded whole, and runs in pieces.

    Raises:
        VerificationError: the model fails one of them, or is not finite where the float model is.
    """
    from requant.onnx.graph import Graph
    from requant.onnx.segments import run_in_pieces

    try:
        graph = Graph.load(model)
    except ModelError as problem:
        raise _failed(problem) from problem
    if unknown(reference.foreign_ops()):
        return None
    float_runner = open_runner(reference.serialize(), threads=threads)

    def expected() -> Sequence[NDArray[Any]] | None:
        try:
            return float_runner.run(feeds)
        except ModelError:
            return None

    try:
        runner = open_runner(model, threads=threads)
    except ModelError as problem:
        raise _failed(problem) from problem
    try:
        outputs = run_in_pieces(graph, feeds, threads=threads) if is_large(model) else runner.run(feeds)
    except ModelError as problem:
        if expected() is not None:
            raise _failed(problem) from problem
        return float_runner, runner
    for index, array in enumerate(outputs):
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue  # the float model has to run only where that is in question
        wanted = expected()
        if wanted is not None and np.any(np.isfinite(wanted[index]) & ~np.isfinite(array)):
            raise VerificationError(
                f"output {index} of the quantized model is not finite where the float model's is; nothing was written",
                hint="please report this model",
            )
    return float_runner, runner


def is_large(model: SerializedModel) -> bool:
    """Whether a model is not held in memory, and checked in pieces."""
    from requant.onnx.graph import IN_MEMORY

    return model.external_bytes > IN_MEMORY


def _failed(problem: ModelError) -> VerificationError:
    return VerificationError(
        f"the quantized model failed its check: {problem.message}", hint="nothing was written; please report this model"
    )


def compare_outputs(
    runners: Runners, names: Sequence[str], batches: Sequence[Batch], *, workers: int
) -> tuple[OutputQuality, ...]:
    """Distance of each float output (all outputs are named) from the float model's, over all ``batches``."""
    sums = {name: Distance() for name in names}
    with closing(run_each(runners, batches, workers)) as compared:
        for _, results in compared:
            for name, expected, got in zip(names, *results, strict=True):
                if expected.dtype.kind == "f":
                    sums[name].add(expected, got)
    return tuple(distance.quality(name) for name, distance in sums.items() if distance.seen)


def run_each(
    runners: Sequence[Runner], batches: Iterable[Batch], workers: int
) -> Generator[tuple[Batch, Outputs], None, None]:
    """Each batch, with what each model makes of it."""

    def run(batch: Batch) -> tuple[Batch, Outputs]:
        return batch, tuple([np.asarray(output) for output in runner.run(batch.feeds)] for runner in runners)

    def stop() -> None:
        for runner in runners:
            runner.stop()

    return in_order(run, batches, workers, stop=stop)


def measure_latency(runners: Runners, feeds: Feeds) -> Latency:
    """Time of one run, the two models in turn so that a noisy machine hits both.

    The ratio is the median of the ratios of neighbouring runs, which noise moves least, and the quantized model's time
    the one that follows from it.
    """
    once = [run_seconds(runner, feeds, 1) for runner in runners for _ in range(2)]
    pair = sum(once) / 2
    repeats = max(1, int(0.002 / max(min(once), 1e-6)))
    low, high = _LATENCY_PAIRS
    pairs = min(high, max(low, int(_LATENCY_SECONDS / max(pair * repeats, 1e-6))))
    taken = [[run_seconds(runner, feeds, repeats) for runner in runners] for _ in range(pairs)]
    float_ms = statistics.median(float_time for float_time, _ in taken) * 1e3
    speedup = statistics.median(float_time / quantized_time for float_time, quantized_time in taken)
    return Latency(runners[0].name, float_ms, quantized_ms=float_ms / speedup, speedup=speedup)


def tensor_quality(
    graph: Graph,
    plan: QuantPlan,
    resolved: Resolved,
    table: CalibrationTable | None,
    choices: Mapping[str, Choice],
) -> tuple[TensorQuality, ...]:
    """Granular and overload error of every quantized activation (from its histogram) and weight (from its values)."""
    from requant.onnx.nodes import constant

    found = []
    for tensor in plan.tensors.values():
        if table is None:
            break
        seen = table.get(tensor.name) or table.get(tensor.source or tensor.name)
        if seen is None:
            continue
        params = resolved.activations[tensor.name]
        scale, zero_point, dtype = float(params.scale), int(params.zero_point), params.scheme.dtype
        error = seen.error(scale, zero_point, dtype.value)
        lo, hi = ((q - zero_point) * scale for q in (dtype.min, dtype.max))
        noise = error["granular"] + error["overload"]
        choice = choices.get(tensor.source or tensor.name)
        found.append(
            TensorQuality(
                tensor.name,
                "activation",
                lo,
                hi,
                scale,
                zero_point,
                error["granular"],
                error["overload"],
                error["clipped"],
                None if noise <= 0 else error["sqnr_db"],
                None if choice is None else choice.method,
            )
        )
    for node in plan.nodes:
        quantized = resolved.weights.get(node.name)
        if quantized is None or node.weight is None:
            continue
        weight = constant(graph.model.graph.initializers[node.weight])
        if weight is None:
            continue
        used = quantized.params
        centre = int(used.zero_point.flat[0])
        found.append(_rounding(node.weight, weight, quantized.data, _spread(used, weight.ndim), centre))
    return tuple(found)


def weight_quality(graph: Graph, plan: QuantPlan, weights: IntegerWeights) -> tuple[TensorQuality, ...]:
    """Rounding error of every weight of a plan without calibration."""
    from requant.onnx.nodes import constant

    nodes = {node.name: node for node in graph.all_nodes()}
    found = {}
    for node in plan.dynamic:
        for weight in node.weights:
            array = constant(nodes[node.name].inputs[weight.index])
            integers = weights[node.name, weight.index]
            if array is not None and (weight.name, id(integers)) not in found:
                found[weight.name, id(integers)] = _rounding(
                    weight.name, array, integers.data, integers.scale, integers.zero_point
                )
    return tuple(found.values())


def _spread(params: QuantParams, ndim: int) -> NDArray[Any]:
    """The scale in a shape that broadcasts to a weight of so many dimensions."""
    axis = getattr(params.scheme.granularity, "axis", None)
    return params.scale if axis is None else params.scale.reshape(-1, *[1] * (ndim - 1 - axis % ndim))


def _rounding(
    name: str, weight: NDArray[Any], data: NDArray[Any], scale: NDArray[Any], zero_point: int
) -> TensorQuality:
    """What rounding does to a weight that became ``(data - zero_point) * scale``; nothing is clipped."""
    lo, hi, signal, noise = rounding_error(weight, data, scale, zero_point)
    return TensorQuality(
        name, "weight", lo, hi, float(np.max(scale)), zero_point, noise, 0.0, 0.0, decibels(signal, noise)
    )


def one_sample(batch: Batch, inputs: Sequence[InputSpec]) -> Feeds:
    """The first sample of ``batch``, as the smallest feed that the model takes."""
    free = all(not isinstance(d, int) or d <= 0 for d in (spec.shape[0] for spec in inputs if spec.shape))
    if not free or any(a.shape[0] != batch.count for a in batch.feeds.values() if a.ndim):
        return batch.feeds
    return {name: array[:1] if array.ndim else array for name, array in batch.feeds.items()}


def zero_feeds(inputs: Iterable[InputSpec]) -> dict[str, NDArray[Any]]:
    """Zeros of a shape that fits each input (free dimensions are 1): enough to see that a model runs."""
    feeds = {}
    for spec in inputs:
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in spec.shape]
        feeds[spec.name] = np.full(shape, "" if spec.dtype.kind == "O" else 0, spec.dtype)
    return feeds

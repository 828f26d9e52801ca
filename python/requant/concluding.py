"""The last stage of integer quantization: a candidate is proved, measured, and told about."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.evaluation.evaluate import measure_accuracy
from requant.evaluation.verify import (
    check_model,
    compare_outputs,
    measure_latency,
    one_sample,
    tensor_quality,
    weight_quality,
    zero_feeds,
)
from requant.onnx.passes.widen import is_narrowed
from requant.planning.plan import Form
from requant.quantized import QuantizedModel, view_tensor
from requant.report import Report, by_quality
from requant.runtime import OrtRunner, open_runner, saturates, unknown
from requant.stages import describe_data, float_notes, source_notes, verification_batches
from requant.targets import get_target
from requant.types import QuantType
from requant.version import __version__
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from requant.config import QuantConfig
    from requant.data import Batch, Dataset
    from requant.evaluation.verify import Feeds, Runners
    from requant.metrics import Metric
    from requant.onnx.graph import Graph
    from requant.planning.placement import Candidate
    from requant.report import Accuracy, Latency, OutputQuality
    from requant.serialized import SerializedModel
    from requant.stages import Observed
    from requant.stopwatch import Stopwatch

#: How many activations the report shows the histogram of.
_VIEWS = 12
#: Speedups and SQNRs below these are worth advice: what noise does not explain, and 3 % of the power.
_SLOWER, _FAR_DB = 0.97, 15.0


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What all candidates for a model share.

    Attributes:
        graph: the float model.
        prepared: the same, prepared.
        changes: what preparation did, a line each.
        dataset: calibration samples, if there are any.
        judged: samples to take the metric on in the end, if there are any.
        metric: that metric.
    """

    graph: Graph
    prepared: Graph
    changes: tuple[str, ...]
    dataset: Dataset | None
    judged: Dataset | None
    metric: Metric


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What a candidate is compared with the float model on: samples, the smallest feed, and what to say of them."""

    batches: tuple[Batch, ...]
    feeds: Feeds
    notes: tuple[str, ...]

    @classmethod
    def back(cls, given: Given, *, dynamic: bool) -> Held:
        """Those that calibration has not seen; of ``dynamic`` quantization, which has none, the first."""
        runs = not unknown(given.graph.foreign_ops())
        batches, notes = verification_batches(given.dataset, dynamic=dynamic, runs=runs)
        inputs = given.graph.inputs
        return cls(batches, one_sample(batches[0], inputs) if batches else zero_feeds(inputs), notes)


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """What checking a model, and running it beside the float one, has shown.

    Attributes:
        runners: both models, where they can be run.
        outputs: how far its outputs are from the float model's; none without samples.
        latency: what one run of each takes; None without samples.
        narrowing: what it changed that a model of doubles is computed in float32.
        accuracy: the metric of both; None without samples to judge by.
    """

    runners: Runners | None
    outputs: tuple[OutputQuality, ...]
    latency: Latency | None
    narrowing: tuple[str, ...]
    accuracy: Accuracy | None


def verify(given: Given, model: SerializedModel, held: Held, *, workers: int) -> Verification:
    """Check ``model``, and compare it with the float model of ``given``.

    Raises:
        VerificationError: it is no valid model, or not finite where the float model is.
    """
    runners = check_model(given.graph, model, held.feeds, threads=1)  # latency is that of one thread
    names = [output.name for output in given.graph.outputs]
    compared = runners if held.batches else None
    outputs = compare_outputs(compared, names, held.batches, workers=workers) if compared else ()
    latency = measure_latency(compared, held.feeds) if compared else None
    narrowing = tuple(_narrowing_notes(given, runners, held, workers=workers))
    accuracy = None
    if runners and given.judged:
        accuracy = measure_accuracy(runners, names, given.judged, given.metric, workers=workers)
    return Verification(runners, outputs, latency, narrowing, accuracy)


def conclude(
    given: Given,
    config: QuantConfig,
    observed: Observed,
    chosen: Candidate,
    held: Held,
    *,
    watch: Stopwatch,
    notes: tuple[str, ...] = (),
    advise: bool = False,
) -> QuantizedModel:
    """The verified model, and its report.

    Args:
        given: what it was made from.
        config: how.
        observed: what its data told.
        chosen: the model.
        held: what to compare on.
        watch: what the stages before took.
        notes: what is to be said besides.
        advise: whether to say what helps a model that is slow, or far from the float one.

    Raises:
        VerificationError: it is no valid model, or not finite where the float model is.
    """
    graph, plan, table = given.graph, chosen.plan, observed.table
    with watch("verify"):
        verified = verify(given, chosen.model, held, workers=config.cores)
        tensors = (
            *tensor_quality(observed.graph, plan, chosen.resolved, table, chosen.choices),
            *weight_quality(observed.graph, plan, chosen.weights),
        )
    worst = [tensor for tensor in by_quality(tensors) if tensor.kind == "activation"][:_VIEWS]
    report = Report(
        version=__version__,
        model=graph.origin,
        config=config.completed().to_dict(),
        float_bytes=graph.size,
        quantized_bytes=chosen.model.size,
        prepared=(*given.changes, *observed.transformed.done, *chosen.done),
        quantized=dict(Counter(plan.op_types)),
        stored=dict(Counter(node.op_type for node in plan.dynamic if node.form is Form.STORED)),
        skipped=plan.skipped,
        data=describe_data(given.dataset, table),
        calibration_samples=0 if table is None else table.samples,
        verification_samples=sum(batch.count for batch in held.batches),
        outputs=verified.outputs,
        tensors=tensors,
        latency=verified.latency,
        accuracy=verified.accuracy,
        notes=(
            *observed.transformed.notes,
            *_notes(config, given, chosen.resolved.widened),
            *verified.narrowing,
            *chosen.notes,
            *held.notes,
            *notes,
            *(float_notes(observed.graph, plan, chosen.model.size) if config.rest == "int8" else ()),
            *(advice(config, verified) if advise else ()),
        ),
        seconds=dict(watch.seconds),
        ranges=() if table is None else tuple(view_tensor(plan, table, tensor) for tensor in worst),
    )
    return QuantizedModel(chosen.model, report, plan, table, graph.file.files)


def _narrowing_notes(given: Given, runners: Runners | None, held: Held, *, workers: int) -> Iterator[str]:
    """What it changed that a model of doubles is computed in float32."""
    if not is_narrowed(given.graph, given.prepared):
        return
    change = "by how much that changes outputs was not measured"
    if runners and held.batches:
        both = runners[0], open_runner(given.prepared.serialize(), threads=1)
        names = [output.name for output in given.graph.outputs]
        outputs = compare_outputs(both, names, held.batches, workers=workers)
        levels = [out.sqnr_db for out in outputs if out.sqnr_db is not None]
        change = f"outputs stay within {min(levels):.0f} dB" if levels else "outputs stay the same to the bit"
    yield f"the model is computed in float32 instead of float64: {change}"


def advice(config: QuantConfig, verified: Verification) -> Iterator[str]:
    """What helps a model that is slow, or far from the float one."""
    if config.optimize != "latency":
        yield from advice_of_latency(config, verified.latency)
    far = [out for out in verified.outputs if out.sqnr_db is not None and out.sqnr_db < _FAR_DB]
    if far and verified.accuracy is None:
        yield (
            f"output {far[0].name!r} is far from the float model's: judge both on labelled samples (--eval), or let "
            "--keep 0.99 find what to leave in float"
        )


def advice_of_latency(config: QuantConfig, latency: Latency | None) -> Iterator[str]:
    """What helps a model that is slower than the float one."""
    if latency is None or latency.speedup >= _SLOWER:
        return
    if latency.runtime != OrtRunner.name:
        yield f"{latency.runtime} is not made for speed: latency there says nothing of the runtimes that models are for"
        return
    remedy = "--optimize latency leaves in float what integers slow down"
    if config.weight_only is not None:
        computing = "--dynamic computes" if config.activations == "int8" else "--activations int8 and --dynamic compute"
        remedy = (
            f"weights of few bits save memory, and time only where fetching them takes it; {computing} with integers"
        )
    yield f"slower than float on this machine: {remedy}"


def _notes(config: QuantConfig, given: Given, widened: tuple[str, ...]) -> Iterator[str]:
    repaired = config.rounding == "reconstruct" or config.bias_correction
    if not config.dynamic and given.dataset is None and repaired:
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
    yield from source_notes(given.graph, given.dataset)
    if widened:
        yield f"weight scale widened for a bias in {counted(len(widened), 'node(s)')}: {', '.join(widened[:5])}"

"""A quantized model beside the float model it was made from: error of every tensor they share, speed, memory."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.config import QuantConfig
from requant.data import open_data
from requant.documents import document_of
from requant.errors import ConfigError
from requant.evaluation.distance import Distance
from requant.evaluation.evaluate import check_interface, load
from requant.evaluation.footprint import peak_memory
from requant.evaluation.timing import Timing, fitting_batches, thread_counts, time_models
from requant.evaluation.verify import one_sample, run_each
from requant.metrics import Case, get_metric
from requant.pages import results
from requant.pages.page import fragment, page
from requant.runtime import open_runner
from requant.stopwatch import Stopwatch
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from requant.data import Batch, DataOptions
    from requant.evaluation.verify import Outputs
    from requant.onnx.matching import Match
    from requant.onnx.reading import Model
    from requant.report import OutputQuality
    from requant.types import Progress

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far an inner tensor is from the float model's, with all the error of what stands before it.

    Attributes:
        name: its name in the float model.
        stand_in: the tensor of the quantized model that was compared: itself, or what DequantizeLinear gives for it.
        sqnr_db: power of the float tensor over power of the error (None: equal).
        cosine: of the two tensors over all samples, each as one vector.
        max_error: the largest absolute error.
        clipped: share of the float model's values outside of what the integers reach; None where it stayed float.
    """

    name: str
    stand_in: str
    sqnr_db: float | None
    cosine: float
    max_error: float
    clipped: float | None


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """What matters of a language model: one whose first output holds logits for each token it is fed.

    Times are medians of a pass over one sample on one thread, of the float and of the quantized model; empty where
    nothing was timed. A model without a cache passes over all tokens again for each that it adds.

    Attributes:
        tokens: how many tokens a sample has, the longest.
        kl: mean divergence of the next token's distribution from the float model's, in nats.
        kl99: the divergence that 99 % of the tokens stay below.
        first_token_ms: time to the first token after a prompt of so many tokens; empty where samples have one token.
        token_ms: time for each further token; empty where that takes a cache which samples of one token would hold.
    """

    tokens: int
    kl: float
    kl99: float
    first_token_ms: tuple[float, ...]
    token_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two forms of a model on the same samples; ``to_dict`` gives JSON types.

    Attributes:
        float_model: what the float model is called.
        quantized_model: what the quantized one is called.
        float_bytes: size of its files.
        quantized_bytes: size of its files.
        data: what the samples were.
        samples: number of samples.
        outputs: the error of each float output.
        tensors: the error of each inner tensor that both have, in the float model's order.
        runtime: what ran them.
        timings: how fast they are; empty where that was not asked for.
        float_memory: peak resident bytes of a process that runs one sample; None where not asked for or unknown.
        quantized_memory: the same of the quantized model.
        seconds: how long it took.
        language: divergence and times by token, of a language model.
    """

    float_model: str
    quantized_model: str
    float_bytes: int
    quantized_bytes: int
    data: str
    samples: int
    outputs: tuple[OutputQuality, ...]
    tensors: tuple[TensorError, ...]
    runtime: str
    timings: tuple[Timing, ...]
    float_memory: int | None
    quantized_memory: int | None
    seconds: float
    language: TokenFigures | None = None

    @property
    def worst(self) -> tuple[TensorError, ...]:
        """The ten inner tensors with the lowest SQNR, worst first."""
        return tuple(sorted(self.tensors, key=lambda t: math.inf if t.sqnr_db is None else t.sqnr_db)[:10])

    def language_rows(self) -> list[tuple[str, str]]:
        """What there is to say of a language model, a label and a text each."""
        if (found := self.language) is None:
            return []
        rows = [("next token", f"divergence {found.kl:.4g} nats on average, 99 % below {found.kl99:.4g}")]
        for label, taken in (("first token", found.first_token_ms), ("each token", found.token_ms)):
            if taken:
                before = counted(found.tokens, "token(s)")
                rows.append((label, f"{taken[0]:.3f} -> {taken[1]:.3f} ms ({before} before it, 1 thread)"))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        return document_of(self, SCHEMA, worst=[tensor.name for tensor in self.worst])

    def to_html(self) -> str:
        """One self-contained page, at most 500 KB."""
        return page(f"{self.float_model} -> {self.quantized_model}", results.comparison(self))

    def _repr_html_(self) -> str:
        return fragment(results.comparison(self))


def compare(
    float_model: Model,
    quantized: Model,
    data: object,
    *,
    data_options: DataOptions | None = None,
    threads: int = 0,
    batch_sizes: Sequence[int] = (1, 8),
    measure: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """Compare a quantized model, of whatever tool, with its float model.

    Inner tensors are read from both models while they run; a runtime fuses less then, so that their error may differ
    in the last bits from that of the fused model, which the outputs are of.

    Args:
        float_model: path, bytes, ModelProto or onnx_ir.Model of the float model.
        quantized: the quantized model, with the same inputs and outputs.
        data: samples, in any form that ``requant.quantize`` takes.
        data_options: which samples, and how they are cut and images scaled.
        threads: CPU threads at most; 0 uses all cores. Latency is told for 1, 2, 4, ... of them.
        batch_sizes: samples to a batch to time, where the model leaves it free.
        measure: whether to measure latency and memory at all.
        progress: called after each batch with the samples done and their number (None if unknown).

    Raises:
        ConfigError: a batch size below 1.
        DataError: the two models, or they and the data, do not fit each other.
        ModelError: one of them cannot run.

    Example:
        >>> requant.compare("model.onnx", "model.int8.onnx", "eval.npz").worst[0].name  # doctest: +SKIP
    """
    from requant.onnx.matching import match_tensors

    watch = Stopwatch()
    cores = QuantConfig(threads=threads).cores
    if not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"batch sizes are {list(batch_sizes)}, expected numbers of at least 1")
    graphs = load(float_model), load(quantized)
    check_interface(*graphs)
    dataset = open_data(data, graphs[0].inputs, data_options)
    matches = match_tensors(*graphs)
    models = graphs[0].serialize(), graphs[1].serialize()
    runners = [open_runner(model, threads=1) for model in models]
    if matches:
        fetched = [[m.name for m in matches], [m.stand_in for m in matches]]
        runners += [open_runner(g.serialize(names), threads=1) for g, names in zip(graphs, fetched, strict=True)]
    errors = _Errors([output.name for output in graphs[0].outputs], matches)
    sample = None
    with closing(run_each(runners, dataset.batches(), cores)) as ran:
        for batch, arrays in ran:
            sample = one_sample(batch, graphs[0].inputs) if sample is None else sample
            errors.add(batch, arrays)
            if progress is not None:
                progress(errors.samples, dataset.length)
    assert sample is not None  # a data set without samples is refused when it is opened
    sizes = fitting_batches(graphs[0].inputs, batch_sizes)
    timings = time_models(models, sample, thread_counts(cores), sizes) if measure else ()
    memory = [peak_memory(model, sample) for model in models] if measure else [None, None]
    return Comparison(
        float_model=graphs[0].origin,
        quantized_model=graphs[1].origin,
        float_bytes=graphs[0].size,
        quantized_bytes=graphs[1].size,
        data=dataset.description,
        samples=errors.samples,
        outputs=tuple(distance.quality(name) for name, distance in errors.outputs.items() if distance.seen),
        tensors=tuple(error.result(match) for match, error in errors.inner.items() if error.distance.seen),
        runtime=runners[0].name,
        timings=timings,
        float_memory=memory[0],
        quantized_memory=memory[1],
        seconds=watch.elapsed,
        language=_language(sample, errors, timings),
    )


def _tokens(feeds: Mapping[str, NDArray[Any]], logits: NDArray[Any]) -> int | None:
    """How many tokens were fed, where ``logits [batch, tokens, vocabulary]`` are for each of them."""
    if logits.ndim != 3 or logits.dtype.kind != "f":
        return None
    fed = any(x.dtype.kind in "iu" and x.shape == logits.shape[:2] for x in feeds.values())
    return int(logits.shape[1]) if fed else None


def _language(sample: Mapping[str, NDArray[Any]], errors: _Errors, timings: Sequence[Timing]) -> TokenFigures | None:
    tokens, divergences = errors.tokens, errors.divergences
    if not divergences:
        return None
    one = next((timing for timing in timings if timing.threads == timing.batch_size == 1), None)
    taken = () if one is None else (one.in_float.p50_ms, one.quantized.p50_ms)
    cached = any(x.dtype.kind == "f" for x in sample.values())
    return TokenFigures(
        tokens=tokens,
        kl=float(get_metric("kl").value(divergences)),
        kl99=float(get_metric("kl99").value(divergences)),
        first_token_ms=taken if tokens > 1 else (),
        token_ms=taken if tokens == 1 or not cached else (),
    )


class _Errors:
    """What batches have told of two models so far.

    Attributes:
        outputs: the error of each output; of those that hold reals values are seen.
        inner: the error of each inner tensor that both models have.
        divergences: of each batch of a language model, how far the distributions of next tokens are apart.
        tokens: of such a model, the most that a sample has.
        samples: how many there were.
    """

    def __init__(self, outputs: Sequence[str], matches: Sequence[Match]) -> None:
        self.outputs = {name: Distance() for name in outputs}
        self.inner = {match: _InnerError() for match in matches}
        self.divergences: list[NDArray[Any]] = []
        self.tokens = 0
        self.samples = 0

    def add(self, batch: Batch, arrays: Outputs) -> None:
        """Take in one batch: the outputs of both models, and the inner tensors, where there are any."""
        expected, got, *tensors = arrays
        for distance, wanted, own in zip(self.outputs.values(), expected, got, strict=True):
            if wanted.dtype.kind == "f":
                distance.add(wanted, own)
        for (match, error), wanted, own in zip(self.inner.items(), *(tensors or [[], []]), strict=True):
            error.add(match, wanted, own)
        tokens = _tokens(batch.feeds, expected[0])
        if tokens and expected[0].shape == got[0].shape:
            self.tokens = max(self.tokens, tokens)
            case = Case(batch.feeds, {"": got[0]}, batch.count, None, {"": expected[0]})
            self.divergences.append(get_metric("kl").measure(case))
        self.samples += batch.count


class _InnerError:
    """Running sums of what ``TensorError`` tells."""

    def __init__(self) -> None:
        self.distance = Distance()
        self.outside = self.count = 0

    def add(self, match: Match, wanted: NDArray[Any], own: NDArray[Any]) -> None:
        """Take in one batch; namesakes of other types or shapes are not the same tensor."""
        if wanted.dtype.kind != "f" or own.dtype.kind != "f" or wanted.shape != own.shape:
            return
        self.distance.add(wanted, own)
        if match.lo is not None and match.hi is not None:
            self.outside += int(np.count_nonzero((wanted < match.lo) | (wanted > match.hi)))
        self.count += wanted.size

    def result(self, match: Match) -> TensorError:
        quality = self.distance.quality(match.name)
        clipped = None if match.lo is None else self.outside / max(self.count, 1)
        return TensorError(match.name, match.stand_in, quality.sqnr_db, quality.cosine, quality.max_error, clipped)

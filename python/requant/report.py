"""What was done, what it cost and what it gained: one frozen value, with JSON and notebook views of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from requant.documents import document_of, json_text
from requant.pages.page import fragment, page
from requant.pages.results import quantization
from requant.wording import counted, sqnr, times

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from requant.calibration.ranges import RangeView
    from requant.planning.plan import Skip
    from requant.search.keeping import Kept

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TensorQuality:
    """How well one tensor's integers stand for its reals.

    ``granular`` and ``overload`` are mean squared errors, of rounding inside the range and of clipping outside;
    ``clipped`` is the share of values outside; ``sqnr_db`` is signal power over their sum (None: no error at all);
    ``method`` is the calibration method that the range is of (None: of none).
    """

    name: str
    kind: str
    lo: float
    hi: float
    scale: float
    zero_point: int
    granular: float
    overload: float
    clipped: float
    sqnr_db: float | None
    method: str | None = None


@dataclass(frozen=True, slots=True)
class OutputQuality:
    """Distance of one model output from the float model's (``sqnr_db`` None: equal)."""

    name: str
    sqnr_db: float | None
    cosine: float
    max_error: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one sample on one thread, in processor time, both models timed in turn.

    ``float_ms`` is a median, ``speedup`` the median ratio of neighbouring runs, ``quantized_ms`` what both give.
    """

    runtime: str
    float_ms: float
    quantized_ms: float
    speedup: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A metric on evaluation samples, of the float and of the quantized model."""

    metric: str
    samples: int
    float_value: float
    quantized_value: float


@dataclass(frozen=True, slots=True)
class Report:
    """The result of ``requant.quantize`` in figures; as text it is its headline.

    ``quantized`` counts the nodes that run on integers by op type, ``stored`` those in float whose weights are integers
    in the file; ``ranges`` has the histograms of the activations with the lowest SQNR.
    """

    version: str
    model: str
    config: Mapping[str, Any]
    float_bytes: int
    quantized_bytes: int
    prepared: tuple[str, ...]
    quantized: Mapping[str, int]
    skipped: tuple[Skip, ...]
    data: str
    calibration_samples: int
    verification_samples: int
    outputs: tuple[OutputQuality, ...]
    tensors: tuple[TensorQuality, ...]
    latency: Latency | None
    accuracy: Accuracy | None
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    stored: Mapping[str, int] = field(default_factory=dict)
    ranges: tuple[RangeView, ...] = ()

    @property
    def worst(self) -> tuple[TensorQuality, ...]:
        """The ten tensors with the lowest SQNR, worst first."""
        return by_quality(self.tensors)[:10]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        return document_of(self, SCHEMA, worst=[tensor.name for tensor in self.worst])

    def to_json(self) -> str:
        """``to_dict`` as a JSON document."""
        return json_text(self.to_dict())

    def summary(self) -> list[tuple[str, str]]:
        """The headline figures, a label and a text each."""
        total = sum(self.quantized.values())
        change = times(self.float_bytes / max(self.quantized_bytes, 1), "smaller", "larger", "as large")
        weights = sum(self.stored.values())
        stored = f" ({weights} of them with int8 weights in the file)" if weights else ""
        rows = [
            ("size", f"{self.float_bytes:,} -> {self.quantized_bytes:,} bytes ({change})"),
            ("ops", f"{total} quantized, {len(self.skipped)} float{stored}"),
        ]
        if not self.verification_samples and self.accuracy is None:
            rows.append(("accuracy", "not measured: no data"))
        if self.accuracy is not None:
            a = self.accuracy
            figures = f"{a.float_value:#.5g} float, {a.quantized_value:#.5g} quantized"
            rows.append((a.metric, f"{figures} ({counted(a.samples, 'sample(s)')})"))
        for out in self.outputs:
            told = f"{sqnr(out.sqnr_db)}, cosine {out.cosine:.5f}"
            rows.append((f"output {out.name}", f"{told} ({counted(self.verification_samples, 'sample(s)')})"))
        if self.latency is not None:
            t = self.latency
            change = times(t.speedup, "faster", "slower", "as fast")
            rows.append(("latency", f"{t.float_ms:.3f} -> {t.quantized_ms:.3f} ms ({change}, 1 thread, {t.runtime})"))
        return rows

    def __str__(self) -> str:
        rows = self.summary()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:{width}}  {text}" for label, text in rows)

    def to_html(self, kept: Kept | None = None) -> str:
        """One self-contained page, with the models that a search tried if it is given; at most 500 KB."""
        return page(self.model, quantization(self, kept))

    def _repr_html_(self) -> str:
        return fragment(quantization(self))


def by_quality(tensors: Iterable[TensorQuality]) -> tuple[TensorQuality, ...]:
    """``tensors``, the lowest SQNR first."""
    return tuple(sorted(tensors, key=lambda t: math.inf if t.sqnr_db is None else t.sqnr_db))

"""The body of the page of each result."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from requant.pages import charts
from requant.pages.page import cut, facts, flag, heading, name, section, sentence, table, words
from requant.wording import sqnr

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from requant.api import Inspection
    from requant.calibration.ranges import RangeView
    from requant.drift.verdict import Drift
    from requant.evaluation.compare import Comparison
    from requant.evaluation.evaluate import Evaluation
    from requant.evaluation.timing import Timing
    from requant.planning.plan import Skip
    from requant.report import Report, TensorQuality
    from requant.search.ablation import Sensitivity
    from requant.search.keeping import Kept

_FULL_BAR_DB = 60.0
_VIEWS = 16


def quantization(report: Report, kept: Kept | None = None) -> str:
    """What ``requant quantize`` did."""
    config = report.config
    if config.get("weight_only"):
        how = f"Weights: {config['weight_only']}, rounded by {config.get('algorithm') or 'auto'}."
    elif config.get("dynamic"):
        how = "Activations are quantized at run time."
    else:
        kind = "symmetric" if config.get("symmetric") else "asymmetric"
        how = (
            f"Ranges: {config.get('method')}, {kind} {config.get('activations')}, from {report.calibration_samples:,} "
            f"samples ({report.data})."
        )
    done = _list((*report.prepared, *report.notes)[:40])
    return "".join(
        (
            heading(report.model, f"Quantized by requant {report.version}. {how}"),
            facts(report.summary()),
            "" if kept is None else _frontier(kept),
            section("Layers", _layers(_counted(report.quantized), report.skipped)),
            section(
                "Ranges",
                _views(report.ranges),
                "The activations with the lowest SQNR: what was seen (height: log of the count) with the chosen range, "
                "and what narrower and wider ranges would cost.",
            ),
            section(
                "Tensors",
                _tensors(sorted(report.tensors, key=lambda t: math.inf if t.sqnr_db is None else t.sqnr_db)),
                "Lowest SQNR first. Granular error is from rounding, overload error from clipping (orange); both are "
                "mean squared.",
            ),
            section("Prepared and noted", done),
            section("Time", table(("stage", "seconds#"), [[name(k), f"{v:.3f}"] for k, v in report.seconds.items()])),
        )
    )


def comparison(result: Comparison) -> str:
    """What ``requant compare`` measured."""
    rows = [("size", f"{result.float_bytes:,} -> {result.quantized_bytes:,} bytes"), ("data", result.data)]
    if result.float_memory and result.quantized_memory:
        both = f"{result.float_memory / 2**20:,.1f} -> {result.quantized_memory / 2**20:,.1f} MiB"
        rows.append(("peak memory of a process that runs one sample", both))
    rows += [(f"output {o.name}", f"{sqnr(o.sqnr_db)}, cosine {o.cosine:.6f}") for o in result.outputs]
    rows += result.language_rows()
    tensors = [
        [
            name(t.name),
            charts.bar(_share(t.sqnr_db)),
            _decibels(t.sqnr_db),
            f"{t.cosine:.6f}",
            f"{t.max_error:.4g}",
            "" if t.clipped is None else f"{t.clipped:.3%}",
        ]
        for t in sorted(result.tensors, key=lambda t: math.inf if t.sqnr_db is None else t.sqnr_db)
    ]
    return "".join(
        (
            heading(f"{result.float_model} -> {result.quantized_model}", f"Compared on {result.samples:,} samples."),
            facts(rows),
            section("Latency", _timings(result.timings), f"Float and quantized model in turn, {result.runtime}."),
            section(
                "Tensors",
                table(("tensor", "", "SQNR dB#", "cosine#", "largest error#", "clipped#"), tensors),
                "Inner tensors that both models have, lowest SQNR first, each with the error of all before it.",
            ),
        )
    )


def evaluation(result: Evaluation) -> str:
    """What ``requant evaluate`` measured."""
    rows = [(result.metric, f"{result.value:#.6g} ({'higher' if result.higher_is_better else 'lower'} is better)")]
    if result.float_value is not None:
        kept = "" if result.kept is None else f", {result.kept:.2%} kept"
        rows.append(("float model", f"{result.float_value:#.6g}{kept}"))
    rows.append(("against", result.against))
    return heading(result.model, f"Evaluated on {result.data}.") + facts(rows)


def inspection(found: Inspection) -> str:
    """What ``requant inspect`` found."""
    rows = [
        ("size", f"{found.size:,} bytes, weights {found.weight_bytes:,} bytes"),
        ("format", f"opset {found.opset}, IR {found.ir_version}"),
    ]
    for kind, specs in (("input", found.inputs), ("output", found.outputs)):
        rows += [(f"{kind} {spec.name}", f"{spec.dtype} {_shape(spec.shape)}") for spec in specs]
    ops = f"<p>{sentence(_counted(found.op_types))}.</p>"
    if found.quantized_ops:
        return heading(found.model, f"Quantized already: {', '.join(found.quantized_ops)}.") + facts(rows) + ops
    quantized = _counted(Counter(found.plan.op_types))
    return "".join(
        (
            heading(found.model, "What would be quantized, and what not."),
            facts(rows),
            section("Ops", ops),
            section("Would be prepared", _list(found.prepared)),
            section("Layers", _layers(quantized, found.plan.skipped)),
        )
    )


def sensitivity(result: Sensitivity) -> str:
    """What ``requant sensitivity`` found."""
    rows = [("all in integers", sqnr(result.quantized.sqnr_db)), ("data", result.data)]
    if result.metric is not None:
        rows.append(
            (result.metric, f"{_figure(result.float_value)} float, {_figure(result.quantized.value)} quantized")
        )
    total = sum(part.noise for part in result.parts) or 1.0
    most = max((part.noise for part in result.parts), default=0.0) or 1.0
    columns = ["part", "op", "", "share of noise#", "SQNR dB alone in integers#", "SQNR dB alone in float#"]
    if result.metric is not None:
        columns += [f"{result.metric} in integers#", f"{result.metric} in float#"]
    parts = []
    for part in result.parts:
        scores = (part.in_integers, part.in_float)
        row = [
            name(part.name),
            name(", ".join(part.op_types)),
            charts.bar(part.noise / most),
            f"{part.noise / total:.2%}",
        ]
        row += ["" if score is None else _decibels(score.sqnr_db) for score in scores]
        if result.metric is not None:
            row += ["" if score is None else _figure(score.value) for score in scores]
        parts.append(row)
    text = "Ranked by what each adds to the output noise when only it is in integers."
    return heading(result.model, f"Sensitivity on {result.samples:,} samples.") + "".join(
        (facts(rows), section("Parts", table(columns, parts), text))
    )


def drift(result: Drift) -> str:
    """What ``requant drift`` saw."""
    rows = [
        ("verdict", str(result.verdict)),
        ("requests looked at", f"{result.sampled:,} of {result.requests:,}"),
        ("tensors that match", f"{sum(t.verdict == 'matches' for t in result.tensors)} of {len(result.tensors)}"),
    ]
    tensors = [
        [
            name(t.name),
            flag(t.verdict, good=t.verdict == "matches"),
            f"[{t.lo:.4g}, {t.hi:.4g}]",
            f"[{t.min:.4g}, {t.max:.4g}]",
            f"{t.clipped:.3%}",
            f"{t.granular:.3g}",
            f"{t.overload:.3g}",
            _times(t.ratio),
            _times(t.gain),
        ]
        for t in result.worst
    ]
    columns = ("tensor", "verdict", "frozen range", "seen", "clipped#", "rounding#", "clipping#", "static / dynamic#")
    text = "Gain: how many times less error the best range for these requests would make."
    shown = section(
        "Ranges", _views(result.ranges), "Live values of the tensors that match least, in their frozen ranges."
    )
    listed = section("Tensors", table((*columns, "gain#"), tensors), text)
    hidden = [[name(each.name), words(each.reason)] for each in result.unwatched]
    missing = section("Not watched", table(("tensor", "since"), hidden))
    return heading(result.model, "Live values in frozen ranges.") + facts(rows) + listed + missing + shown


def _frontier(kept: Kept) -> str:
    points = [(i, step) for i, step in enumerate(kept.steps) if step.share is not None]
    chosen = next((place for place, (i, _) in enumerate(points) if i == kept.chosen), 0)
    shares = [step.share or 0.0 for _, step in points]
    costs = {"ms": [step.latency_ms for _, step in points], "KB": [step.bytes / 1e3 for _, step in points]}
    drawn = [charts.frontier(list(zip(c, shares, strict=True)), chosen, kept.target, unit) for unit, c in costs.items()]
    pictures = "".join(f"<figure>{picture}</figure>" for picture in drawn)
    rows = [
        [
            name(step.described),
            str(len(step.in_float)),
            str(step.integer_nodes),
            *("no figure" if share is None else f"{share:.5f}" for share in (step.share, step.surely)),
            _decibels(step.score.sqnr_db),
            f"{step.bytes:,}",
            f"{step.latency_ms:.3f}",
            f"{step.speedup:.2f} x",
        ]
        for step in kept.steps
    ]
    columns = ("options", "in float#", "in integers#", "share#", "surely#", "SQNR dB#", "bytes#", "ms#", "speedup#")
    left = ", ".join(kept.steps[kept.chosen].in_float)
    text = (
        f"{kept.target:g} of {kept.kept} was to be kept, {kept.share:.5f} is. "
        f"{'The search was interrupted. ' if kept.interrupted else ''}"
        f"Left in float: {cut(left, 200) or 'nothing'}."
        f"{' How fast models ran chose among them: another run may choose another one.' if kept.measured else ''}"
    )
    picture = f'<div class="grid">{pictures}</div><p></p>' if len(points) > 1 else ""
    return section("Frontier", f"{picture}{table(columns, rows, mark=kept.chosen)}", text)


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{sentence(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _counted(counts: Mapping[str, int]) -> str:
    """Op types with their numbers, the most frequent first."""
    return ", ".join(f"{op} {count}" for op, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"


def _layers(quantized: str, skipped: Iterable[Skip]) -> str:
    """What becomes integer, and what does not, with the reasons."""
    rows = [[name(skip.node), name(skip.op_type), words(skip.reason)] for skip in skipped]
    return f"<p>In integers: {sentence(quantized)}.</p>" + table(("left in float", "op", "because"), rows)


def _shape(shape: Sequence[object] | None) -> str:
    return "of unknown shape" if shape is None else f"({', '.join('?' if d is None else str(d) for d in shape)})"


def _views(views: Sequence[RangeView]) -> str:
    figures = []
    for view in views[:_VIEWS]:
        cost = view.chosen
        beyond = f" {view.below + view.above:,} lie beyond the picture." if view.below or view.above else ""
        caption = (
            f"{view.values:,} values in [{view.min:.4g}, {view.max:.4g}]; {cost.clipped:.3%} clipped. "
            f"Error {cost.total:.2e}: rounding {cost.granular:.2e}, clipping {cost.overload:.2e}.{beyond}"
        )
        figures.append(
            f"<figure><h3>{name(view.name)}</h3>{charts.histogram(view)}{charts.error_curve(view)}"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _tensors(tensors: Iterable[TensorQuality]) -> str:
    rows = [
        [
            name(t.name),
            t.kind,
            t.method or "",
            f"[{t.lo:.4g}, {t.hi:.4g}]",
            charts.bar(_share(t.sqnr_db), t.overload / ((t.granular + t.overload) or 1.0)),
            _decibels(t.sqnr_db),
            f"{t.granular:.2g}",
            f"{t.overload:.2g}",
            f"{t.clipped:.3%}",
        ]
        for t in tensors
    ]
    return table(("tensor", "kind", "method", "range", "", "SQNR dB#", "granular#", "overload#", "clipped#"), rows)


def _timings(timings: Iterable[Timing]) -> str:
    rows = []
    for t in timings:
        cells = [str(t.threads), str(t.batch_size)]
        for attribute, form in (("p50_ms", ".3f"), ("p95_ms", ".3f"), ("per_second", ",.0f")):
            cells.append(f"{getattr(t.in_float, attribute):{form}} → {getattr(t.quantized, attribute):{form}}")
        rows.append([*cells, f"{t.speedup:.2f} x"])
    return table(("threads", "batch#", "p50 ms#", "p95 ms#", "samples/s#", "speedup#"), rows)


def _share(sqnr_db: float | None) -> float:
    return 1.0 if sqnr_db is None else sqnr_db / _FULL_BAR_DB


def _decibels(sqnr_db: float | None) -> str:
    return "exact" if sqnr_db is None else f"{sqnr_db:.1f}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:#.6g}"


def _times(value: float | None) -> str:
    return "no end" if value is None else f"{value:.3g} x"

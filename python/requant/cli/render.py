"""Reports for people: tables and bars on a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from requant.cli.tables import WIDE, Facts, table_of
from requant.cli.terminal import open_console
from requant.planning.plan import Form, count_reasons
from requant.wording import counted, sqnr

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rich.table import Table

    from requant.api import Inspection
    from requant.calibration.table import CalibrationTable
    from requant.checkpoint.quantize import CheckpointReport
    from requant.drift.verdict import Drift
    from requant.editing import EditedModel
    from requant.evaluation.compare import Comparison
    from requant.evaluation.evaluate import Evaluation
    from requant.evaluation.timing import Timing
    from requant.gguf.report import GgufReport
    from requant.machine import Machine
    from requant.planning.plan import Skip
    from requant.report import Report
    from requant.search.ablation import Sensitivity
    from requant.search.keeping import Kept
    from requant.types import Range

_SHOWN_REASONS = 12
_SHOWN_TENSORS = 15


def report(result: Report, output: Path) -> None:
    """The report of ``requant quantize``."""
    console = open_console()
    headline = Facts(f"{result.model} -> {output}", border_style="green")
    for label, text in result.summary():
        headline.add(label, text)
    config = result.config
    if config.get("weight_only"):
        ranges = f"none: weights only, {config['weight_only']}"
        if result.calibration_samples:
            ranges += f", rounded by {counted(result.calibration_samples, 'sample(s)')} ({result.data})"
    elif config["dynamic"]:
        ranges = "found at run time, asymmetric uint8"
    else:
        method = f"{config['method']}, {'symmetric' if config['symmetric'] else 'asymmetric'} {config['activations']}"
        ranges = f"{method}, from {counted(result.calibration_samples, 'sample(s)')} ({result.data})"
    headline.add("ranges", ranges)
    console.print(headline)
    if result.prepared:
        console.print(_lines_of("Prepared", result.prepared))
    console.print(_counts("Quantized", result.quantized))
    if result.stored:
        console.print(_counts("Weights stored as int8", result.stored))
    if result.skipped:
        console.print(_reasons(result.skipped))
    if result.worst:
        console.print(_worst(result, errors=console.width >= WIDE))
    for note in result.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def _worst(result: Report, *, errors: bool) -> Table:
    """The worst tensors, with the two kinds of error where there is room for them."""
    figures = ("SQNR dB", "granular", "overload", "clipped") if errors else ("SQNR dB", "clipped")
    shown = table_of(("tensor", "kind", "range"), figures, title="Ten worst tensors")
    methods = {t.method for t in result.tensors if t.method is not None}
    for t in result.worst:
        kind = t.kind if t.method is None or len(methods) == 1 else f"{t.kind}, {t.method}"
        both = (f"{t.granular:.2g}", f"{t.overload:.2g}") if errors else ()
        bounds = f"[{t.lo:.4g}, {t.hi:.4g}]"
        shown.add_row(short(t.name), kind, bounds, _decibels(t.sqnr_db), *both, f"{t.clipped:.3%}")
    return shown


def inspection(found: Inspection) -> None:
    """What ``requant inspect`` and ``--dry-run`` show."""
    console = open_console()
    head = Facts(found.model)
    head.add("size", f"{found.size:,} bytes, weights {found.weight_bytes:,} bytes")
    head.add("format", f"opset {found.opset}, IR {found.ir_version}")
    for kind, specs in (("input", found.inputs), ("output", found.outputs)):
        for spec in specs:
            shape = "unknown" if spec.shape is None else ", ".join("?" if d is None else str(d) for d in spec.shape)
            head.add(f"{kind} {spec.name}", f"{spec.dtype} ({shape})")
    console.print(head)
    console.print(_counts("Ops", found.op_types))
    if found.quantized_ops:
        console.print(Text(f"This model is quantized already: {', '.join(found.quantized_ops)}", style="yellow"))
        return
    if found.prepared:
        console.print(_lines_of("Would be prepared", found.prepared))
    console.print(_counts("Would be quantized", _count(found.plan.op_types)))
    stored = _count(node.op_type for node in found.plan.dynamic if node.form is Form.STORED)
    if stored:
        console.print(_counts("Weights would be stored as int8", stored))
    if found.plan.tensors:
        console.print(
            f"Activations that become integer: {len(found.plan.tensors)}, of which {len(found.plan.calibrated)} "
            "need calibration data"
        )
    if found.plan.skipped:
        console.print(_reasons(found.plan.skipped))


def table(statistics: CalibrationTable, ranges: Mapping[str, Mapping[str, Range]], output: str) -> None:
    """What ``requant calibrate`` shows: asymmetric ranges of each method."""
    console = open_console()
    methods = [name for name in next(iter(ranges.values()), {}) if not name.endswith("_symmetric")]
    title = f"{output}: {counted(len(statistics), 'tensor(s)')}, {counted(statistics.samples, 'sample(s)')}"
    shown = table_of(("tensor", *methods), title=title)
    for name, chosen in ranges.items():
        shown.add_row(short(name, 32), *(f"[{chosen[m].lo:.4g}, {chosen[m].hi:.4g}]" for m in methods))
    console.print(shown)
    if not ranges:
        console.print("note: nothing of it is calibrated; `requant inspect` tells why for each op", style="yellow")


def edited(result: EditedModel, output: str) -> None:
    """What ``requant edit`` shows."""
    console = open_console()
    rows = Facts(f"{result.model} -> {output}", border_style="green")
    for boundary in result.boundaries:
        changes = [f"{verb} {', '.join(ops)}" for verb, ops in boundary.changes.items() if ops]
        rows.add(f"{boundary.kind} {boundary.name}", boundary.dtype, boundary.formula, "; ".join(changes))
    console.print(rows)
    for line in result.findings():
        console.print(Text(line))


def evaluation(result: Evaluation) -> None:
    """What ``requant evaluate`` shows."""
    rows = Facts(result.model)
    better = "higher" if result.higher_is_better else "lower"
    rows.add(result.metric, f"{result.value:#.6g} ({better} is better)")
    if result.float_value is not None:
        kept = "" if result.kept is None else f", {result.kept:.2%} kept"
        rows.add("float model", f"{result.float_value:#.6g}{kept}")
    rows.add("against", result.against)
    rows.add("data", result.data)
    open_console().print(rows)


def comparison(result: Comparison) -> None:
    """What ``requant compare`` shows."""
    console = open_console()
    rows = Facts(f"{result.float_model} -> {result.quantized_model}")
    rows.add("size", f"{result.float_bytes:,} -> {result.quantized_bytes:,} bytes")
    if result.float_memory and result.quantized_memory:
        memory = f"{result.float_memory / 2**20:,.1f} -> {result.quantized_memory / 2**20:,.1f} MiB peak of a process"
        rows.add("memory", f"{memory} that runs one sample")
    rows.add("data", result.data)
    for out in result.outputs:
        error = f"{sqnr(out.sqnr_db)}, cosine {out.cosine:.6f}, largest error {out.max_error:.4g}"
        rows.add(f"output {out.name}", error)
    for label, text in result.language_rows():
        rows.add(label, text)
    console.print(rows)
    title = f"{len(result.worst)} worst of {counted(len(result.tensors), 'tensor(s)')} that both models have"
    worst = table_of(("tensor",), ("SQNR dB", "cosine", "largest error", "clipped"), title=title)
    for t in result.worst:
        clipped = "" if t.clipped is None else f"{t.clipped:.3%}"
        worst.add_row(short(t.name), _decibels(t.sqnr_db), f"{t.cosine:.6f}", f"{t.max_error:.4g}", clipped)
    console.print(worst)
    if result.timings:
        console.print(_timings(result.timings, result.runtime))


def _timings(timings: Iterable[Timing], runtime: str) -> Table:
    columns = ("threads", "batch", "p50 ms", "p95 ms", "samples/s", "speedup")
    shown = table_of((), columns, title=f"Latency, float -> quantized, {runtime}")
    for t in timings:
        pairs = [
            f"{getattr(t.in_float, name):{form}} -> {getattr(t.quantized, name):{form}}"
            for name, form in (("p50_ms", ".3f"), ("p95_ms", ".3f"), ("per_second", ",.0f"))
        ]
        shown.add_row(str(t.threads), str(t.batch_size), *pairs, f"{t.speedup:.2f} x")
    return shown


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:#.6g}"


def _decibels(sqnr_db: float | None) -> str:
    return "exact" if sqnr_db is None else f"{sqnr_db:.1f}"


def _times(value: float | None) -> str:
    return "no end" if value is None else f"{value:.3g} x"


def kept(result: Kept) -> None:
    """What ``requant quantize --keep`` shows below the report."""
    figures = ("in float", "in integers", "share", "surely", "SQNR dB", "bytes", "ms", "speedup")
    title = f"Models tried to keep {result.target:g} of {result.kept}"
    shown = table_of(("", "options"), figures, title=title)
    for i, step in enumerate(result.steps):
        shares = ["no figure" if share is None else f"{share:.5f}" for share in (step.share, step.surely)]
        nodes = (str(len(step.in_float)), str(step.integer_nodes))
        cost = (f"{step.bytes:,}", f"{step.latency_ms:.3f}", f"{step.speedup:.2f} x")
        mark = "->" if i == result.chosen else ""
        shown.add_row(mark, step.described, *nodes, *shares, _decibels(step.score.sqnr_db), *cost)
    console = open_console()
    console.print(shown)
    if result.evaluated is not None:
        console.print(f"On the evaluation samples it keeps {result.evaluated:.5f} of the metric")
    left = result.steps[result.chosen].in_float
    console.print(Text.assemble(("Left in float: ", "bold"), ", ".join(left) or "nothing"))
    if result.measured:
        console.print("How fast models ran here chose among them: another run may choose another one.")


def sensitivity(result: Sensitivity) -> None:
    """What ``requant sensitivity`` shows."""
    console = open_console()
    rows = Facts(result.model)
    whole = f"{sqnr(result.quantized.sqnr_db)} with all in integers"
    rows.add("outputs", f"{whole} ({counted(result.samples, 'sample(s)')} of {result.data})")
    if result.metric is not None:
        both = f"{_figure(result.float_value)} float, {_figure(result.quantized.value)} quantized"
        rows.add(result.metric, f"{both} ({result.evaluation})")
    console.print(rows)
    part_is = "block" if any(len(part.nodes) > 1 for part in result.parts) else "node"
    figures = ["noise", "SQNR dB in integers", "SQNR dB in float"]
    if result.metric is not None:
        figures += [f"{result.metric} in integers", f"{result.metric} in float"]
    title = "Noise by part: alone in integers, alone in float"
    shown = table_of(("", part_is, "op"), figures, title=title)
    for rank, part in enumerate(result.parts, start=1):
        scores = (part.in_integers, part.in_float)
        cells = ["" if score is None else _decibels(score.sqnr_db) for score in scores]
        if result.metric is not None:
            cells += ["" if score is None else _figure(score.value) for score in scores]
        shown.add_row(str(rank), short(part.name), short(", ".join(part.op_types), 24), f"{part.noise:.3g}", *cells)
    console.print(shown)


def drift(result: Drift) -> None:
    """What ``requant drift`` shows."""
    out = open_console()
    looked = f" ({counted(result.sampled, 'request(s)')} looked at)"
    out.print(Text.assemble((f"{result.model}: {result.verdict}", "bold"), looked))
    rows = table_of(("tensor", "verdict", "frozen range", "seen"), ("clipped", "static / dynamic", "gain"))
    for tensor in result.worst[:_SHOWN_TENSORS]:
        rows.add_row(
            short(tensor.name, 36),
            Text(tensor.verdict, style="green" if tensor.verdict == "matches" else "red"),
            f"[{tensor.lo:.4g}, {tensor.hi:.4g}]",
            f"[{tensor.min:.4g}, {tensor.max:.4g}]",
            f"{tensor.clipped:.3%}",
            _times(tensor.ratio),
            _times(tensor.gain),
        )
    out.print(rows)
    rest = len(result.tensors) - _SHOWN_TENSORS
    if rest > 0:
        out.print(f"... and {counted(rest, 'more tensor(s)')} (--json lists all)")
    for reason, count in Counter(each.reason for each in result.unwatched).items():
        out.print(f"not watched: {counted(count, 'more tensor(s)')}, since {reason}")


def checkpoint(result: CheckpointReport) -> None:
    """What ``requant quantize`` shows of a checkpoint."""
    console = open_console()
    rows = Facts(f"{result.source} -> {result.output}", border_style="green")
    rows.add("size", f"{result.source_bytes:,} -> {result.bytes:,} bytes")
    quantized = [tensor for tensor in result.tensors if tensor.reason is None]
    rows.add("tensors", f"{len(quantized)} of {len(result.tensors)} in {result.dtype}")
    console.print(rows)
    kept = table_of(("count", "left as they are because"))
    for reason, count in list(_count(t.reason for t in result.tensors if t.reason).items())[:_SHOWN_REASONS]:
        kept.add_row(str(count), reason)
    if kept.rows:
        console.print(kept)
    worst = sorted((t.sqnr_db, t.name) for t in quantized if t.sqnr_db is not None)[:10]
    shown = table_of(("tensor",), ("SQNR dB",), title="Tensors of lowest SQNR")
    for decibels, name in worst:
        shown.add_row(short(name), _decibels(decibels))
    if shown.rows:
        console.print(shown)
    console.print(
        Text("note: to load it, config.json needs the quantization_config that --json prints", style="yellow")
    )


def gguf(result: GgufReport) -> None:
    """What ``requant gguf`` shows."""
    console = open_console()
    rows = Facts(f"{result.source} -> {result.output}", border_style="green")
    size = (
        f"{result.float_bytes:,} bytes in float32 -> {result.bytes:,} bytes, {result.bits_per_weight:.2f} bits a weight"
    )
    rows.add("size", size)
    types = [f"{kind} {count}" for kind, count in _count(tensor.dtype for tensor in result.tensors).items()]
    rows.add("tensors", ", ".join(types))
    if result.data is not None:
        weighted = sum(tensor.weighted for tensor in result.tensors)
        rows.add("importance", f"of the columns of {counted(weighted, 'tensor(s)')}, from {result.data}")
    console.print(rows)
    reasons = _count((t.dtype, t.reason) for t in result.tensors if t.reason is not None)
    if reasons:
        kept = table_of(("count", "type", f"not {result.dtype} because"))
        for (kind, reason), count in list(reasons.items())[:_SHOWN_REASONS]:
            kept.add_row(str(count), kind, reason)
        console.print(kept)
    if result.worst:
        shown = table_of(("tensor", "shape", "type"), ("bytes", "SQNR dB"), title="Tensors of lowest SQNR")
        for t in result.worst:
            shape = " x ".join(map(str, t.shape))
            shown.add_row(short(t.name), shape, t.dtype, f"{t.bytes:,}", _decibels(t.sqnr_db))
        console.print(shown)
    for note in result.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def doctor(machine: Machine) -> None:
    """What ``requant doctor`` shows."""
    console = open_console()
    rows = Facts("requant doctor")
    cpu = machine.cpu
    rows.add("requant", f"{machine.requant}, Python {machine.python}")
    rows.add("platform", machine.platform)
    rows.add("cpu", f"{cpu.arch}, {cpu.cores} cores: {' '.join(cpu.features)}")
    rows.add("kernels", f"{cpu.kernels} (this machine can run {', '.join(cpu.available)})")
    found = {"packages": machine.packages, "runtimes": machine.runtimes, "environment": machine.environment}
    for kind, versions in found.items():
        text = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
        rows.add(kind, text or "none")
    console.print(rows)
    for note in machine.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def _count(items: Iterable[Any]) -> dict[Any, int]:
    """How often each of ``items`` occurs, the most frequent first."""
    return dict(Counter(items).most_common())


def _counts(title: str, counts: Mapping[str, int]) -> Text:
    listed = ", ".join(f"{op_type} {count}" for op_type, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    return Text.assemble((f"{title}: ", "bold"), listed or "nothing")


def _reasons(skipped: Iterable[Skip]) -> Group:
    counts = count_reasons(skipped)
    shown = table_of(("count", "op", "left in float because"))
    for (op_type, reason), count in list(counts.items())[:_SHOWN_REASONS]:
        shown.add_row(str(count), op_type, reason)
    rest = len(counts) - _SHOWN_REASONS
    return (
        Group(shown, Text(f"... and {counted(rest, 'more reason(s)')} (--json lists every node)"))
        if rest > 0
        else Group(shown)
    )


def _lines_of(title: str, lines: tuple[str, ...]) -> Text:
    return Text.assemble((f"{title}: ", "bold"), "; ".join(lines))


def short(name: str, width: int = 44) -> str:
    """A name that fits: its end where it is too long."""
    return name if len(name) <= width else f"...{name[-(width - 3) :]}"

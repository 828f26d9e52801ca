"""``requant drift``: live traffic in the frozen ranges of a quantized model."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

from requant.cli.values import whole
from requant.wording import counted

if TYPE_CHECKING:
    import argparse

    from requant.drift.verdict import Drift

_DRIFTED = 1
_SHOWN = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant drift``."""
    parser.add_argument("model", metavar="QUANTIZED", help="the quantized model, .onnx")
    parser.add_argument(
        "--tensor", action="append", metavar="NAME", help="watch only this tensor (repeatable; default: all)"
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="statistics of `requant calibrate`: what a range costs on the samples of calibration is then no drift",
    )
    parser.add_argument("--threads", type=whole, default=0, metavar="N", help="CPU threads; 0 uses all cores (default)")


def run(args: argparse.Namespace) -> int:
    """Watch, tell."""
    import requant
    from requant.cli import terminal
    from requant.cli.options import whole_data_options
    from requant.documents import json_text
    from requant.files import check_outputs, write_atomically

    check_outputs([args.html], [args.model, args.data, args.table])
    table = requant.CalibrationTable.load(args.table) if args.table else None
    with terminal.progress(quiet=args.quiet or args.json, what="watching") as progress:
        result = requant.measure_drift(
            args.model,
            args.data,
            tensors=args.tensor or "all",
            table=table,
            data_options=whole_data_options(args),
            threads=args.threads,
            progress=progress,
        )
    if args.html:
        write_atomically(args.html, result.to_html().encode())
    if args.json:
        print(json_text(result.to_dict()), end="")
    elif not args.quiet:
        show(result)
    return status(result)


def status(result: Drift) -> int:
    """The exit status, with a line on standard error where the traffic does not match."""
    if result.verdict == "matches":
        return 0
    worst = result.worst[0]
    drifted = sum(tensor.verdict != "matches" for tensor in result.tensors)
    gain = "without end" if worst.gain is None else f"{worst.gain:.3g} times"
    print(
        f"error[RQ610]: live values do not match the frozen ranges of {drifted} of "
        f"{counted(len(result.tensors), 'tensor(s)')}: {worst.name!r} is {result.verdict}\n"
        f"  help: calibrating anew would lower its error {gain}: quantize with samples of this traffic",
        file=sys.stderr,
    )
    return _DRIFTED


def show(result: Drift) -> None:
    """Print it."""
    from rich.text import Text

    from requant.cli.render import short
    from requant.cli.tables import table_of
    from requant.cli.terminal import open_console

    out = open_console()
    looked = f" ({counted(result.sampled, 'request(s)')} looked at)"
    out.print(Text.assemble((f"{result.model}: {result.verdict}", "bold"), looked))
    rows = table_of(("tensor", "verdict", "frozen range", "seen"), ("clipped", "static / dynamic", "gain"))
    for tensor in result.worst[:_SHOWN]:
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
    rest = len(result.tensors) - _SHOWN
    if rest > 0:
        out.print(f"... and {counted(rest, 'more tensor(s)')} (--json lists all)")
    for reason, count in Counter(each.reason for each in result.unwatched).items():
        out.print(f"not watched: {counted(count, 'more tensor(s)')}, since {reason}")


def _times(value: float | None) -> str:
    return "no end" if value is None else f"{value:.3g} x"

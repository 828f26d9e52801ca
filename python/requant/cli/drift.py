"""``requant drift``: live traffic in the frozen ranges of a quantized model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.cli.arguments import add_data, add_html, add_threads
from requant.cli.options import whole_data_options
from requant.cli.output import DONE, MISSED, print_error, print_result
from requant.cli.spec import Command
from requant.wording import counted

if TYPE_CHECKING:
    import argparse

    from requant.drift.verdict import Drift


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
    add_threads(parser)
    add_html(parser)
    add_data(parser, required=True)


def run(args: argparse.Namespace) -> int:
    """Watch, tell."""
    import requant
    from requant.cli import render, terminal
    from requant.files import check_outputs, write_together

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
    write_together([(args.html, result.to_html)])
    print_result(args, result.to_dict(), lambda: render.drift(result))
    return status(result)


def status(result: Drift) -> int:
    """The exit status, with a line on standard error where the traffic does not match."""
    if result.verdict == "matches":
        return DONE
    worst = result.worst[0]
    drifted = sum(tensor.verdict != "matches" for tensor in result.tensors)
    gain = "without end" if worst.gain is None else f"{worst.gain:.3g} times"
    print_error(
        "error[RQ610]",
        f"live values do not match the frozen ranges of {drifted} of "
        f"{counted(len(result.tensors), 'tensor(s)')}: {worst.name!r} is {result.verdict}\n"
        f"help: calibrating anew would lower its error {gain}: quantize with samples of this traffic",
    )
    return MISSED


COMMAND = Command(
    "drift",
    "QUANTIZED --data DATA [--table FILE] [options]",
    "Whether live traffic still fits the frozen ranges of a quantized model; exit status 1 where it does not.",
    add_arguments,
    run,
)

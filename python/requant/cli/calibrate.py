"""``requant calibrate``: the statistics of a model's activations, once for every method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.cli.arguments import add_config, add_data, add_recipe
from requant.cli.options import config_of, data_options
from requant.cli.output import DONE, print_result
from requant.cli.spec import Command

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant calibrate``."""
    parser.add_argument("model", metavar="MODEL", help="the float model, .onnx")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="where the table goes, .json")
    add_recipe(parser)
    add_data(parser, required=True)
    add_config(parser, ranges_only=True)


def run(args: argparse.Namespace) -> int:
    """Collect, save, tell."""
    import requant
    from requant.calibration.summary import CalibrationSummary
    from requant.cli import render, terminal
    from requant.files import check_outputs

    config = config_of(args)
    check_outputs([args.output], [args.model, args.data, args.recipe])
    with terminal.progress(quiet=args.quiet or args.json) as progress:
        table = requant.calibrate(args.model, args.data, config, data_options=data_options(args), progress=progress)
    ranges = table.all_ranges(config)
    table.save(args.output, ranges)
    summary = CalibrationSummary(args.output, table.samples, ranges)
    print_result(args, summary.to_dict(), lambda: render.table(table, ranges, args.output))
    return DONE


COMMAND = Command(
    "calibrate",
    "MODEL --data DATA -o FILE [options]",
    "Collect statistics once; the ranges of every method follow from them.",
    add_arguments,
    run,
)

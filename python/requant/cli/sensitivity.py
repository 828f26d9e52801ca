"""``requant sensitivity``: which layers quantization hurts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.cli import evaluate
from requant.cli.arguments import add_config, add_data, add_html, add_recipe
from requant.cli.options import config_of, data_options
from requant.cli.output import DONE, print_result
from requant.cli.spec import Command
from requant.cli.values import whole

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant sensitivity``."""
    parser.add_argument("model", metavar="MODEL", help="the float model, .onnx")
    parser.add_argument("--eval", metavar="DATA", help="samples to take --metric on, for each trial")
    evaluate.add_metric(parser, "--eval")
    parser.add_argument(
        "--depth",
        type=whole,
        metavar="N",
        help="try blocks in place of nodes: those whose names agree in N parts, / and . standing between parts",
    )
    parser.add_argument("--table", metavar="FILE", help="statistics of `requant calibrate` in place of calibrating")
    parser.add_argument("--plot", metavar="FILE", help="also draw the shares of the noise, .svg")
    add_html(parser)
    add_recipe(parser)
    add_data(parser, required=True)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Try, tell."""
    import requant
    from requant.cli import render, terminal
    from requant.files import check_outputs, write_atomically

    config, options = config_of(args), data_options(args)
    check_outputs([args.plot, args.html], [args.model, args.data, args.eval, args.table, args.recipe])
    quiet = args.quiet or args.json
    table = requant.CalibrationTable.load(args.table) if args.table else None
    if table is None and config.weight_only is None and not config.dynamic:
        with terminal.progress(quiet=quiet) as progress:
            table = requant.calibrate(args.model, args.data, config, data_options=options, progress=progress)
    with terminal.progress(quiet=quiet, what="trying", unit="trials") as progress:
        result = requant.sensitivity(
            args.model,
            args.data,
            config,
            depth=args.depth,
            table=table,
            data_options=options,
            evaluation=args.eval,
            metric=args.metric,
            labels=args.labels,
            progress=progress,
        )
    if args.plot:
        write_atomically(args.plot, result.to_svg().encode())
    if args.html:
        write_atomically(args.html, result.to_html().encode())
    print_result(args, result.to_dict(), lambda: render.sensitivity(result))
    return DONE


COMMAND = Command(
    "sensitivity",
    "MODEL --data DATA [--eval DATA --metric NAME] [options]",
    "Which layers quantization hurts: each alone in integers, and each alone in float.",
    add_arguments,
    run,
)

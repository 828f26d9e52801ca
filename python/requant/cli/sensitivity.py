"""``requant sensitivity``: which layers quantization hurts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.cli import evaluate
from requant.cli.arguments import add_config, add_data, add_html, add_recipe
from requant.cli.options import config_of, data_options
from requant.cli.output import DONE, print_result
from requant.cli.spec import Command
from requant.cli.values import whole
from requant.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant sensitivity``."""
    parser.add_argument("model", metavar="MODEL", help="the float model, .onnx")
    parser.add_argument("--eval", metavar="DATA", help="samples to take --metric on, for each trial")
    evaluate.add_metric(parser, "--eval")
    parser.set_defaults(metric=None)  # unset, it is top1 where there is something to judge on
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
    add_config(parser, trials=True)


def run(args: argparse.Namespace) -> int:
    """Try, tell."""
    import requant
    from requant.cli import render, terminal
    from requant.files import check_outputs, write_together

    config = config_of(args)
    if args.eval is None and args.metric is not None:
        raise ConfigError(
            "--metric says how trials are judged, and no samples to judge on are given",
            hint="give --eval DATA, or leave out --metric",
        )
    check_outputs([args.plot, args.html], [args.model, args.data, args.eval, args.table, args.recipe])
    quiet = args.quiet or args.json
    table = requant.CalibrationTable.load(args.table) if args.table else None
    calibrates = table is None and config.weight_only is None
    stages = [("calibrating", "samples")] * calibrates + [("trying", "trials")]
    with terminal.stages(*stages, quiet=quiet) as progress:
        result = requant.sensitivity(
            args.model,
            args.data,
            config,
            depth=args.depth,
            table=table,
            data_options=data_options(args),
            evaluation=args.eval,
            metric=args.metric or "top1",
            labels=args.labels,
            progress=progress[0],
            search_progress=progress[-1],
        )
    write_together([(args.plot, result.to_svg), (args.html, result.to_html)])
    print_result(args, result.to_dict(), lambda: render.sensitivity(result))
    return DONE


COMMAND = Command(
    "sensitivity",
    "MODEL --data DATA [--eval DATA --metric NAME] [options]",
    "Which layers quantization hurts: each alone in integers, and each alone in float.",
    add_arguments,
    run,
)

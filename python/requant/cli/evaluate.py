"""``requant evaluate``: one model, or a quantized one beside its float model, by a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requant.cli.arguments import add_data, add_threads
from requant.cli.options import whole_data_options
from requant.cli.output import DONE, print_result
from requant.cli.spec import Command

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant evaluate``."""
    parser.add_argument("model", metavar="MODEL", help="the model, .onnx")
    parser.add_argument(
        "--float",
        metavar="FILE",
        help="the float model: its figure is told beside; without labels, mae, mse and cosine compare with its outputs",
    )
    add_threads(parser)
    add_metric(parser, "--data")
    add_data(parser, required=True)


def add_metric(parser: Any, data: str) -> None:
    """The options that say what models are judged by, on the samples of option ``data``."""
    parser.add_argument(
        "--metric",
        metavar="NAME",
        default="top1",
        help="top1 (default), top5, mae, mse, cosine, perplexity, kl, kl99, or a function of yours as module:function",
    )
    parser.add_argument(
        "--labels", metavar="NAME", help=f"name of the labels in {data} (default: labels, label, targets, target or y)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, tell."""
    import requant
    from requant.cli import render, terminal

    with terminal.progress(quiet=args.quiet or args.json, what="evaluating") as progress:
        result = requant.evaluate(
            args.model,
            args.data,
            metric=args.metric,
            labels=args.labels,
            float_model=args.float,
            data_options=whole_data_options(args),
            threads=args.threads,
            progress=progress,
        )
    print_result(args, result.to_dict(), lambda: render.evaluation(result))
    return DONE


COMMAND = Command(
    "evaluate",
    "MODEL --data DATA [--metric NAME] [options]",
    "Measure a model, float or quantized, by a metric.",
    add_arguments,
    run,
)

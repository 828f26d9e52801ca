"""``requant compare``: a quantized model beside its float model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.cli.arguments import add_data, add_html
from requant.cli.options import whole_data_options
from requant.cli.output import DONE, print_result
from requant.cli.spec import Command
from requant.cli.values import whole, whole_numbers

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant compare``."""
    parser.add_argument("float", metavar="FLOAT", help="the float model, .onnx")
    parser.add_argument("quantized", metavar="QUANTIZED", help="the quantized model, .onnx")
    parser.add_argument(
        "--latency-batches",
        type=whole_numbers,
        default=(1, 8),
        metavar="N[,N]",
        help="samples to a batch to time, where the model leaves it free (default: 1,8)",
    )
    parser.add_argument("--no-latency", action="store_true", help="measure neither latency nor memory")
    parser.add_argument(
        "--threads", type=whole, default=0, metavar="N", help="CPU threads at most; 0 uses all cores (default)"
    )
    add_html(parser)
    add_data(parser, required=True)


def run(args: argparse.Namespace) -> int:
    """Compare, tell."""
    import requant
    from requant.cli import render, terminal
    from requant.files import check_outputs, write_together

    check_outputs([args.html], [args.float, args.quantized, args.data])
    with terminal.progress(quiet=args.quiet or args.json, what="comparing") as progress:
        result = requant.compare(
            args.float,
            args.quantized,
            args.data,
            data_options=whole_data_options(args),
            threads=args.threads,
            batch_sizes=args.latency_batches,
            measure=not args.no_latency,
            progress=progress,
        )
    write_together([(args.html, result.to_html)])
    print_result(args, result.to_dict(), lambda: render.comparison(result))
    return DONE


COMMAND = Command(
    "compare",
    "FLOAT QUANTIZED --data DATA [options]",
    "A quantized model beside its float model: error of every tensor, speed, memory.",
    add_arguments,
    run,
)

"""``requant compare``: a quantized model beside its float model."""

from __future__ import annotations

import argparse

from requant.cli.values import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant compare``."""
    parser.add_argument("float", metavar="FLOAT", help="the float model, .onnx")
    parser.add_argument("quantized", metavar="QUANTIZED", help="the quantized model, .onnx")
    parser.add_argument(
        "--latency-batches",
        type=_numbers,
        default=(1, 8),
        metavar="N[,N]",
        help="samples to a batch to time, where the model leaves it free (default: 1,8)",
    )
    parser.add_argument("--no-latency", action="store_true", help="measure neither latency nor memory")
    parser.add_argument(
        "--threads", type=whole, default=0, metavar="N", help="CPU threads at most; 0 uses all cores (default)"
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or numbers separated by commas") from None


def run(args: argparse.Namespace) -> int:
    """Compare, tell."""
    import requant
    from requant.cli import render, terminal
    from requant.cli.options import whole_data_options
    from requant.documents import json_text
    from requant.files import check_outputs, write_atomically

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
    if args.html:
        write_atomically(args.html, result.to_html().encode())
    if args.json:
        print(json_text(result.to_dict()), end="")
    elif not args.quiet:
        render.comparison(result)
    return 0

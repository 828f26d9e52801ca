"""``requant gguf``: weights into a GGUF file, or out of one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from requant.cli.arguments import add_data, add_threads
from requant.cli.options import whole_data_options
from requant.cli.output import DONE, print_result
from requant.cli.spec import Command
from requant.errors import ConfigError
from requant.gguf.names import TYPES

if TYPE_CHECKING:
    from requant.gguf.report import GgufReport
    from requant.types import Progress

_WRITING = ("type", "data", "metadata", "tensor_type")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant gguf``."""
    parser.add_argument(
        "source", metavar="MODEL", help="an .onnx model, a .safetensors file or its index; or a .gguf file to read"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the .gguf file; of a .gguf file an .npz or .safetensors"
    )
    parser.add_argument(
        "--type", choices=TYPES, metavar="TYPE", help=f"of matrices: {', '.join(TYPES)} (default: q4_k)"
    )
    parser.add_argument(
        "--tensor-type",
        action="append",
        type=_name_type,
        metavar="NAME=TYPE",
        help="another type for tensors of that name, or that a regular expression matches (repeatable)",
    )
    parser.add_argument(
        "--metadata",
        action="append",
        type=_key_value,
        metavar="KEY=VALUE",
        help="add to what the model says, such as general.architecture=llama (repeatable)",
    )
    add_threads(parser)
    add_data(parser, required=False)


def _key_value(text: str) -> tuple[str, str]:
    return _pair(text, *text.partition("="))


def _name_type(text: str) -> tuple[str, str]:
    return _pair(text, *text.rpartition("="))  # a name or expression may hold = itself


def _pair(text: str, name: str, sign: str, value: str) -> tuple[str, str]:
    if not sign or not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name and a value with = between them")
    return name, value


def run(args: argparse.Namespace) -> int:
    """Write, tell."""
    from requant.cli import render, terminal

    with terminal.progress(quiet=args.quiet or args.json, what="writing", unit="tensors") as progress:
        report = _unpack(args, progress) if args.source.endswith(".gguf") else _export(args, progress)
    print_result(args, report.to_dict(), lambda: render.gguf(report))
    return DONE


def _unpack(args: argparse.Namespace, progress: Progress | None) -> GgufReport:
    import requant

    given = [name for name in _WRITING if getattr(args, name) is not None]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} says how a GGUF file is written, and {args.source} is read",
            hint="leave it out",
        )
    return requant.unpack_gguf(args.source, args.output, threads=args.threads, progress=progress)


def _export(args: argparse.Namespace, progress: Progress | None) -> GgufReport:
    import requant
    from requant.gguf.metadata import typed

    return requant.export_gguf(
        args.source,
        args.output,
        args.type or "q4_k",
        data=args.data,
        data_options=whole_data_options(args) if args.data else None,
        metadata={key: typed(key, value) for key, value in args.metadata or []},
        tensor_types=dict(args.tensor_type or []),
        threads=args.threads,
        progress=progress,
    )


COMMAND = Command(
    "gguf",
    "MODEL -o FILE.gguf [--type q4_k] [--data DATA] [options]",
    "The weights of a model or checkpoint in a GGUF file, or those of such a file out of it.",
    add_arguments,
    run,
)

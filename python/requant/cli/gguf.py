"""``requant gguf``: weights into a GGUF file, or out of one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from requant.cli.values import whole
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
    parser.add_argument("--threads", type=whole, default=0, metavar="N", help="CPU threads; 0 uses all cores (default)")


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
    from requant.documents import json_text

    with terminal.progress(quiet=args.quiet or args.json, what="writing", unit="tensors") as progress:
        report = _unpack(args, progress) if args.source.endswith(".gguf") else _export(args, progress)
    if args.json:
        print(json_text(report.to_dict()), end="")
    elif not args.quiet:
        render.gguf(report)
    return 0


def _unpack(args: argparse.Namespace, progress: Progress | None) -> GgufReport:
    import requant
    from requant.errors import ConfigError

    given = [name for name in _WRITING if getattr(args, name) is not None]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} says how a GGUF file is written, and {args.source} is read",
            hint="leave it out",
        )
    return requant.unpack_gguf(args.source, args.output, threads=args.threads, progress=progress)


def _export(args: argparse.Namespace, progress: Progress | None) -> GgufReport:
    import requant
    from requant.cli.options import whole_data_options
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

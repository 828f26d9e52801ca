"""``requant inspect``: what a model holds, and what would become of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.cli.arguments import add_config, add_recipe
from requant.cli.options import config_of
from requant.cli.output import DONE, print_result
from requant.cli.spec import Command

if TYPE_CHECKING:
    import argparse

    from requant.api import Inspection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant inspect``."""
    parser.add_argument("model", metavar="MODEL", help="the model, .onnx")
    add_recipe(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Look, tell."""
    import requant

    print_inspection(args, requant.inspect(args.model, config_of(args)))
    return DONE


def print_inspection(args: argparse.Namespace, inspection: Inspection) -> None:
    """What this command prints, and ``requant quantize --dry-run``."""
    from requant.cli import render

    print_result(args, inspection.to_dict(), lambda: render.inspection(inspection))


COMMAND = Command(
    "inspect",
    "MODEL [options]",
    "What a model holds, what would be quantized, what not, and why.",
    add_arguments,
    run,
)

"""``requant quantize --keep``: as few layers in float, or as few bits, as a target takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from requant.cli.values import number
from requant.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from requant.config import QuantConfig
    from requant.search.keeping import Kept

_MISSED = 1
_INTERRUPTED = 130


def add_argument(parser: Any) -> None:
    """The option ``--keep``."""
    parser.add_argument(
        "--keep",
        type=number,
        metavar="SHARE",
        help="search for a model that keeps this share of the float model's --metric on samples held back from --data; "
        "without labels there of the perplexity of a language model, or of the outputs (0.99: error power at most "
        "1 %%); it is not slower than the float model, or with --weight-only the smallest; exit status 1 if none keeps "
        "the share",
    )


def search(args: argparse.Namespace, config: QuantConfig, judged: Mapping[str, Any]) -> Kept:
    """Search for the model.

    Raises:
        ConfigError: an option does not go with ``--keep``.
    """
    import requant
    from requant.cli import terminal
    from requant.cli.options import data_options

    if args.table:
        raise ConfigError("--table holds statistics for one plan, and --keep tries many", hint="give --data alone")
    quiet = args.quiet or args.json
    with terminal.stages(("calibrating", "samples"), ("trying", "trials"), quiet=quiet) as (progress, search_progress):
        return requant.quantize_to_keep(
            args.model,
            args.data,
            args.keep,
            config,
            data_options=data_options(args),
            progress=progress,
            search_progress=search_progress,
            **judged,
        )


def status(kept: Kept) -> int:
    """The exit status, with a line on standard error where the target was missed, or the search broken off."""
    models = f"{len(kept.steps)} model{'s' if len(kept.steps) > 1 else ''}"
    keeps = f"keeps {kept.share:.6g} of {kept.kept}"
    if kept.interrupted:
        print(f"interrupted: the best of the {models} tried until then was saved; it {keeps}", file=sys.stderr)
        return _INTERRUPTED
    if kept.met:
        return 0
    if kept.evaluated is not None and kept.share >= kept.target:
        keeps += f", but {kept.evaluated:.6g} on the evaluation samples"
    print(
        f"error[RQ600]: the best of {models} {keeps}; {kept.target:g} was asked for\n"
        "  help: it was saved; ask for less, or give more --data",
        file=sys.stderr,
    )
    return _MISSED

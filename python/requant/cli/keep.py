"""``requant quantize --keep``: as few layers in float as a target takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from requant.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from requant.config import QuantConfig
    from requant.keeping import Kept

_MISSED = 1


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
    """The exit status, with a line on standard error where the target was missed."""
    if kept.met:
        return 0
    print(
        f"error[RQ600]: the best of {len(kept.steps)} models keeps {kept.share:.6g} of {kept.kept}, "
        f"{kept.target:g} was asked for\n  help: it was saved; ask for less, or give more --data",
        file=sys.stderr,
    )
    return _MISSED

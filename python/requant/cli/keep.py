"""``requant quantize --keep``: as few layers in float, or as few bits, as a target takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requant.cli.options import data_options
from requant.cli.output import DONE, INTERRUPTED, MISSED, print_error
from requant.cli.values import number
from requant.errors import ConfigError
from requant.wording import counted

if TYPE_CHECKING:
    import argparse

    from requant.config import QuantConfig
    from requant.search.keeping import Kept


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


def search(args: argparse.Namespace, config: QuantConfig) -> Kept:
    """Search for the model.

    Raises:
        ConfigError: an option does not go with ``--keep``.
    """
    import requant
    from requant.cli import terminal

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
            evaluation=args.eval,
            metric=args.metric,
            labels=args.labels,
        )


def status(kept: Kept) -> int:
    """The exit status, with a line on standard error where the target was missed, or the search broken off."""
    models = counted(len(kept.steps), "model(s)")
    keeps = f"keeps {kept.share:.6g} of {kept.kept}"
    if kept.interrupted:
        print_error("interrupted", f"the best of the {models} tried until then was saved; it {keeps}")
        return INTERRUPTED
    if kept.met:
        return DONE
    surely = kept.steps[kept.chosen].surely
    if surely is not None and surely < kept.target <= kept.share:
        keeps += f", but surely only {surely:.6g}"
    elif kept.evaluated is not None and kept.share >= kept.target:
        keeps += f", but {kept.evaluated:.6g} on the evaluation samples"
    print_error(
        "error[RQ600]",
        f"the best of {models} {keeps}; {kept.target:g} was asked for\n"
        "help: it was saved; ask for less, or give more --data",
    )
    return MISSED

"""``requant quantize`` of a checkpoint, which has no graph."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from requant.cli.output import DONE, print_result
from requant.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from requant.config import QuantConfig

#: Options of the command that need a graph.
_GRAPH = ("data", "eval", "keep", "table", "report", "html", "dry_run", "save_recipe", "external_data", "show")
#: Options of quantization that mean something without one.
_KNOWN = frozenset({"weight_only", "algorithm", "block_size", "symmetric", "exclude", "threads", "version"})


def run(args: argparse.Namespace, config: QuantConfig) -> int:
    """Quantize, tell."""
    import requant
    from requant.checkpoint.quantize import EXCLUDED
    from requant.cli import render

    if config.weight_only is None:
        raise ConfigError(
            f"{args.model} is a checkpoint, which has no activations", hint="say --weight-only int4 or int8"
        )
    given = [f"--{name.replace('_', '-')}" for name in _GRAPH if getattr(args, name, None)]
    given += ["--asymmetric"] if config.symmetric is False else []
    changed = (f.name for f in fields(config) if getattr(config, f.name) != f.default)
    given += ["rules" if name == "rules" else f"--{name.replace('_', '-')}" for name in changed if name not in _KNOWN]
    if given:
        raise ConfigError(f"{given[0]} has no meaning for a checkpoint, which has no graph", hint="leave it out")
    stem = Path(args.model).name.removesuffix(".index.json").removesuffix(".safetensors")
    report = requant.quantize_checkpoint(
        args.model,
        args.output or f"{stem}.{config.weight_only}.safetensors",
        bits=config.bits,
        block_size=32 if config.block_size is None else config.block_size,
        algorithm="mse" if config.algorithm in (None, "auto") else config.algorithm,
        exclude=(*EXCLUDED, *config.exclude),
        threads=config.threads,
    )
    print_result(args, report.to_dict(), lambda: render.checkpoint(report))
    return DONE

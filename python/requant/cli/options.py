"""What options of several commands mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from requant.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from requant.config import QuantConfig
    from requant.data import DataOptions


#: Options that are fields of ``QuantConfig``; unset ones keep the recipe's or the default value.
CONFIG_OPTIONS = (
    "dynamic",
    "weight_only",
    "algorithm",
    "block_size",
    "target_bits",
    "method",
    "symmetric",
    "percentile",
    "per_channel",
    "weights",
    "activations",
    "saturation",
    "rounding",
    "bias_correction",
    "rest",
    "equalize",
    "absorb",
    "balance",
    "smooth",
    "target",
    "cpu",
    "format",
    "optimize",
    "include",
    "exclude",
    "samples",
    "batch_size",
    "threads",
    "seed",
)


def config_of(args: argparse.Namespace) -> QuantConfig:
    """The recipe, if one is named, with the options that are given."""
    from requant.config import QuantConfig
    from requant.config.rules import as_rules

    config = QuantConfig.from_recipe(args.recipe) if args.recipe else QuantConfig()
    given = {name: getattr(args, name, None) for name in CONFIG_OPTIONS}
    if rules := getattr(args, "rules", None):
        given["rules"] = (*config.rules, *as_rules(rules))
    return config.with_options(**{name: value for name, value in given.items() if value is not None})


def data_options(args: argparse.Namespace) -> DataOptions:
    """How images are scaled; what is said of samples, batches and seeds is part of a command's own options.

    Raises:
        ConfigError: it is said, and none of the data are images.
    """
    from requant.data import DataOptions, ImageOptions, holds_images

    names = ("size", "scale", "mean", "std", "layout", "color", "resize")
    given = {name: value for name in names if (value := getattr(args, f"image_{name}")) is not None}
    options = DataOptions(image=ImageOptions(**given))
    data = [Path(path) for path in (args.data, getattr(args, "eval", None)) if path]
    if given and all(path.exists() and not holds_images(path) for path in data):
        raise ConfigError(
            f"--image-{next(iter(given))} says how images become samples, and there are none in "
            + (" and ".join(map(str, data)) or "no data"),
            hint="leave it out: arrays are taken as they are",
        )
    return options


def whole_data_options(args: argparse.Namespace) -> DataOptions:
    """The same with the samples, batches and seed."""
    from dataclasses import replace

    return replace(data_options(args), samples=args.samples, batch_size=args.batch_size, seed=args.seed)

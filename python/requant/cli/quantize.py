"""``requant quantize``: a float model and samples in, a verified quantized model out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.cli import checkpoint, evaluate, keep, show
from requant.cli.arguments import add_config, add_data, add_html, add_recipe
from requant.cli.inspect import print_inspection
from requant.cli.options import config_of, data_options
from requant.cli.output import DONE, print_result
from requant.cli.spec import Command
from requant.config import AUTO
from requant.documents import finite, json_text
from requant.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from requant.config import QuantConfig
    from requant.quantized import QuantizedModel
    from requant.search.keeping import Kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant quantize``."""
    parser.add_argument(
        "model", metavar="MODEL", help="the float model, .onnx; with --weight-only also a checkpoint, .safetensors"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the quantized model (default: MODEL.int8.onnx in the current folder, or MODEL.int4.onnx and the like)",
    )
    parser.add_argument(
        "--external-data",
        action="store_true",
        help="put the tensors into a file beside the output; done anyway where one file would pass 2 GiB",
    )
    parser.add_argument("--table", metavar="FILE", help="statistics of `requant calibrate` in place of calibrating")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; needs no data")
    add_recipe(parser)
    parser.add_argument("--save-recipe", metavar="FILE", help="write the quantization options as a recipe")
    add_data(parser, required=False)
    judged = parser.add_argument_group("judging and searching")
    judged.add_argument("--eval", metavar="DATA", help="samples that the report judges both models by")
    evaluate.add_metric(judged, "--eval")
    keep.add_argument(judged)
    parser.set_defaults(metric=None)  # unset, it is what fits the data
    add_config(parser)
    reported = parser.add_argument_group("report")
    show.add_argument(reported)
    reported.add_argument("--report", metavar="FILE", help="also write the report as JSON")
    add_html(reported)


def run(args: argparse.Namespace) -> int:
    """Quantize, verify, save, tell."""
    from requant.files import check_outputs, is_checkpoint, staged

    config = config_of(args)
    _refuse_unjudged(args)
    _refuse_useless(args, config)
    if is_checkpoint(args.model):
        return checkpoint.run(args, config)
    if args.dry_run:
        return _show_plan(args, config)
    output = Path(args.output or f"{Path(args.model).stem}.{config.weight_only or 'int8'}.onnx")
    check_outputs(
        [output, args.report, args.html, args.save_recipe], [args.model, args.data, args.eval, args.table, args.recipe]
    )
    show.refuse_unknown(args.show, args.model, config)
    kept = None
    if args.keep is not None:
        kept = keep.search(args, config)
        result, config = kept.model, kept.config
    else:
        result = _quantized(args, config)
    report: dict[str, Any] = result.report.to_dict()
    if kept is not None:
        report["keep"] = kept.to_dict()
    beside = (
        (args.report, lambda: json_text(report)),
        (args.html, lambda: result.report.to_html(kept)),
        (args.save_recipe, config.to_toml),
    )
    with staged(beside):
        result.save(output, external_data=args.external_data)
    _print(args, result, kept, output, report)
    return DONE if kept is None else keep.status(kept)


def _refuse_unjudged(args: argparse.Namespace) -> None:
    """Refuse what says how models are judged where none is."""
    for name in ("metric", "labels"):
        if getattr(args, name) is not None and args.eval is None and args.keep is None:
            raise ConfigError(
                f"--{name} says how models are judged, and no labelled samples are given",
                hint=f"give --eval DATA or --keep SHARE, or leave out --{name}",
            )


def _refuse_useless(args: argparse.Namespace, config: QuantConfig) -> None:
    """Refuse what a dry run would not write, and a percentage that no range goes by."""
    for name in ("report", "html", "save_recipe", "show", "keep"):
        if args.dry_run and getattr(args, name):
            raise ConfigError(
                f"--dry-run prints the plan and stops, and --{name.replace('_', '-')} asks for more",
                hint=f"leave out --dry-run or --{name.replace('_', '-')}",
            )
    methods = {config.method, *(rule.method for rule in config.rules)}
    if args.percentile is not None and args.keep is None and not methods & {"percentile", AUTO}:
        raise ConfigError(
            f"--percentile is for method percentile, and --method is {config.method}", hint="say --method percentile"
        )


def _show_plan(args: argparse.Namespace, config: QuantConfig) -> int:
    import requant
    from requant.api import refuse_hopeless

    inspection = requant.inspect(args.model, config)
    refuse_hopeless(inspection)
    print_inspection(args, inspection)
    return DONE


def _quantized(args: argparse.Namespace, config: QuantConfig) -> QuantizedModel:
    import requant
    from requant.cli import terminal

    table = requant.CalibrationTable.load(args.table) if args.table else None
    with terminal.progress(quiet=args.quiet or args.json) as progress:
        return requant.quantize(
            args.model,
            args.data,
            config,
            table=table,
            data_options=data_options(args),
            progress=progress,
            evaluation=args.eval,
            metric=args.metric or "top1",
            labels=args.labels,
        )


def _print(
    args: argparse.Namespace, result: QuantizedModel, kept: Kept | None, output: Path, report: dict[str, Any]
) -> None:
    """Print the report, and the tensors that were asked for."""
    from requant.cli import render

    views = [result.view_range(name) for name in show.chosen(result, args.show)]
    shown = {"shown": [finite(asdict(view)) for view in views]} if args.show else {}

    def draw() -> None:
        render.report(result.report, output)
        if kept is not None:
            render.kept(kept)
        for view in views:
            show.draw(view)

    print_result(args, {**report, **shown, "output": str(output)}, draw)


COMMAND = Command(
    "quantize",
    "MODEL (--data DATA | --dynamic | --weight-only BITS) [-o FILE] [options]",
    "Float model and samples in, verified quantized model out.",
    add_arguments,
    run,
)

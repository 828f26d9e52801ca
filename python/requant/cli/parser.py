"""The commands, and what each takes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from requant.cli import compare, drift, edit, evaluate, gguf, keep, sensitivity, show
from requant.cli.arguments import add_common, add_config, add_data, add_html, add_recipe
from requant.errors import ConfigError, closest
from requant.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = "exit status: 0 done, 1 quality gate missed, 2 wrong input or output, 101 a bug, 130 interrupted"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said."""

    def error(self, message: str) -> Any:
        raise ConfigError(message, hint=f"see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            name = "/".join(action.option_strings) or action.metavar or action.dest
            raise ConfigError(
                f"{name} is {value!r}{closest(str(value), known)}", hint=f"choose one of {', '.join(known)}"
            )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [o for a in _options(self, getattr(parsed, "command", None)) for o in a.option_strings]
            kind = "option" if unknown[0].startswith("-") else "argument"
            if unknown[0] in known:
                self.error(f"option {unknown[0]!r} stands before the command, expected behind it")
            raise ConfigError(
                f"unknown {kind} {unknown[0]!r}{closest(unknown[0].split('=')[0], known)}",
                hint=f"see `{self.prog} {parsed.command} --help`",
            )
        return parsed


def _options(parser: argparse.ArgumentParser, command: str | None) -> list[argparse.Action]:
    actions = list(parser._actions)  # noqa: SLF001 - argparse has no public list of its options
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction) and command in action.choices:  # noqa: SLF001
            actions += action.choices[command]._actions  # noqa: SLF001
    return actions


def build_parser(formatter: Any) -> argparse.ArgumentParser:
    """The whole command line, with ``formatter`` as argparse's help formatter."""
    parser = _Parser(
        "requant",
        description="Quantize ONNX models, and prove the result.",
        epilog=_EPILOG,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"requant {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def command(name: str, arguments: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            usage=f"requant {name} {arguments}".rstrip(),
            help=text,
            description=text,
            formatter_class=formatter,
            allow_abbrev=False,
            epilog=_EPILOG,
        )

    _add_quantize(
        command(
            "quantize",
            "MODEL (--data DATA | --dynamic | --weight-only BITS) [-o FILE] [options]",
            "Float model and samples in, verified quantized model out.",
        )
    )

    calibrate = command(
        "calibrate",
        "MODEL --data DATA -o FILE [options]",
        "Collect statistics once; the ranges of every method follow from them.",
    )
    calibrate.add_argument("model", metavar="MODEL", help="the float model, .onnx")
    calibrate.add_argument("-o", "--output", metavar="FILE", required=True, help="where the table goes, .json")
    add_recipe(calibrate)
    add_data(calibrate, required=True)
    add_config(calibrate, ranges_only=True)

    inspect = command("inspect", "MODEL [options]", "What a model holds, what would be quantized, what not, and why.")
    inspect.add_argument("model", metavar="MODEL", help="the model, .onnx")
    add_recipe(inspect)
    add_config(inspect)

    measured = command(
        "evaluate", "MODEL --data DATA [--metric NAME] [options]", "Measure a model, float or quantized, by a metric."
    )
    evaluate.add_arguments(measured)
    add_data(measured, required=True)

    compared = command(
        "compare",
        "FLOAT QUANTIZED --data DATA [options]",
        "A quantized model beside its float model: error of every tensor, speed, memory.",
    )
    compare.add_arguments(compared)
    add_html(compared)
    add_data(compared, required=True)

    tried = command(
        "sensitivity",
        "MODEL --data DATA [--eval DATA --metric NAME] [options]",
        "Which layers quantization hurts: each alone in integers, and each alone in float.",
    )
    sensitivity.add_arguments(tried)
    add_html(tried)
    add_recipe(tried)
    add_data(tried, required=True)
    add_config(tried)

    watched = command(
        "drift",
        "QUANTIZED --data DATA [--table FILE] [options]",
        "Whether live traffic still fits the frozen ranges of a quantized model; exit status 1 where it does not.",
    )
    drift.add_arguments(watched)
    add_html(watched)
    add_data(watched, required=True)

    edit.add_arguments(
        command(
            "edit",
            "MODEL [--input NAME=TYPE] [--output NAME=TYPE] -o FILE [options]",
            "Let a quantized model take and give integers.",
        )
    )

    exported = command(
        "gguf",
        "MODEL -o FILE.gguf [--type q4_k] [--data DATA] [options]",
        "The weights of a model or checkpoint in a GGUF file, or those of such a file out of it.",
    )
    gguf.add_arguments(exported)
    add_data(exported, required=False)

    command("doctor", "[options]", "Versions, CPU features, kernels in use, runtimes found.")
    for sub in commands.choices.values():
        add_common(sub)
    return parser


def _add_quantize(quantize: argparse.ArgumentParser) -> None:
    quantize.add_argument(
        "model", metavar="MODEL", help="the float model, .onnx; with --weight-only also a checkpoint, .safetensors"
    )
    quantize.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the quantized model (default: MODEL.int8.onnx in the current folder, or MODEL.int4.onnx and the like)",
    )
    quantize.add_argument(
        "--external-data",
        action="store_true",
        help="put the tensors into a file beside the output; done anyway where one file would pass 2 GiB",
    )
    quantize.add_argument("--table", metavar="FILE", help="statistics of `requant calibrate` in place of calibrating")
    quantize.add_argument("--dry-run", action="store_true", help="print the plan and stop; needs no data")
    add_recipe(quantize)
    quantize.add_argument("--save-recipe", metavar="FILE", help="write the quantization options as a recipe")
    add_data(quantize, required=False)
    judged = quantize.add_argument_group("judging and searching")
    judged.add_argument("--eval", metavar="DATA", help="samples that the report judges both models by")
    evaluate.add_metric(judged, "--eval")
    keep.add_argument(judged)
    quantize.set_defaults(metric=None)  # unset, it is what fits the data
    add_config(quantize)
    reported = quantize.add_argument_group("report")
    show.add_argument(reported)
    reported.add_argument("--report", metavar="FILE", help="also write the report as JSON")
    add_html(reported)


def parse(argv: Sequence[str] | None, formatter: Any) -> argparse.Namespace:
    """The parsed command line.

    Raises:
        ConfigError: an option or value does not exist or does not fit.
    """
    return build_parser(formatter).parse_args(argv)

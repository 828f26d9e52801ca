"""Commands and options; the words are those of ``QuantConfig``."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from requant.cli import compare, drift, edit, evaluate, gguf, keep, sensitivity, show
from requant.config import choices
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
            self.error(f"unknown {kind} {unknown[0]!r}{closest(unknown[0].split('=')[0], known)}")
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
    parser.add_argument("--version", action="version", version=f"requant {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, arguments: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            usage=f"requant {name} {arguments}".rstrip(),
            help=text,
            description=text,
            formatter_class=formatter,
            allow_abbrev=False,
            epilog=_EPILOG,
        )
        _add_common(sub)
        return sub

    quantize = command(
        "quantize",
        "MODEL (--data DATA | --dynamic | --weight-only BITS) [-o FILE] [options]",
        "Float model and samples in, verified quantized model out.",
    )
    quantize.add_argument("model", help="the float model, .onnx")
    quantize.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the quantized model (default: MODEL.int8.onnx in the current folder, or MODEL.int4.onnx and the like)",
    )
    quantize.add_argument("--table", metavar="FILE", help="statistics of `requant calibrate` in place of calibrating")
    quantize.add_argument(
        "--external-data",
        action="store_true",
        help="put the tensors into a file beside the output; done anyway where one file would pass 2 GiB",
    )
    quantize.add_argument("--report", metavar="FILE", help="also write the report as JSON")
    show.add_argument(quantize)
    quantize.add_argument("--save-recipe", metavar="FILE", help="write the quantization options as a recipe")
    quantize.add_argument("--dry-run", action="store_true", help="print the plan and stop; needs no data")
    quantize.add_argument("--eval", metavar="DATA", help="samples that the report judges both models by")
    evaluate.add_metric(quantize, "--eval")
    keep.add_arguments(quantize)
    _add_data(quantize, required=False, html=True)
    _add_config(quantize)

    calibrate = command(
        "calibrate",
        "MODEL --data DATA -o FILE [options]",
        "Collect statistics once; the ranges of every method follow from them.",
    )
    calibrate.add_argument("model", help="the float model, .onnx")
    calibrate.add_argument("-o", "--output", metavar="FILE", required=True, help="where the table goes, .json")
    _add_data(calibrate, required=True)
    _add_config(calibrate, ranges_only=True)

    inspect = command("inspect", "MODEL [options]", "What a model holds, what would be quantized, what not, and why.")
    inspect.add_argument("model", help="the model, .onnx")
    _add_config(inspect)

    judged = command(
        "evaluate", "MODEL --data DATA [--metric NAME] [options]", "Measure a model, float or quantized, by a metric."
    )
    evaluate.add_arguments(judged)
    _add_data(judged, required=True)

    compared = command(
        "compare",
        "FLOAT QUANTIZED --data DATA [options]",
        "A quantized model beside its float model: error of every tensor, speed, memory.",
    )
    compare.add_arguments(compared)
    _add_data(compared, required=True, html=True)

    tried = command(
        "sensitivity",
        "MODEL --data DATA [--eval DATA --metric NAME] [options]",
        "Which layers quantization hurts: each alone in integers, and each alone in float.",
    )
    sensitivity.add_arguments(tried)
    _add_data(tried, required=True, html=True)
    _add_config(tried)

    watched = command(
        "drift",
        "QUANTIZED --data DATA [--table FILE] [options]",
        "Whether live traffic still fits the frozen ranges of a quantized model; exit status 1 where it does not.",
    )
    drift.add_arguments(watched)
    _add_data(watched, required=True, html=True)

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
    _add_data(exported, required=False)

    command("doctor", "[options]", "Versions, CPU features, kernels in use, runtimes found.")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    """The options of every command."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what is being done")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "--custom-ops",
        action="append",
        metavar="LIBRARY",
        help="a library with ops that models need to be run, .so, .dll or .dylib (repeatable)",
    )


def _add_data(parser: argparse.ArgumentParser, *, required: bool, html: bool = False) -> None:
    """The options of samples; ``html`` adds the one that writes the result as a page."""
    if html:
        parser.add_argument("--html", metavar="FILE", help="also write the result as one self-contained page")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="DATA",
        required=required,
        help="samples: .npz by input name, .npy, a folder of either, of images, or of test_data_set_*",
    )
    data.add_argument("--samples", type=int, metavar="N", help="use at most N samples")
    data.add_argument("--batch-size", type=int, metavar="N", help="samples to a batch, where the model leaves it free")
    data.add_argument("--seed", type=int, metavar="N", help="draw the --samples at random instead of taking the first")
    data.add_argument("--image-size", type=_size, metavar="HxW", help="size of images (default: the model's)")
    data.add_argument("--image-scale", type=float, metavar="X", help="factor for 8-bit pixels (default: 1/255)")
    data.add_argument("--image-mean", type=_numbers, metavar="X[,X,X]", help="subtracted after scaling")
    data.add_argument("--image-std", type=_numbers, metavar="X[,X,X]", help="divisor after the mean")
    data.add_argument("--image-layout", choices=("nchw", "nhwc"), help="where the channels are (default: found)")
    data.add_argument("--image-color", choices=("rgb", "bgr", "gray"), help="order of the channels (default: found)")
    data.add_argument(
        "--image-resize", choices=("crop", "stretch", "pad"), help="how images fit the size (default: crop)"
    )


def _add_config(parser: argparse.ArgumentParser, *, ranges_only: bool = False) -> None:
    """The options of ``QuantConfig``; ``ranges_only`` leaves out those that matter after the statistics are known."""
    group = parser.add_argument_group("quantization")
    group.add_argument("--recipe", metavar="NAME", help="options from a shipped recipe or a TOML file")
    group.add_argument("--percentile", type=float, metavar="P", help="percent of values kept inside (default: 99.99)")
    group.add_argument(
        "--activations",
        choices=(*choices("activations"), "float"),
        help="integer type (default: the target's); with --weight-only float (default) or int8",
    )
    group.add_argument("--target", choices=choices("target"), help="where the model will run (default: ort-cpu)")
    group.add_argument(
        "--smooth",
        type=_smooth,
        metavar="ALPHA",
        help="move outliers of activations into weights: auto (default: where it clearly helps), none, or an alpha",
    )
    _add_pair(group, "equalize", "no-equalize", "equalize the weights of neighbouring layers", "do not (default)")
    _add_pair(
        group,
        "absorb",
        "no-absorb",
        "move what all samples exceed from biases through ReLU into the next",
        "do not (default)",
    )
    _add_pair(
        group,
        "balance",
        "no-balance",
        "balance the channels before depthwise convolutions where that clearly helps (default)",
        "do not",
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads; 0 uses all cores (default)")
    _add_selection(
        parser.add_argument_group("single nodes and tensors", "NAME: a name, an op type or a regular expression")
    )
    if ranges_only:
        return
    group.add_argument(
        "--dynamic",
        action="store_true",
        default=None,
        help="quantize activations at run time: needs no data (--data then only serves to compare the models)",
    )
    group.add_argument(
        "--weight-only",
        choices=choices("weight_only"),
        help="quantize weights only, in blocks: for language models; needs data for gptq and awq alone",
    )
    group.add_argument(
        "--algorithm",
        choices=choices("algorithm"),
        help="how --weight-only rounds; auto (default): for each layer what errs least",
    )
    group.add_argument(
        "--block-size", type=int, metavar="N", help="weights to a scale: 16 to 256 (default: 32), 0 for a row (qdq)"
    )
    group.add_argument(
        "--target-bits", type=float, metavar="BITS", help="bits to a weight on average: layers get 2, 4 or 8"
    )
    group.add_argument(
        "--rest",
        choices=choices("rest"),
        help="weights that stay float otherwise (LSTM, tables, bodies of If): int8: treated as by --dynamic "
        "(default); float16, bfloat16: stored so; keep",
    )
    group.add_argument(
        "--method",
        choices=choices("method"),
        help="calibration method (default: mse); auto: for each activation what errs least at the outputs of layers",
    )
    _add_pair(
        group,
        "symmetric",
        "asymmetric",
        "activation ranges from -a to a, or from 0 where nothing is negative",
        "activation ranges from a to b (default where the target allows it)",
    )
    _add_pair(group, "per-channel", "per-tensor", "a weight scale to an output channel (default)", "one weight scale")
    group.add_argument(
        "--format",
        choices=choices("format"),
        help="qdq: ops between Q and DQ, which runtimes fuse (default); qoperator: onnxruntime's quantized operators; "
        "matmulnbits: onnxruntime's op for --weight-only, and its default",
    )
    group.add_argument("--weights", choices=choices("weights"), help="integer type of weights (default: int8)")
    group.add_argument(
        "--rounding",
        choices=choices("rounding"),
        help="of weights: reconstruct: as the error of their layer's output on calibration samples wants it (default); "
        "nearest",
    )
    _add_pair(
        group,
        "bias-correction",
        "no-bias-correction",
        "add to biases what outputs lack on average on calibration samples",
        "do not (default)",
    )
    group.add_argument(
        "--saturation",
        choices=choices("saturation"),
        help="safe: never saturates, on any CPU (default); full: all 8 bits of int8 weights",
    )
    group.add_argument(
        "--optimize",
        choices=choices("optimize"),
        help="latency: measure here what is faster in integers, the rest stays float; none: all that can be (default)",
    )


def _add_selection(group: Any) -> None:
    group.add_argument("--include", action="append", metavar="NAME", help="quantize only these nodes (repeatable)")
    group.add_argument("--exclude", action="append", metavar="NAME", help="leave these nodes in float (repeatable)")
    for option, metavar, text in (
        (
            "clip",
            "NAME=BOUND",
            "cut the ranges of these outputs to -BOUND..BOUND, such as Gelu=10; auto searches it (repeatable)",
        ),
        ("range", "NAME=LOW,HIGH", "this range instead of a calibrated one (repeatable)"),
        ("scale", "NAME=SCALE[,ZERO_POINT]", "this scale and zero point instead of a calibrated range (repeatable)"),
        ("dtype", "NAME=TYPE", "this integer type for these outputs, such as Softmax=uint16 (repeatable)"),
    ):
        kind = functools.partial(_rule, option)
        group.add_argument(f"--{option}", dest="rules", action="append", type=kind, metavar=metavar, help=text)


def _smooth(text: str) -> str | float:
    """``--smooth``: a number or a word; which words, the config says."""
    try:
        return float(text)
    except ValueError:
        return text


#: What stands behind ``NAME=`` in an option that makes a rule, and an example.
_RULES = {
    "clip": "NAME=BOUND, such as Gelu=10 or Gelu=auto",
    "range": "NAME=LOW,HIGH, such as input=0,1",
    "scale": "NAME=SCALE or NAME=SCALE,ZERO_POINT, such as input=0.02,128",
    "dtype": "NAME=TYPE, such as Softmax=uint16",
}


def _rule(option: str, text: str) -> dict[str, Any]:
    """The rule that ``NAME=VALUE`` stands for; a name may hold ``=`` itself."""
    match, _, value = text.rpartition("=")
    try:
        said = _values(option, value)
    except ValueError:
        said = {}
    if not match or not said:
        raise argparse.ArgumentTypeError(f"{text!r} is not {_RULES[option]}")
    return {"match": match, **said}


def _values(option: str, value: str) -> dict[str, Any]:
    """Attributes of a rule; ValueError or none where ``value`` does not fit."""
    parts = value.split(",")
    match option, len(parts):
        case "dtype", 1:
            return {"dtype": value}
        case "clip", 1:
            return {"clip": value if value == "auto" else float(value)}
        case "scale", 1:
            return {"scale": float(value)}
        case "scale", 2:
            return {"scale": float(parts[0]), "zero_point": int(parts[1])}
        case "range", 2:
            return {"range": [float(part) for part in parts]}
        case _:
            return {}


def _add_pair(group: Any, yes: str, no: str, text: str, opposite: str) -> None:
    pair = group.add_mutually_exclusive_group()
    dest = yes.replace("-", "_")
    pair.add_argument(f"--{yes}", dest=dest, action="store_true", default=None, help=text)
    pair.add_argument(f"--{no}", dest=dest, action="store_false", default=None, help=opposite)


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 224x224")
    height, width = int(parts[0]), int(parts[-1])
    return height, width


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or numbers separated by commas") from None


def parse(argv: Sequence[str] | None, formatter: Any) -> argparse.Namespace:
    """The parsed command line.

    Raises:
        ConfigError: an option or value does not exist or does not fit.
    """
    return build_parser(formatter).parse_args(argv)

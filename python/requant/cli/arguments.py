"""The options that several commands share; the words are those of ``QuantConfig``."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from requant.cli import values
from requant.config import choices

if TYPE_CHECKING:
    from collections.abc import Sequence


def add_common(command: argparse.ArgumentParser) -> None:
    """The options of every command, last in its help."""
    parser = command.add_argument_group("general")
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


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The option that names a recipe."""
    parser.add_argument("--recipe", metavar="NAME", help="options from a shipped recipe or a TOML file")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The option of commands that have no ``QuantConfig``."""
    parser.add_argument(
        "--threads", type=values.whole, default=0, metavar="N", help="CPU threads; 0 uses all cores (default)"
    )


def add_html(parser: Any) -> None:
    """The option that writes the result as a page."""
    parser.add_argument("--html", metavar="FILE", help="also write the result as one self-contained page")


def add_data(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The options of samples."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="DATA",
        required=required,
        help="samples: .npz by input name, .npy, a folder of either, of images, or of test_data_set_*",
    )
    data.add_argument("--samples", type=values.whole, metavar="N", help="use at most N samples")
    data.add_argument(
        "--batch-size", type=values.whole, metavar="N", help="samples to a batch, where the model leaves it free"
    )
    data.add_argument("--seed", type=values.whole, metavar="N", help="draw the --samples at random, not the first ones")
    data.add_argument("--image-size", type=values.size, metavar="HxW", help="size of images (default: the model's)")
    data.add_argument("--image-scale", type=values.number, metavar="X", help="factor for 8-bit pixels (default: 1/255)")
    data.add_argument(
        "--image-mean", type=values.numbers, metavar="X[,X,X]", help="subtracted after scaling (default: 0)"
    )
    data.add_argument("--image-std", type=values.numbers, metavar="X[,X,X]", help="divisor after the mean (default: 1)")
    data.add_argument("--image-layout", choices=("nchw", "nhwc"), help="where the channels are (default: detected)")
    data.add_argument("--image-color", choices=("rgb", "bgr", "gray"), help="order of the channels (default: detected)")
    data.add_argument(
        "--image-resize", choices=("crop", "stretch", "pad"), help="how images fit the size (default: crop)"
    )


def add_config(parser: argparse.ArgumentParser, *, ranges_only: bool = False, trials: bool = False) -> None:
    """The options of ``QuantConfig``.

    ``ranges_only`` leaves out those that matter after the statistics are known, ``trials`` those of what stays float.
    """
    group = parser.add_argument_group("quantization")
    group.add_argument("--target", choices=choices("target"), help="where the model will run (default: ort-cpu)")
    if not ranges_only:
        _add_kind(group, trials=trials)
    group.add_argument("--threads", type=values.whole, metavar="N", help="CPU threads; 0 uses all cores (default)")
    _add_activations(parser.add_argument_group("activations"), ranges_only=ranges_only)
    if not ranges_only:
        _add_weights(parser.add_argument_group("weights"))
        _add_low_bit(parser.add_argument_group("weights in blocks", "of --weight-only"))
    _add_transforms(parser.add_argument_group("transforms", "of the float model, before it is quantized"))
    _add_selection(
        parser.add_argument_group("single nodes and tensors", "NAME: a name, an op type or a regular expression")
    )


def _add_kind(group: Any, *, trials: bool) -> None:
    """What is made."""
    if not trials:
        _add_placement(group)
    group.add_argument(
        "--weight-only",
        choices=choices("weight_only"),
        help="quantize weights only, in blocks: for language models; needs data for gptq and awq alone",
    )
    group.add_argument(
        "--format",
        choices=choices("format"),
        help="qdq: ops between Q and DQ, which runtimes fuse (default); qoperator: onnxruntime's quantized operators; "
        "matmulnbits: onnxruntime's op for --weight-only, and its default",
    )


def _add_placement(group: Any) -> None:
    """What becomes integer."""
    group.add_argument(
        "--dynamic",
        action="store_true",
        default=None,
        help="quantize activations at run time: needs no data (--data then only serves to compare the models)",
    )
    group.add_argument(
        "--cpu",
        choices=choices("cpu"),
        help="kind of CPU that it will run on, x86 before VNNI (avx2) or with it: what is faster in float there stays "
        "so (default: any; with --keep this machine's)",
    )
    group.add_argument(
        "--optimize",
        choices=choices("optimize"),
        help="latency: measure here what is faster in integers, the rest stays float; none: all that can be (default)",
    )
    group.add_argument(
        "--rest",
        choices=choices("rest"),
        help="weights that stay float otherwise (LSTM, tables, bodies of If): int8: treated as by --dynamic "
        "(default); float16, bfloat16: stored so; keep: left as they are",
    )


def _add_activations(group: Any, *, ranges_only: bool) -> None:
    if not ranges_only:
        group.add_argument(
            "--method",
            choices=choices("method"),
            help="calibration method (default: mse); auto: for each activation what errs least at the outputs of "
            "layers",
        )
    group.add_argument(
        "--percentile",
        type=values.number,
        metavar="P",
        help="percent of values kept inside by that method (default: 99.99)",
    )
    group.add_argument(
        "--activations",
        choices=(*choices("activations"), "float"),
        help="integer type (default: the target's); with --weight-only float (default) or int8",
    )
    if not ranges_only:
        _add_either(
            group,
            "symmetric",
            "asymmetric",
            "ranges from -a to a (from 0 where nothing is negative), or from a to b (default: as the target wants it)",
        )


def _add_weights(group: Any) -> None:
    group.add_argument("--weights", choices=choices("weights"), help="integer type (default: int8)")
    _add_either(
        group,
        "per-channel",
        "per-tensor",
        "a scale for each output channel, or one for the tensor (default: per channel)",
    )
    group.add_argument(
        "--rounding",
        choices=choices("rounding"),
        help="reconstruct: as the error of the layer's output on calibration samples wants it (default); nearest: each "
        "weight by itself",
    )
    _add_either(
        group,
        "bias-correction",
        "no-bias-correction",
        "add to biases what outputs lack on average on calibration samples (default: no)",
    )
    group.add_argument(
        "--saturation",
        choices=choices("saturation"),
        help="safe: never saturates, on any CPU (default); full: all 8 bits of int8 weights",
    )


def _add_low_bit(group: Any) -> None:
    group.add_argument(
        "--algorithm",
        choices=choices("algorithm"),
        help="how weights are rounded; auto (default): for each layer what errs least",
    )
    group.add_argument(
        "--block-size",
        type=values.whole,
        metavar="N",
        help="weights to a scale: 16 to 256 (default: 32), 0 for a row (qdq)",
    )
    group.add_argument(
        "--target-bits", type=values.number, metavar="BITS", help="bits to a weight on average: layers get 2, 4 or 8"
    )


def _add_transforms(group: Any) -> None:
    group.add_argument(
        "--smooth",
        type=values.smooth,
        metavar="ALPHA",
        help="move outliers of activations into weights: auto (default: where it clearly helps), none, or an alpha",
    )
    _add_either(group, "equalize", "no-equalize", "equalize the weights of neighbouring layers (default: no)")
    _add_either(
        group,
        "absorb",
        "no-absorb",
        "move what all samples exceed from biases through ReLU into the next (default: no)",
    )
    _add_either(
        group,
        "balance",
        "no-balance",
        "balance the channels before convolutions where that clearly helps (default: yes)",
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
        kind = functools.partial(values.rule, option)
        group.add_argument(f"--{option}", dest="rules", action="append", type=kind, metavar=metavar, help=text)


class _Either(argparse.Action):
    """Two options, of which the first says yes and the second no."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=None, **more)

    def __call__(self, parser: Any, namespace: Any, _values: Any, option_string: str | None = None) -> None:
        said = option_string == self.option_strings[0]
        if getattr(namespace, self.dest) is (not said):
            parser.error(f"{' and '.join(self.option_strings)} contradict each other")
        setattr(namespace, self.dest, said)


def _add_either(group: Any, yes: str, no: str, text: str) -> None:
    group.add_argument(f"--{yes}", f"--{no}", action=_Either, dest=yes.replace("-", "_"), help=text)

"""The options of quantization, their values and their defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from requant.config.contradictions import (
    BLOCK_SIZES,
    INTEGER_ONLY,
    STATIC_ONLY,
    refuse_contradictions,
    refuse_integer,
    refuse_static,
)
from requant.config.recipe import read_recipe, to_toml
from requant.config.rules import Rule, as_rules
from requant.config.values import check_choice, check_type, plain, strings
from requant.errors import ConfigError, closest
from requant.targets import CPUS, TARGETS, get_target
from requant.types import PerTensor, QuantScheme, QuantType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: Calibration methods, as the compiled core lists them (kept equal by a test).
METHODS = ("minmax", "percentile", "entropy", "mse", "sqnr")
#: As a method: for each activation the one with the least error at the outputs of what reads it; as a clip, likewise.
AUTO = "auto"
#: What ``weight_only`` may multiply: reals, or activations that the runtime rounds to int8.
LOW_BIT_ACTIVATIONS = ("float", "int8")
#: What ``smooth`` may be besides a number.
SMOOTH = ("auto", "none")
VERSION = 1


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """How a model is quantized.

    Attributes:
        method: calibration method that chooses the activation ranges: minmax, percentile, entropy, mse or sqnr; or
            ``auto``, for each activation the one whose range errs least at the outputs of the layers that read it.
        symmetric: whether activation ranges are [-a, a] ([0, a] where nothing is negative) instead of [a, b]; unset:
            as the target wants it.
        percentile: share of the values, in percent, that method ``percentile`` keeps inside the range.
        per_channel: one weight scale for each output channel instead of one for the tensor.
        weights: integer type of the weights, int8 or uint8; always symmetric, with the lowest integer unused.
        activations: integer type of the activations, uint8, int8, uint16 or int16; unset: the target's. Weight-only
            products take ``float`` or ``int8``, rounded at run time; unset: float, and int8 beside weights of 8 bits.
        saturation: ``safe`` scales int8 weights so that no CPU saturates (x86 before VNNI adds pairs of uint8 x int8
            products in 16 bits); ``full`` always uses all 8 bits.
        rest: what becomes of the weights that static quantization leaves out: ``int8`` for what ``dynamic`` does with
            them (LSTM, embedding tables, bodies of If), ``float16`` or ``bfloat16`` to store them in half the bytes, or
            ``keep``.
        rounding: ``reconstruct`` chooses for each weight the neighbour with which its layer's output errs least on
            calibration samples, and smaller scales where they help; ``nearest`` rounds each by itself.
        bias_correction: add to each bias what the layer's output lacks on average on calibration samples.
        equalize: give the weights on both sides of each channel between two linear layers one magnitude first.
        absorb: move what every calibration sample exceeds from a bias through ReLU into the biases behind it.
        balance: level the channels before convolutions first, where that clearly helps.
        smooth: move the magnitude of activations into the weights behind them (SmoothQuant): ``auto`` where it clearly
            lowers the error of the layers' outputs, ``none``, or everywhere with this alpha, from 0 to 1.
        target: where the model will run; decides which ops are quantized.
        cpu: the kind of CPU that it will run on, by whose costs nodes that are faster there in float stay so: ``vnni``,
            or ``avx2``, x86 before VNNI; unset: any, and a search takes the kind of this machine.
        format: how a static model is written: ``qdq`` (default), ops between QuantizeLinear and DequantizeLinear that
            a runtime fuses, or ``qoperator``, onnxruntime's quantized operators. Weights alone are written for
            ``matmulnbits`` (default), onnxruntime's own op, or in ``qdq``, with standard DequantizeLinear.
        dynamic: quantize activations at run time, each from its own values: nothing is calibrated, and ``method``,
            the options of calibration, ``activations``, ``format``, ``optimize`` and ``rest`` are refused.
        weight_only: quantize weights only, to ``int2``, ``int3``, ``int4`` or ``int8``, in blocks that share a scale:
            for language models, which are bound by memory. Needs no data unless ``algorithm`` does.
        algorithm: how weights are rounded; ``auto``, the default, takes for each layer what gives the least error of
            its outputs (of its weights, without data).
        block_size: how many neighbours share a scale: 16, 32 (the default), 64, 128, 256, or 0 for a whole row.
        target_bits: bits that a weight may take on average, scales and zero points included: layers get 2, 4 or 8 bits
            as their error asks for.
        optimize: ``latency`` measures on this machine which nodes are faster in integers, and leaves the others float;
            ``none`` quantizes all that the target can run.
        include: quantize only nodes that one of these matches: names, op types or regular expressions (see ``Rule``).
        exclude: leave nodes that one of these matches in float.
        rules: wishes for single nodes and tensors, behind ``include`` and ``exclude``; the last that matches wins.
        in_float: names of nodes to run in float in the end, while ranges, transforms and weights are chosen as if they
            did not: what a search leaves out, so that its recipe gives the same bytes.
        samples: use at most this many calibration samples.
        batch_size: samples to a batch, where the model's batch is free.
        threads: CPU threads; 0 uses all cores.
        seed: draw the ``samples`` at random with this seed instead of taking the first ones.
        version: version of this set of options.
    """

    method: str = "mse"
    symmetric: bool | None = None
    percentile: float = 99.99
    per_channel: bool = True
    weights: str = "int8"
    activations: str | None = None
    saturation: str = "safe"
    rest: str = "int8"
    rounding: str = "reconstruct"
    bias_correction: bool = False
    equalize: bool = False
    absorb: bool = False
    balance: bool = True
    smooth: str | float = "auto"
    target: str = "ort-cpu"
    cpu: str | None = None
    format: str | None = None
    dynamic: bool = False
    weight_only: str | None = None
    algorithm: str | None = None
    block_size: int | None = None
    target_bits: float | None = None
    optimize: str = "none"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    in_float: tuple[str, ...] = ()
    samples: int | None = None
    batch_size: int | None = None
    threads: int = 0
    seed: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", as_rules(self.rules))
        for name in ("include", "exclude", "in_float"):
            object.__setattr__(self, name, strings(name, getattr(self, name)))
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
            check_type(field.name, getattr(self, field.name), str(field.type))
        for name, choices in _CHOICES.items():
            if getattr(self, name) is not None:
                low_bit = self.weight_only is not None and name == "activations"
                check_choice(name, getattr(self, name), LOW_BIT_ACTIVATIONS if low_bit else choices)
        self._check_rules()
        self._check_numbers()
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        refuse_contradictions(self, changed)
        if self.version != VERSION:
            raise ConfigError(f"version is {self.version}, this requant reads version {VERSION}")

    def _check_numbers(self) -> None:
        for name, low in (("samples", 1), ("batch_size", 1), ("threads", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value}, expected at least {low}")
        if isinstance(self.smooth, str):
            check_choice("smooth", self.smooth, SMOOTH)
        elif not 0 <= self.smooth <= 1:
            raise ConfigError(f"smooth is {self.smooth}, expected an alpha from 0 to 1, or one of {', '.join(SMOOTH)}")
        if not 0 < self.percentile <= 100:
            raise ConfigError(f"percentile is {self.percentile}, expected a number above 0 and at most 100")

    def _check_rules(self) -> None:
        for rule in self.rules:
            if rule.method is not None:
                check_choice(f"rule {rule.match!r}: method", rule.method, _CHOICES["method"])
            if rule.bits is not None and f"int{rule.bits}" not in _CHOICES["weight_only"]:
                raise ConfigError(f"rule {rule.match!r}: bits is {rule.bits!r}, expected 2, 3, 4 or 8")
            if rule.algorithm is not None:
                check_choice(f"rule {rule.match!r}: algorithm", rule.algorithm, _CHOICES["algorithm"])
            if rule.block_size is not None and rule.block_size not in BLOCK_SIZES[1:]:
                raise ConfigError(f"rule {rule.match!r}: block_size is {rule.block_size}, expected 16 to 256")
            if rule.dtype is not None:
                check_choice(f"rule {rule.match!r}: dtype", rule.dtype, _CHOICES["activations"])

    @property
    def bits(self) -> int:
        """Bits of the weights in weight-only quantization."""
        return int((self.weight_only or "int8").removeprefix("int"))

    @property
    def cores(self) -> int:
        """Threads that really run: ``threads``, at most one for each core that this process may use."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(self.threads or available, available)

    @property
    def weighs_outputs(self) -> bool:
        """Whether some range depends on what errors cost at the outputs of layers."""
        return self.method == AUTO or any(AUTO in (rule.method, rule.clip) for rule in self.rules)

    @property
    def activation_scheme(self) -> QuantScheme:
        """Scheme of the activations, one scale for a tensor: as asked for, or as the target wants it."""
        target = get_target(self.target)
        symmetric = target.symmetric if self.symmetric is None else self.symmetric
        dtype = QuantType(self.activations or target.activations[0])
        return QuantScheme(dtype, symmetric, PerTensor(), narrow=target.symmetric)

    def completed(self) -> QuantConfig:
        """The same, with what the target decides written out."""
        if self.dynamic or self.weight_only is not None:
            return self
        scheme = self.activation_scheme
        return replace(self, activations=scheme.dtype.value, symmetric=scheme.symmetric)

    @property
    def ordered_rules(self) -> tuple[Rule, ...]:
        """``include`` and ``exclude`` as rules, and behind them ``rules``."""
        included = [Rule(".*", quantize=False), *(Rule(match, quantize=True) for match in self.include)]
        excluded = [Rule(match, quantize=False) for match in self.exclude]
        return (*(included if self.include else ()), *excluded, *self.rules)

    def with_options(self, **options: Any) -> QuantConfig:
        """A copy with the named options changed.

        Raises:
            ConfigError: an option does not exist or its value does not fit.
        """
        _refuse_unknown(options)
        changed = replace(self, **options)
        if changed.weight_only is not None:
            refuse_integer(name for name in options if options[name] not in (None, False))
        if changed.dynamic:
            refuse_static(options.keys() & STATIC_ONLY)
        return changed

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> QuantConfig:
        """A config from option names and values, the rest at their defaults."""
        return cls().with_options(**options)

    def to_dict(self) -> dict[str, Any]:
        """Every option by name, as JSON and TOML know them, but those that are unset, empty or without meaning."""
        unused: Iterable[str] = STATIC_ONLY if self.dynamic else ()
        if self.weight_only is not None:
            unused = INTEGER_ONLY
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in unused}
        values["rules"] = tuple(rule.to_dict() for rule in self.rules)
        return {name: value for name, value in values.items() if value not in (None, ())}

    @classmethod
    def from_recipe(cls, recipe: str | Path) -> QuantConfig:
        """A config from a shipped recipe's name or the path of a TOML file.

        Raises:
            MissingFileError: neither a recipe nor a file has that name.
            ConfigError: the file is not TOML or names an unknown option.
        """
        options = read_recipe(recipe)
        try:
            return cls.from_dict(options)
        except ConfigError as problem:
            raise ConfigError(f"recipe {recipe}: {problem.message}", hint=problem.hint) from None

    def to_toml(self) -> str:
        """The options as a recipe that ``from_recipe`` reads back."""
        return to_toml(self.to_dict())


_CHOICES: dict[str, tuple[str, ...]] = {
    "method": (*METHODS, AUTO),
    "weights": ("int8", "uint8"),
    "activations": ("uint8", "int8", "uint16", "int16"),
    "saturation": ("safe", "full"),
    "rounding": ("reconstruct", "nearest"),
    "rest": ("int8", "float16", "bfloat16", "keep"),
    "target": tuple(TARGETS),
    "cpu": CPUS,
    "format": ("qdq", "qoperator", "matmulnbits"),
    "optimize": ("none", "latency"),
    "weight_only": ("int2", "int3", "int4", "int8"),
    "algorithm": ("auto", "rtn", "mse", "hqq", "kquant", "gptq", "awq", "awq+gptq"),
}


def choices(option: str) -> tuple[str, ...]:
    """The values that a named-choice option takes."""
    return _CHOICES[option]


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(QuantConfig)]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name!r}{closest(name, known)}", hint=f"options: {', '.join(known)}")

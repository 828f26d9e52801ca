"""Options that contradict each other, or the target: what is refused, and what to choose instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.errors import ConfigError
from requant.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from requant.config.options import QuantConfig

#: Options of static quantization: refused beside ``dynamic``.
STATIC_ONLY = frozenset(
    {
        "method",
        "symmetric",
        "percentile",
        "activations",
        "cpu",
        "optimize",
        "rest",
        "smooth",
        "equalize",
        "absorb",
        "balance",
        "rounding",
        "bias_correction",
        "format",
        "in_float",
    }
)
#: Options of weight-only quantization: refused without ``weight_only``.
LOW_BIT = frozenset({"algorithm", "block_size", "target_bits"})
#: What weight-only quantization has no use for: refused beside it.
INTEGER_ONLY = (STATIC_ONLY - {"symmetric", "activations", "format"}) | {
    "dynamic",
    "per_channel",
    "weights",
    "saturation",
    "target",
}
#: Sizes of the blocks of weight-only quantization; 0 is a whole row.
BLOCK_SIZES = (0, 16, 32, 64, 128, 256)


def refuse_contradictions(config: QuantConfig, changed: Collection[str]) -> None:
    """Refuse options that make no sense together; those in ``changed`` are not at their defaults.

    Raises:
        ConfigError: there are some.
    """
    if config.weight_only is not None:
        refuse_integer(changed)
        _refuse_beside_blocks(config)
    else:
        _refuse_low_bit(config, changed)
        _refuse_beside_target(config)
    if config.dynamic:
        refuse_static(STATIC_ONLY.intersection(changed))


def refuse_static(names: Iterable[str]) -> None:
    """Refuse options of static quantization in a dynamic configuration."""
    for name in sorted(names):
        raise ConfigError(
            f"{name} belongs to static quantization, and dynamic quantization calibrates nothing",
            hint=f"leave out {name} or dynamic",
        )


def refuse_integer(names: Iterable[str]) -> None:
    """Refuse options of integer arithmetic in a weight-only configuration."""
    for name in sorted(INTEGER_ONLY.intersection(names)):
        raise ConfigError(
            f"{name} has no meaning for weight-only quantization: activations stay what they are",
            hint=f"leave out {name} or weight_only",
        )


def _refuse_low_bit(config: QuantConfig, names: Iterable[str]) -> None:
    """Refuse options of weight-only quantization elsewhere."""
    for name in sorted(LOW_BIT.intersection(names)):
        raise ConfigError(
            f"{name} belongs to weight-only quantization",
            hint=f"leave out {name}, or say weight_only='int4' (--weight-only int4)",
        )
    if config.format == "matmulnbits":
        raise ConfigError("format matmulnbits is for weight-only quantization", hint="choose qdq, or say weight_only")
    for rule in config.rules:
        if rule.bits is not None or rule.algorithm is not None or rule.block_size is not None:
            raise ConfigError(
                f"rule {rule.match!r}: bits, algorithm and block_size belong to weight-only quantization",
                hint="leave them out, or say weight_only='int4' (--weight-only int4)",
            )


def _refuse_beside_blocks(config: QuantConfig) -> None:
    """Refuse what contradicts weights in blocks."""
    if config.format == "qoperator":
        raise ConfigError("format qoperator has no weights in blocks", hint="choose matmulnbits or qdq")
    if config.block_size is not None and config.block_size not in BLOCK_SIZES:
        raise ConfigError(
            f"block_size is {config.block_size}, expected 16, 32, 64, 128, 256, or 0 for one scale to a row",
            hint="these are the blocks that onnxruntime runs",
        )
    if config.block_size == 0 and config.format != "qdq":
        raise ConfigError(
            "block_size is 0, and MatMulNBits has no scale for whole rows",
            hint="choose a block_size, or format qdq (--format qdq)",
        )
    if config.target_bits is not None and not 2 <= config.target_bits <= 10:
        raise ConfigError(f"target_bits is {config.target_bits}, expected a number from 2 to 10")
    if config.target_bits is not None and (ruled := [rule.match for rule in config.rules if rule.bits is not None]):
        raise ConfigError(
            f"rule {ruled[0]!r} gives bits, and target_bits chooses them", hint="leave out one or the other"
        )


def _refuse_beside_target(config: QuantConfig) -> None:
    """Refuse what contradicts the target."""
    target = get_target(config.target)
    activations = (*target.activations, *target.float_activations)
    asked = [("activations", config.activations), *((f"rule {r.match!r}: dtype", r.dtype) for r in config.rules)]
    for what, dtype in asked:
        if dtype is not None and dtype not in activations:
            raise ConfigError(
                f"{what} is {dtype}, and target {target.name} takes {' or '.join(activations)} activations only",
                hint=f"choose {activations[0]}, or another target",
            )
    if config.weights not in target.weights:
        raise ConfigError(
            f"weights is {config.weights}, and target {target.name} takes {' or '.join(target.weights)} weights only",
            hint=f"choose {target.weights[0]}, or another target",
        )
    if config.cpu is not None and not target.costs:
        raise ConfigError(
            f"cpu is {config.cpu}, and target {target.name} knows no costs of kernels that it chooses among",
            hint="leave out cpu (--cpu)",
        )
    if config.format == "qoperator" and not target.operators:
        raise ConfigError(
            f"format is qoperator, which is onnxruntime's, and target {target.name} reads qdq",
            hint="leave out format, or choose another target",
        )
    if target.symmetric and config.symmetric is False:
        raise ConfigError(
            f"symmetric is false, and target {target.name} has no zero points but 0",
            hint="leave out symmetric, or choose another target",
        )
    shifted = [rule for rule in config.rules if target.symmetric and rule.zero_point]
    if shifted:
        raise ConfigError(
            f"rule {shifted[0].match!r}: zero_point is {shifted[0].zero_point}, "
            f"and target {target.name} has none but 0",
            hint="leave out zero_point, or choose another target",
        )

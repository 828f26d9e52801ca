"""Which type each weight gets, and why it is not the one that was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.config.rules import matches
from requant.errors import ConfigError, ModelError
from requant.gguf.blocks import BLOCK_TYPES, BlockType, block_type

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from requant.stored import StoredWeight

#: What rows get that super-blocks of 256 do not divide, as llama.cpp has it; it puts IQ4_NL where Q4_0 stands here.
FALLBACKS: Mapping[str, str] = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
#: Smaller tensors save less than they lose.
LEAST = 1024
#: The largest float16: no value beyond it is put into blocks whose scales are float16.
MAX_HALF = 65504.0
_MAX_AXES = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """A type, and why it is another than asked for (None: it is not)."""

    kind: BlockType
    reason: str | None = None


class Rules:
    """The type asked for, and others for single tensors.

    Args:
        wanted: the type of all matrices.
        tensor_types: others by name or regular expression of the whole name; the last that fits counts.

    Raises:
        ConfigError: an unknown type, or an invalid regular expression.
    """

    def __init__(self, wanted: str, tensor_types: Mapping[str, str] | None = None) -> None:
        self.wanted = block_type(wanted)
        self._others = [(name, block_type(kind)) for name, kind in (tensor_types or {}).items()]

    def check(self, weights: Sequence[StoredWeight]) -> None:
        """Refuse a rule that fits nothing.

        Raises:
            ConfigError: there is one.
        """
        for name, _ in self._others:
            if not any(matches(name, weight.name) for weight in weights):
                raise ConfigError(f"no tensor is called {name!r}", hint="`--json` lists the names of all tensors")

    def choose(self, weight: StoredWeight, largest: float) -> Choice:
        """The type of a weight whose largest magnitude is ``largest``.

        Raises:
            ConfigError: a type for this tensor alone that its rows do not divide into or its values leave.
            ModelError: it has more axes than the format.
        """
        if len(weight.shape) > _MAX_AXES:
            raise ModelError(f"tensor {weight.name!r} has {len(weight.shape)} axes, GGUF holds at most {_MAX_AXES}")
        for name, kind in reversed(self._others):
            if matches(name, weight.name):
                return Choice(_checked(weight, kind, largest))
        return _choose(weight, self.wanted, largest)


def _choose(weight: StoredWeight, wanted: BlockType, largest: float) -> Choice:
    single, half = BLOCK_TYPES["f32"], BLOCK_TYPES["f16"]
    rows = weight.shape[-1] if weight.shape else 1
    if wanted is single:
        return Choice(single)
    if len(weight.shape) < 2:
        return Choice(single, "no matrix")
    if weight.used is False:
        return Choice(single, "no product or lookup reads it")
    if math.prod(weight.shape) < LEAST:
        return Choice(single, f"fewer than {LEAST:,} values")
    if largest > MAX_HALF and wanted.name != "bf16":
        return Choice(single, f"values up to {largest:.3g}, beyond float16")
    if rows % wanted.block_size == 0:
        return Choice(wanted)
    problem = f"rows of {rows} values do not divide into blocks of {wanted.block_size}"
    smaller = BLOCK_TYPES.get(FALLBACKS.get(wanted.name, ""))
    if smaller is not None and rows % smaller.block_size == 0:
        return Choice(smaller, problem)
    return Choice(half, problem if smaller is None else f"{problem} or {smaller.block_size}")


def _checked(weight: StoredWeight, kind: BlockType, largest: float) -> BlockType:
    rows = weight.shape[-1] if weight.shape else 1
    if rows % kind.block_size:
        raise ConfigError(
            f"tensor {weight.name!r} cannot be {kind.name}: rows of {rows} values do not divide into blocks of "
            f"{kind.block_size}",
            hint="choose a type of smaller blocks, or f16",
        )
    if largest > MAX_HALF and kind.name not in ("f32", "bf16"):
        raise ConfigError(
            f"tensor {weight.name!r} cannot be {kind.name}: it has values up to {largest:.3g}, beyond float16",
            hint="choose f32 or bf16",
        )
    return kind

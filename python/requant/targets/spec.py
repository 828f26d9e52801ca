"""What a target says about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Target:
    """Which ops a runtime executes on integers, and on what terms.

    Attributes:
        name: as the user types it.
        fused: op types that run in integer kernels when their inputs and outputs are quantized.
        float_output: those of ``fused`` that may also give float directly, without a quantized output.
        saturating_adds: op types that run as an integer addition whose saturation does the rest: HardSigmoid.
        moves: op types through which Q/DQ vanish when input and output have the same parameters.
        activations: integer types of activations that its kernels take; others run in float between Q and DQ.
        pair_products: whether the target multiplies neighbouring uint8 x int8 pairs with 16-bit saturation on some of
            its machines, so that int8 weights must keep ``255 * (w[2i] + w[2i+1])`` inside int16.
        one_gelu: whether it runs GELU as one op of onnxruntime's own (see ``passes.activations``).
        dynamic: op types with an integer kernel for activations that are quantized at run time, each with the number
            of weight values from which it is faster than float.
    """

    name: str
    fused: frozenset[str]
    float_output: frozenset[str]
    moves: frozenset[str]
    activations: frozenset[str] = frozenset({"uint8", "int8"})
    saturating_adds: frozenset[str] = frozenset()
    pair_products: bool = False
    one_gelu: bool = False
    dynamic: Mapping[str, int] = field(default_factory=dict)

"""What a row of the op table says.

An ONNX op is data: which of its inputs are activations, weights or a bias, along which axis its weight has output
channels, how its output's range relates to its input's. Rows know nothing of runtimes (see ``requant.targets``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from requant.types import Range


class Role(Enum):
    """What an input is to its op."""

    ACTIVATION = "activation"
    WEIGHT = "weight"
    BIAS = "bias"


class Tie(Enum):
    """How the output's range relates to the input's."""

    NONE = "none"
    SAME_AS_INPUT = "same as input"


class Kind(Enum):
    """Why one quantizes it: it computes, once or in steps, follows its neighbours, moves values, or clamps them."""

    COMPUTE = "compute"
    RECURRENT = "recurrent"
    FOLLOW = "follow"
    MOVE = "move"
    CLAMP = "clamp"


@dataclass(frozen=True, slots=True)
class WeightAxis:
    """The weight's output-channel axis (negative: from the end), or ``transposed`` where attribute ``flag`` is 1.

    Axes before it stand for a stack of weights, where the op has such.
    """

    axis: int
    flag: str | None = None
    transposed: int = 0

    def of(self, node: ir.Node) -> int:
        """The axis in ``node``."""
        attribute = None if self.flag is None else node.attributes.get(self.flag)
        return self.transposed if attribute is not None and attribute.as_int() else self.axis


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One row: ops of equal behaviour; ``lookup`` marks those that pick rows from their first input."""

    op_types: tuple[str, ...]
    kind: Kind
    inputs: Mapping[int, Role] = field(default_factory=lambda: {0: Role.ACTIVATION})
    variadic: bool = False
    lookup: bool = False
    weight_axis: WeightAxis | None = None
    tie: Tie = Tie.NONE
    fixed_range: Range | None = None

"""What a transform decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requant.onnx.rescale import Factors
    from requant.onnx.shift import Shifts
    from requant.onnx.sites import Site
    from requant.planning.plan import QuantPlan


@dataclass(frozen=True)
class Change:
    """What is to be done to a graph.

    Attributes:
        factors: by what tensors are to be divided.
        shifts: what they are to lose.
        done: a line for what that does.
        notes: what else a user should know.
    """

    factors: Factors = field(default_factory=dict)
    shifts: Shifts = field(default_factory=dict)
    done: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def has_own_range(site: Site, plan: QuantPlan) -> bool:
    """Whether a rule sets or cuts the range of a tensor that would be divided: its numbers would mean others then."""
    tensors = [plan.tensors[name] for name in site.path if name in plan.tensors]
    return any(tensor.known_range is not None or tensor.clip is not None for tensor in tensors)

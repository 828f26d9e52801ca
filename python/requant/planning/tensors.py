"""Which activations become integer, which of them share parameters, and where these come from.

Tensors that an op ties together, because it only moves values or wants one scale, form a group with one scale and zero
point. Its range is that of the values that enter it: of one tensor, or of several whose statistics are joined.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from requant.errors import ConfigError
from requant.types import FixedParams, QuantType, Range

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from requant.config.rules import Rule
    from requant.types import QuantScheme


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """An activation that becomes integer.

    Its scale and zero point are those of tensor ``source``; or ``params``; or its range is ``fixed``; or it is
    calibrated, ``joined`` tensors with it: by ``method`` instead of the config's, and cut to ``[-clip, clip]``, where
    these are set; ``auto`` as a clip is yet to be searched.
    """

    name: str
    scheme: QuantScheme
    source: str | None = None
    fixed: Range | None = None
    params: FixedParams | None = None
    joined: tuple[str, ...] = ()
    method: str | None = None
    clip: float | str | None = None

    @property
    def known_range(self) -> Range | None:
        """The range, where it does not depend on data."""
        return self.fixed if self.params is None else self.params.range(self.scheme.dtype)

    @property
    def is_calibrated(self) -> bool:
        """Whether it is the head of a group whose range must come from data."""
        return self.source is None and self.known_range is None


@dataclass(frozen=True, slots=True)
class Activation:
    """A tensor that is to become integer, as the graph has it.

    Attributes:
        name: the tensor.
        names: what a rule may call it.
        giver: op type of the node that gives it.
        fixed: range of whatever that op gives.
        params: scale and zero point that the target wants of it.
    """

    name: str
    names: frozenset[str]
    giver: str = ""
    fixed: Range | None = None
    params: FixedParams | None = None


def plan_tensors(
    activations: Sequence[Activation], ties: Iterable[tuple[str, str]], rules: Sequence[Rule], scheme: QuantScheme
) -> dict[str, TensorPlan]:
    """The plan of each of ``activations``, in their order.

    Args:
        activations: tensors in the order in which a model computes them.
        ties: pairs of them, the second of which is made of values of the first.
        rules: wishes; what one says of a tensor holds for all that share its parameters.
        scheme: how they are quantized, where no rule says otherwise.

    Raises:
        ConfigError: a rule says something else than the target of a tensor.
    """
    head = {activation.name: activation.name for activation in activations}

    def find(name: str) -> str:
        while head[name] != name:
            name = head[name]
        return name

    derived = set()
    for before, after in ties:
        derived.add(after)
        head[find(after)] = find(before)
    groups: dict[str, list[Activation]] = {}
    for activation in activations:
        groups.setdefault(find(activation.name), []).append(activation)
    plans: dict[str, TensorPlan] = {}
    for members in groups.values():
        origins = [member for member in members if member.name not in derived]
        lead = _ruled(_lead(origins, scheme), members, origins, rules)
        plans |= {member.name: replace(lead, name=member.name, source=lead.name, joined=()) for member in members}
        plans[lead.name] = lead
    return {activation.name: plans[activation.name] for activation in activations}


def _lead(origins: Sequence[Activation], scheme: QuantScheme) -> TensorPlan:
    """The plan of a group that values of ``origins`` enter."""
    first, *others = origins
    if all(origin.params == first.params for origin in others) and first.params is not None:
        return TensorPlan(first.name, scheme, params=first.params)
    fixed = [origin.fixed for origin in origins if origin.fixed is not None]
    if len(fixed) == len(origins):
        return TensorPlan(first.name, scheme, fixed=Range(min(r.lo for r in fixed), max(r.hi for r in fixed)))
    return TensorPlan(first.name, scheme, joined=tuple(other.name for other in others))


def _ruled(
    lead: TensorPlan, members: Sequence[Activation], origins: Sequence[Activation], rules: Sequence[Rule]
) -> TensorPlan:
    """``lead`` with what the rules say of the members of its group."""
    names = frozenset[str]().union(*(member.names for member in members))
    wanted = lead.params
    matching = [rule for rule in rules if rule.matches(*names)]
    for rule in matching:  # types first: they say which zero points there are
        if rule.dtype is not None:
            lead = replace(lead, scheme=replace(lead.scheme, dtype=QuantType(rule.dtype)))
    for rule in matching:
        if rule.range is not None:
            lead = replace(lead, fixed=Range(*rule.range), params=None, joined=())
        if rule.scale is not None:
            lead = replace(lead, params=rule.params(lead.scheme.dtype), fixed=None, joined=())
        lead = replace(
            lead,
            method=lead.method if rule.method is None else rule.method,
            clip=lead.clip if rule.clip is None else rule.clip,
        )
        if wanted is not None and lead.params != wanted:
            raise ConfigError(
                f"rule {rule.match!r} wants other parameters for tensor {lead.name!r}, where the target fixes the "
                f"output of {origins[0].giver} at scale {wanted.scale:g}, zero point {wanted.zero_point}",
                hint="leave it out of the rule, or choose another target",
            )
    return lead

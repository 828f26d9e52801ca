"""What a user wants otherwise for some nodes and tensors: an ordered list, the last word wins."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from requant.config.values import plain
from requant.errors import ConfigError, closest
from requant.types import FixedParams, QuantType


@dataclass(frozen=True, slots=True)
class Rule:
    """A wish for what ``match`` names.

    Attributes:
        match: the name of a node or tensor, an op type, or a regular expression for whole names of nodes or tensors. A
            rule about ranges concerns the outputs of the nodes that it matches.
        quantize: False leaves the matching nodes in float, True takes back an earlier False, and the target's
            own wish to run them in float.
        method: calibration method for the matching tensors.
        range: ``(lo, hi)`` instead of a calibrated range.
        scale: step of the integers instead of a calibrated range.
        zero_point: the integer that stands for 0 (with ``scale``; otherwise 0, of unsigned types the middle one).
        dtype: integer type of the matching tensors.
        clip: bound of the magnitude: the calibrated range is cut to ``[-clip, clip]``. ``auto`` searches the bound with
            the least error at the outputs of the layers that read the tensor, and cuts nothing where none helps.
        bits: of the weights of the matching nodes, in weight-only quantization: 2, 3, 4 or 8.
        algorithm: how they are rounded.
        block_size: how many of them share a scale.
    """

    match: str
    quantize: bool | None = None
    method: str | None = None
    range: tuple[float, float] | None = None
    clip: float | str | None = None
    dtype: str | None = None
    scale: float | None = None
    zero_point: int | None = None
    bits: int | None = None
    algorithm: str | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if not _is_name(self.match):
            raise ConfigError(f"a rule's match is {self.match!r}, expected a name, an op type or a regular expression")
        if self.quantize is not None and not isinstance(self.quantize, bool):
            raise ConfigError(f"rule {self.match!r}: quantize is {self.quantize!r}, expected true or false")
        if self.clip not in (None, "auto") and not _is_positive(self.clip):
            raise ConfigError(f"rule {self.match!r}: clip is {self.clip!r}, expected a number above 0, or auto")
        if self.range is not None:
            object.__setattr__(self, "range", self._bounds(self.range))
        if self.scale is not None and not _is_positive(self.scale):
            raise ConfigError(f"rule {self.match!r}: scale is {self.scale!r}, expected a number above 0")
        if self.zero_point is not None and (isinstance(self.zero_point, bool) or not isinstance(self.zero_point, int)):
            raise ConfigError(f"rule {self.match!r}: zero_point is {self.zero_point!r}, expected an integer")
        if self.zero_point is not None and self.scale is None:
            raise ConfigError(f"rule {self.match!r}: a zero_point was given without a scale", hint="give both")
        if self.scale is not None and self.range is not None:
            raise ConfigError(f"rule {self.match!r}: a range and a scale were given", hint="give one or the other")
        if not any(getattr(self, field.name) is not None for field in fields(self)[1:]):
            known = ", ".join(field.name for field in fields(self)[1:])
            raise ConfigError(f"rule {self.match!r} says nothing", hint=f"give one of {known}")

    def _bounds(self, given: Any) -> tuple[float, float]:
        ends: Any = given.tolist() if hasattr(given, "tolist") else given
        ends = [plain(end) for end in ends] if isinstance(ends, list | tuple) else []
        if len(ends) == 2 and all(map(_is_number, ends)) and ends[0] < ends[1]:
            return float(ends[0]), float(ends[1])
        raise ConfigError(f"rule {self.match!r}: range is {given!r}, expected [low, high] with low below high")

    def params(self, dtype: QuantType) -> FixedParams | None:
        """Scale and zero point for integers of ``dtype``, where it gives a scale.

        Raises:
            ConfigError: the zero point is not of that type.
        """
        if self.scale is None:
            return None
        zero_point = dtype.centre if self.zero_point is None else self.zero_point
        if not dtype.min <= zero_point <= dtype.max:
            raise ConfigError(
                f"rule {self.match!r}: zero_point is {zero_point}, expected one of {dtype}: {dtype.min}..{dtype.max}"
            )
        return FixedParams(self.scale, zero_point)

    def matches(self, *names: str) -> bool:
        """Whether it concerns something that goes by these names."""
        return matches(self.match, *names)

    @classmethod
    def from_dict(cls, rule: Mapping[str, Any]) -> Rule:
        """A rule from its attributes by name.

        Raises:
            ConfigError: an attribute does not exist, ``match`` is missing, or a value does not fit.
        """
        known = [field.name for field in fields(cls)]
        for name in rule:
            if name not in known:
                raise ConfigError(f"unknown rule attribute {name!r}{closest(name, known)}", hint=", ".join(known))
        if "match" not in rule:
            raise ConfigError(f"a rule has no match: {dict(rule)}", hint="name what it concerns: match = 'Conv'")
        return cls(**rule)

    def to_dict(self) -> dict[str, Any]:
        """What the rule says; for TOML and JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


def matches(match: str, *names: str) -> bool:
    """Whether ``match`` is one of ``names``, or a regular expression for the whole of one."""
    if match in names:
        return True
    pattern = _compiled(match)
    return pattern is not None and any(name and pattern.fullmatch(name) for name in names)


@cache
def _compiled(match: str) -> re.Pattern[str] | None:
    """``match`` as a regular expression; None where it is none, so that it can only be a name."""
    try:
        return re.compile(match)
    except re.error:
        return None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and value > 0


def as_rules(rules: object) -> tuple[Rule, ...]:
    """Rules from rules or from mappings.

    Raises:
        ConfigError: it is not a list of them.
    """
    if not isinstance(rules, list | tuple):
        raise ConfigError(f"rules is {rules!r}, expected a list of rules")
    found = []
    for rule in rules:
        if not isinstance(rule, Rule | Mapping):
            raise ConfigError(f"a rule is {rule!r}, expected a table such as {{match = 'Conv', quantize = false}}")
        found.append(rule if isinstance(rule, Rule) else Rule.from_dict(rule))
    return tuple(found)

"""Single values of options, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from requant.errors import ConfigError, closest


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ConfigError(
            f"{what} is {value!r}{closest(str(value), choices)}", hint=f"choose one of {', '.join(choices)}"
        )


def check_type(name: str, value: object, annotation: str) -> None:
    """Refuse a value that is not of the type that an option is annotated with."""
    if annotation.startswith("tuple"):
        return  # checked when it was made one
    kinds: Any = {
        "str": str,
        "bool": bool,
        "int": int,
        "float": (int, float),
        "int | None": (int, type(None)),
        "float | None": (int, float, type(None)),
        "str | None": (str, type(None)),
        "bool | None": (bool, type(None)),
        "str | float": (str, int, float),
    }[annotation]
    if not isinstance(value, kinds) or (isinstance(value, bool) and not annotation.startswith("bool")):
        raise ConfigError(f"{name} is {value!r}, expected {annotation.replace('| None', 'or unset')}")


def plain(value: object) -> object:
    """Scalars of NumPy, and arrays of no axis, as Python's."""
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


def strings(name: str, value: object) -> tuple[str, ...]:
    """One text or several, as several."""
    if isinstance(value, str):
        return (value,)
    items = tuple(value) if isinstance(value, Iterable) and not isinstance(value, Mapping) else (None,)
    if not all(isinstance(item, str) and item for item in items):
        raise ConfigError(f"{name} is {value!r}, expected names, op types or regular expressions")
    return tuple(map(str, sorted(items) if isinstance(value, Set) else items))

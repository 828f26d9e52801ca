"""Single values of options: checked, and written as TOML."""

from __future__ import annotations

import json
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


def check_integers(value: object) -> None:
    """Refuse integers beyond the 64 bits that TOML has, wherever they stand in ``value``.

    Raises:
        ValueError: there is one; Python would read it, and not always write it.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("an integer in it needs more than 64 bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_integers(inner)


def plain(value: object) -> object:
    """NumPy's scalars as Python's."""
    return value.item() if hasattr(value, "item") and hasattr(value, "dtype") else value


def to_toml_value(value: object) -> str:
    """A bool, number, text or list of them as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(to_toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def strings(name: str, value: object) -> tuple[str, ...]:
    """One text or several, as several."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"{name} is {value!r}, expected names, op types or regular expressions")
    return tuple(value)

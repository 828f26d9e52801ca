"""Options in TOML: the shipped recipes, and those of users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ConfigError, MissingFileError, closest

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHIPPED = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """The options in a shipped recipe, by its name, or in a TOML file.

    Raises:
        MissingFileError: neither a recipe nor a file has that name.
        ConfigError: the file cannot be read, or is not TOML.
    """
    import tomllib

    names = recipe_names()
    path = _SHIPPED / f"{recipe}.toml" if str(recipe) in names else Path(recipe)
    try:
        options = tomllib.loads(path.read_text("utf-8"))
        _check_integers(options)
    except PermissionError as problem:
        raise ConfigError(f"recipe {recipe} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"recipe {recipe} is not a text file") from None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise MissingFileError(
            f"recipe {str(recipe)!r} is neither a shipped recipe nor a file{closest(str(recipe), names)}",
            hint=f"shipped recipes: {', '.join(names)}",
        ) from None
    except (ValueError, RecursionError) as problem:
        raise ConfigError(f"recipe {recipe} is not TOML: {problem}") from None
    return options


def _check_integers(value: object) -> None:
    """Refuse integers beyond the 64 bits that TOML has, wherever they stand in ``value``.

    Raises:
        ValueError: there is one; Python would read it, and not always write it.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("an integer in it needs more than 64 bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_integers(inner)


def to_toml(options: Mapping[str, Any]) -> str:
    """``options`` as a recipe that ``read_recipe`` reads back; ``rules`` are tables of their own."""
    lines = [f"{name} = {_toml_value(value)}\n" for name, value in options.items() if name != "rules"]
    for rule in options.get("rules", ()):
        lines += ["\n[[rules]]\n", *(f"{name} = {_toml_value(value)}\n" for name, value in rule.items())]
    return "".join(lines)


def _toml_value(value: object) -> str:
    """A bool, number, text or list of them as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)

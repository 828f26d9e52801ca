"""The values of options, read from text."""

from __future__ import annotations

import argparse
from typing import Any


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def size(text: str) -> tuple[int, int]:
    """Height and width, as ``224x224`` or ``224``."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 224x224")
    height, width = int(parts[0]), int(parts[-1])
    return height, width


def numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or numbers separated by commas") from None


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or numbers separated by commas") from None


def smooth(text: str) -> str | float:
    """``--smooth``: a number or a word; which words, the config says."""
    try:
        return float(text)
    except ValueError:
        return text


#: What stands behind ``NAME=`` in an option that makes a rule, and an example.
_RULES = {
    "clip": "NAME=BOUND, such as Gelu=10 or Gelu=auto",
    "range": "NAME=LOW,HIGH, such as input=0,1",
    "scale": "NAME=SCALE or NAME=SCALE,ZERO_POINT, such as input=0.02,128",
    "dtype": "NAME=TYPE, such as Softmax=uint16",
}


def rule(option: str, text: str) -> dict[str, Any]:
    """The rule that ``NAME=VALUE`` stands for; a name may hold ``=`` itself."""
    match, _, value = text.rpartition("=")
    try:
        said = _values(option, value)
    except ValueError:
        said = {}
    if not match or not said:
        raise argparse.ArgumentTypeError(f"{text!r} is not {_RULES[option]}")
    return {"match": match, **said}


def _values(option: str, value: str) -> dict[str, Any]:
    """Attributes of a rule; ValueError or none where ``value`` does not fit."""
    parts = value.split(",")
    match option, len(parts):
        case "dtype", 1:
            return {"dtype": value}
        case "clip", 1:
            return {"clip": value if value == "auto" else float(value)}
        case "scale", 1:
            return {"scale": float(value)}
        case "scale", 2:
            return {"scale": float(parts[0]), "zero_point": int(parts[1])}
        case "range", 2:
            return {"range": [float(part) for part in parts]}
        case _:
            return {}

"""The keys and values of a GGUF file: what the model says of itself, and what the caller adds."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from requant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    Value = str | int | float | bool

#: Numbers that llama.cpp has for files of mostly this type (``general.file_type``).
_FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k": 12,
    "q4_k": 15,
    "q5_k": 17,
    "q6_k": 18,
    "bf16": 32,
}
_QUANTIZATION_VERSION = 2
_FLOAT32_MAX = 3.4028234663852886e38
#: Keys that this module alone sets.
_OWN = ("general.alignment", "general.file_type", "general.quantization_version")
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_INTEGER = re.compile(r"-?\d{1,18}")


def file_metadata(
    name: str, source: str, carried: Mapping[str, str], added: Mapping[str, Value], wanted: str
) -> dict[str, Value]:
    """Everything that goes into a file.

    Keys of GGUF have dots in them (``llama.block_count``): those that the model carries are taken, others are its own
    affair. Text of the model that spells a number or a truth value is one, but for keys of ``general``, which are text.

    Args:
        name: what to call the model, where nobody says.
        source: what stands for the architecture, where nobody says: loaders look there for how to run a file.
        carried: what the model says.
        added: what the caller says, which counts.
        wanted: the type of the matrices.

    Raises:
        ConfigError: a key that is none, that is set here, or a value that the format cannot hold.
    """
    found: dict[str, Value] = {"general.architecture": source, "general.name": name}
    found |= {key: typed(key, text) for key, text in carried.items() if _KEY.fullmatch(key) and key not in _OWN}
    for key, value in added.items():
        if not _KEY.fullmatch(key):
            raise ConfigError(f"{key!r} is no metadata key", hint="keys have dots, such as general.name")
        if key in _OWN:
            raise ConfigError(f"metadata key {key!r} is set by what is written", hint="leave it out")
        found[key] = value
    for key, value in found.items():
        _check(key, value)
    return found | {
        "general.file_type": _FILE_TYPES[wanted],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }


def typed(key: str, text: str) -> Value:
    """The value that a text spells."""
    if key.startswith("general."):
        return text
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    return number if abs(number) <= _FLOAT32_MAX else text  # infinite or NaN, too


def _check(key: str, value: object) -> None:
    if not isinstance(value, str | int | float):
        raise ConfigError(f"metadata {key!r} is a {type(value).__name__}, expected text, a number or a truth value")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"metadata {key!r} is {value}, which does not fit 64 bits")
    if isinstance(value, float) and math.isfinite(value) and abs(value) > _FLOAT32_MAX:
        raise ConfigError(f"metadata {key!r} is {value:g}, which does not fit 32 bits")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"metadata {key!r} is not Unicode text") from None

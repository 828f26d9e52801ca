"""What can go wrong, each kind with a stable code, what was found and the remedy."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


_LINES = 4
_WIDTH = 1000


class RequantError(Exception):
    """Base of all errors that requant raises on purpose.

    ``str(error)`` is at most five lines: what is wrong (expected, got, where), then ``help:`` with the remedy. What a
    file brings into it can be of any length, so that further lines are joined, and endless ones cut.
    """

    code = "RQ000"
    exit_status = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message, hint = _readable(message, _LINES), None if hint is None else _readable(hint, 1)
        super().__init__(message if hint is None else f"{message}\nhelp: {hint}")
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), self.message, self.hint)


class ConfigError(RequantError, ValueError):
    """An option, recipe or argument that does not exist or does not fit."""

    code = "RQ100"


class ModelError(RequantError, ValueError):
    """A model that cannot be read, is invalid, or cannot be quantized."""

    code = "RQ200"


class DataError(RequantError, ValueError):
    """Calibration or evaluation data that is missing or does not fit the model."""

    code = "RQ300"


class CalibrationError(RequantError, ValueError):
    """Statistics or ranges that cannot be computed, or a table that belongs to another model."""

    code = "RQ400"


class MissingFileError(RequantError, FileNotFoundError):
    """A file that was named and is not there."""

    code = "RQ500"


class OutputError(RequantError, OSError):
    """A result that could not be written; what was there before is untouched."""

    code = "RQ510"


class MissingDependencyError(RequantError, ImportError):
    """An optional package that this call needs."""

    code = "RQ520"


class ExecutorError(RequantError, RuntimeError):
    """Work that was handed to an executor and got lost."""

    code = "RQ540"


class VerificationError(RequantError):
    """A quantized model that failed its check before it was written."""

    code = "RQ600"
    exit_status = 1


class InternalError(RequantError):
    """A bug in requant."""

    code = "RQ900"
    exit_status = 101


def _readable(text: str, most: int) -> str:
    """``text`` in at most so many lines of a width that can be read."""
    lines = text.splitlines()
    if len(lines) > most:
        lines = [line for line in lines if line.strip()]
        lines[most - 1 :] = [" ".join(lines[most - 1 :])]
    return "\n".join(line if len(line) <= _WIDTH else f"{line[:_WIDTH]} ..." for line in lines)


def _remade(kind: type[RequantError], message: str, hint: str | None) -> RequantError:
    """An error that comes from another process."""
    return kind(message, hint=hint)


def first_line(problem: Exception) -> str:
    """The first line of an error's text that says anything."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0][:240] if lines else type(problem).__name__


def closest(name: str, known: Iterable[str]) -> str:
    """A did-you-mean clause for ``name`` among the strings ``known``, in any case, or an empty string."""
    names = {other.casefold(): other for other in known if other != name}
    match = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.6)
    return f"; did you mean {names[match[0]]!r}?" if match else ""

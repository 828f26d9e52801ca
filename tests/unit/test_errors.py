"""Errors say what is wrong and how to mend it, in few lines, and are what callers expect to catch."""

from __future__ import annotations

import pytest

from requant import errors
from requant.errors import RequantError, closest

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RequantError)]


def test_a_hint_is_the_last_line() -> None:
    error = errors.DataError("no samples", hint="give some")
    assert str(error) == "no samples\nhelp: give some"
    assert (error.message, error.hint) == ("no samples", "give some")
    assert str(errors.DataError("no samples")) == "no samples"


@pytest.mark.parametrize("name", ["a\n" * 30, "\n" * 30, "x" * 10**6, "a\u2028" * 30])
def test_what_files_bring_in_makes_no_error_endless(name: str) -> None:
    error = errors.ModelError(f"tensor {name} is damaged", hint=f"call it other than {name}")
    lines = str(error).splitlines()
    assert len(lines) <= 5
    assert max(map(len, lines)) <= 1100
    assert lines[-1].startswith("help: call it other than")


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_codes_and_exit_statuses_are_stable(kind: type[RequantError]) -> None:
    assert kind.code.startswith("RQ")
    assert len(kind.code) == 5
    assert kind.exit_status == {"VerificationError": 1, "InternalError": 101}.get(kind.__name__, 2)
    assert kind.__doc__


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.ModelError, ValueError),
        (errors.DataError, ValueError),
        (errors.CalibrationError, ValueError),
        (errors.MissingFileError, FileNotFoundError),
        (errors.OutputError, OSError),
        (errors.MissingDependencyError, ImportError),
    ],
)
def test_they_are_builtin_errors_too(kind: type[RequantError], builtin: type[Exception]) -> None:
    with pytest.raises(builtin):
        raise kind("message")


def test_a_close_name_is_suggested_and_a_far_one_is_not() -> None:
    assert closest("entopy", ["minmax", "entropy"]) == "; did you mean 'entropy'?"
    assert closest("CONV", ["Conv", "Gemm"]) == "; did you mean 'Conv'?"
    assert closest("zzz", ["minmax", "entropy"]) == ""
    assert closest("", []) == ""

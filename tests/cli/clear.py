"""What every refusal on the command line has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest


def assert_clear(capsys: pytest.CaptureFixture[str], words: Iterable[str]) -> None:
    """Nothing on standard output; on standard error at most six lines that name these words."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error[RQ")
    assert len(captured.err.splitlines()) <= 6
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err

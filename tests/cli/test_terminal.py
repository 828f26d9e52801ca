"""What is told where there is no terminal, or nothing to tell it on."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import count
from typing import TYPE_CHECKING

import pytest
from tests.digits import CALIB, MODEL

from requant.cli import terminal

if TYPE_CHECKING:
    from pathlib import Path


def test_the_time_that_is_left_does_not_count_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count(1000.0)  # those before the first batch
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    lines = terminal._Lines()
    show = lines.of("calibrating", "samples")
    show(8, 64)
    assert lines._text is not None
    assert lines._text() == "calibrating: 8 of 64 samples"
    show(16, 64)
    assert lines._text() == "calibrating: 16 of 64 samples, 5 s left"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(folder: Path, closed: str) -> None:
    def status(*arguments: str) -> int:
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "requant", *arguments]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert status("quantize", MODEL, "--data", "nowhere.npz") == 2
    assert status("quantize", MODEL, "--data", CALIB, "--samples", "32", "-o", "q.onnx") == 0
    assert (folder / "q.onnx").exists()

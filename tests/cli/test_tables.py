"""Tables on terminals of any width: names are whole, figures in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.digits import CALIB, MODEL

from requant.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    arguments = ["quantize", MODEL, "--data", CALIB, "--samples", "32", "--rounding", "nearest", "-o", "q.onnx"]
    assert main([*arguments, "--show", "worst"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    (row,) = [line for line in out.splitlines() if "block2/expand/bn/out" in line and "activation" in line]
    assert row.rstrip().endswith("%")
    assert ("granular" in out) == (width == 120)

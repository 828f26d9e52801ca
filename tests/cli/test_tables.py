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


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_gets_lines_of_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["quantize", MODEL, "--data", CALIB, "--samples", "32", "-o", "q.onnx", "--show", "worst"]) == 0
    assert main(["compare", MODEL, "q.onnx", "--data", CALIB, "--samples", "32"]) == 0
    assert main(["drift", "q.onnx", "--data", CALIB, "--samples", "32"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    said = " ".join(out.split())
    assert "block2/add/out: verdict matches, frozen range [" in said
    assert "threads 1: batch 1, p50 ms " in said


def test_a_path_that_the_frame_cannot_hold_stands_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("a" * 100)
    folder.mkdir()
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["quantize", MODEL, "--data", CALIB, "--samples", "32", "-o", str(folder / "q.onnx")]) == 0
    out = capsys.readouterr().out
    assert str(folder / "q.onnx") in out.partition("╭")[0].replace("\n", "")


def test_a_table_of_nothing_says_so_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", MODEL, "--data", CALIB, "--exclude", ".*", "-o", "table.json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("table.json: 0 tensors, ")
    assert "nothing of it is calibrated" in out[1]

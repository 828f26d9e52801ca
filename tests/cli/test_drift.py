"""``requant drift`` from the command line: a gate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.cli.clear import assert_clear
from tests.digits import CALIB, EVAL, MODEL

import requant
from requant.cli import main

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    requant.quantize(MODEL, CALIB, threads=1).save("q.onnx")
    image = np.load(EVAL)["image"][:40]
    np.savez("live.npz", image=image)
    np.savez("bright.npz", image=3 * image)


def test_matching_traffic_passes(live: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drift", "q.onnx", "--data", "live.npz"]) == 0
    captured = capsys.readouterr()
    assert "q.onnx: matches (40 requests looked at)" in captured.out
    assert captured.err == ""


def test_drift_fails_the_gate(live: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drift", "q.onnx", "--data", "bright.npz", "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["schema"] == 1
    assert {t["name"]: t["verdict"] for t in found["tensors"]}["image"] == "wider"
    assert captured.err.startswith("error[RQ610]: live values do not match the frozen ranges of ")
    assert len(captured.err.splitlines()) <= 6


def test_only_some_tensors(live: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", MODEL, "--data", CALIB, "-o", "t.json"]) == 0
    capsys.readouterr()
    assert main(["drift", "q.onnx", "--data", "live.npz", "--tensor", "image", "--table", "t.json", "--json"]) == 0
    assert [t["name"] for t in json.loads(capsys.readouterr().out)["tensors"]] == ["image"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["q.onnx"], ["--data"]),
        (["nope.onnx", "--data", "live.npz"], ["nope.onnx does not exist"]),
        (["q.onnx", "--data", "nope.npz"], ["nope.npz"]),
        (["q.onnx", "--data", "live.npz", "--tensor", "imgae"], ["did you mean 'image'"]),
        ([MODEL, "--data", "live.npz"], ["has no frozen ranges"]),
        (["q.onnx", "--data", "live.npz", "--threads", "-1"], ["expected threads of at least 0, got -1"]),
        (["q.onnx", "--data", "live.npz", "--table", "nope.json"], ["nope.json does not exist"]),
    ],
)
def test_bad_input_is_told_in_six_lines(
    live: None, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert main(["drift", *arguments]) == 2
    assert_clear(capsys, words)

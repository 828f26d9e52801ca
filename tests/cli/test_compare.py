"""``requant compare`` from the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.cli.clear import assert_clear
from tests.digits import CALIB, EVAL, MODEL

import requant
from requant.cli import main

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    requant.quantize(MODEL, CALIB, threads=1).save("q.onnx")
    return tmp_path


def test_a_table_of_tensors_speed_and_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", MODEL, "q.onnx", "--data", EVAL, "--latency-batches", "1,3"]) == 0
    out = capsys.readouterr().out
    for word in ("output logits", "10 worst of", "clipped", "p95 ms", "speedup", "MiB peak"):
        assert word in out
    assert [p.name for p in folder.iterdir()] == ["q.onnx"]


def test_a_model_equals_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", MODEL, MODEL, "--data", EVAL, "--no-latency", "--html", "page.html"]) == 0
    assert "output logits  equal, cosine 1.000000" in capsys.readouterr().out
    assert "equal, cosine 1.000000" in (folder / "page.html").read_text()


def test_json_is_alone_and_holds_every_tensor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", MODEL, "q.onnx", "--data", EVAL, "--no-latency", "--json", "--samples", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 64
    assert len(found["tensors"]) > 10
    assert found["timings"] == []
    assert main(["compare", MODEL, "q.onnx", "--data", EVAL, "--no-latency"]) == 0
    assert "p95" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([MODEL, "--data", EVAL], ["QUANTIZED"]),
        ([MODEL, "q.onnx"], ["--data"]),
        ([MODEL, "nope.onnx", "--data", EVAL], ["nope.onnx does not exist"]),
        ([MODEL, "q.onnx", "--data", "nope.npz"], ["nope.npz"]),
        ([MODEL, "q.onnx", "--data", EVAL, "--latency-batches", "1,x"], ["--latency-batches", "'1,x'"]),
        ([MODEL, "q.onnx", "--data", EVAL, "--latency-batches", "0"], ["at least 1"]),
    ],
)
def test_bad_input_is_told_in_six_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert main(["compare", *arguments]) == 2
    assert_clear(capsys, words)

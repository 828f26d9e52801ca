"""Measuring from the command line: ``evaluate``, and ``quantize --eval --metric``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.cli.clear import assert_clear
from tests.digits import CALIB, EVAL, MODEL

from requant.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_a_model_is_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", MODEL, "--data", EVAL]) == 0
    out = capsys.readouterr().out
    for word in ("top1", "0.990000", "higher is better", "labels", "eval.npz, 500 samples"):
        assert word in out
    assert main(["evaluate", MODEL, "--data", EVAL, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("quick_latency")
def test_a_quantized_model_beside_its_float_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["quantize", MODEL, "--data", CALIB, "-o", "q.onnx", "--eval", EVAL, "--metric", "top5", "--json"]
    assert main(line) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert accuracy["metric"] == "top5"
    assert main(["evaluate", "q.onnx", "--data", EVAL, "--metric", "top5", "--float", MODEL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["value"] == accuracy["quantized_value"]
    assert found["float_value"] == accuracy["float_value"]
    assert main(["evaluate", "q.onnx", "--data", EVAL, "--float", MODEL]) == 0
    assert "% kept" in capsys.readouterr().out
    assert main(["evaluate", "q.onnx", "--data", CALIB, "--float", MODEL, "--metric", "cosine"]) == 0
    assert "float model" in capsys.readouterr().out


def test_a_function_in_the_current_folder_is_a_metric(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("requant_cli_metric.py").write_text(
        "def right(outputs, labels):\n    return (outputs['logits'].argmax(axis=1) == labels).sum()\n"
    )
    line = ["evaluate", MODEL, "--data", EVAL, "--samples", "100", "--metric", "requant_cli_metric:right", "--json"]
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 100
    assert 95 <= found["value"] <= 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([MODEL], ["--data"]),
        ([MODEL, "--data", EVAL, "--metrc", "mse"], ["--metrc", "did you mean '--metric'"]),
        ([MODEL, "--data", EVAL, "--metric", "perplexty"], ["perplexty", "did you mean 'perplexity'"]),
        ([MODEL, "--data", EVAL, "--metric", "perplexity"], ["needs logits [batch, tokens, vocabulary]", "[32, 10]"]),
        ([MODEL, "--data", EVAL, "--metric", "mse"], ["mse needs a target for each value", "[32, 10]", "[32]"]),
        ([MODEL, "--data", EVAL, "--metric", "no.such:f"], ["'no.such' cannot be imported"]),
        ([MODEL, "--data", EVAL, "--labels", "label"], ["no labels 'label'", "did you mean 'labels'"]),
        ([MODEL, "--data", CALIB], ["no labels", "--labels NAME"]),
        ([MODEL, "--data", CALIB, "--metric", "mae"], ["--float FILE"]),
        ([MODEL, "--data", EVAL, "--float", "nope.onnx"], ["nope.onnx does not exist"]),
        ([MODEL, "--data", EVAL, "--threads", "-1"], ["threads is -1"]),
        (["text.onnx", "--data", EVAL], ["not an ONNX model"]),
        ([MODEL, "--data", "odd.npz"], ["one label in 0..9"]),
    ],
)
def test_bad_input_is_told_in_six_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    Path("text.onnx").write_text("hello")
    with np.load(EVAL) as data:
        np.savez("odd.npz", image=data["image"][:20], labels=data["labels"][:20] + 10)
    assert main(["evaluate", *arguments]) == 2
    assert_clear(capsys, words)
    assert sorted(p.name for p in folder.iterdir()) == ["odd.npz", "text.onnx"]

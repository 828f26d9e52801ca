"""``requant quantize --keep`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.clear import assert_clear
from tests.digits import CALIB, EVAL, MODEL

from requant.cli import main
from requant.search import floats as search

pytestmark = pytest.mark.usefixtures("quick_latency", "fast_integers")


def test_the_models_walked_and_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["quantize", MODEL, "--data", CALIB, "--keep", "0.9995", "-o", "a.onnx", "--save-recipe", "r.toml"]
    assert main(line) == 0
    out = capsys.readouterr().out
    for word in ("Models tried to keep 0.9995", "entropy", "of output fidelity", "share", "Left in float: ", "->"):
        assert word in out
    assert main(["quantize", MODEL, "--data", CALIB, "--recipe", "r.toml", "-o", "b.onnx", "-q"]) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["a.onnx", "b.onnx", "r.toml"]


def test_a_metric_may_be_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--data", EVAL, "--keep", "0.9", "--json", "-o", "a.onnx"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["keep"]["kept"] == "top1"
    assert found["keep"]["share"] >= 0.9
    assert found["keep"]["met"] is True
    assert found["keep"]["evaluated"] is None


def test_evaluation_samples_tell_whether_the_model_found_is_good(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["quantize", MODEL, "--data", CALIB, "--eval", EVAL, "--json", "-o", "a.onnx"]
    assert main([*line, "--keep", "0.98"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["keep"]["kept"] == "output fidelity"
    assert found["keep"]["evaluated"] == found["accuracy"]["quantized_value"] / found["accuracy"]["float_value"]


def test_an_interrupt_saves_the_best_model(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = search.Search._vary

    def interrupted(self: search.Search) -> Any:
        walk(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(search.Search, "_vary", interrupted)
    assert main(["quantize", MODEL, "--data", CALIB, "--keep", "0.9999", "-o", "a.onnx", "-q"]) == 130
    assert "was saved; it keeps 0.99" in capsys.readouterr().err
    assert Path("a.onnx").exists()


def test_a_target_that_cannot_be_met_saves_the_best_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--data", CALIB, "--keep", "1", "-o", "a.onnx", "-q"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error[RQ600]: the best of")
    assert "1 was asked for" in captured.err
    assert len(captured.err.splitlines()) <= 6
    assert Path("a.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", "lots"], ["--keep", "'lots'"]),
        (["--keep", "1.5"], ["keep is 1.5", "at most 1"]),
        (["--keep", "0.9", "--table", "t.json"], ["--table", "--keep"]),
        (["--keep", "0.9", "--eval", EVAL, "--metric", "mae"], ["mae of the float model is 0"]),
        (["--keep", "0.9", "--eval", CALIB], ["has no labels"]),
    ],
)
def test_bad_input_is_told_in_six_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert main(["quantize", MODEL, "--data", CALIB, "-o", "a.onnx", *arguments]) == 2
    assert_clear(capsys, words)
    assert not list(folder.iterdir())


def test_no_data_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--keep", "0.9"]) == 2
    assert "--data" in capsys.readouterr().err

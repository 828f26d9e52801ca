"""Nothing that was there is lost, and nothing that is said is false."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.digits import DIGITS

from requant.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("digits.onnx", "calib.npz", "eval.npz"):
        shutil.copy(DIGITS / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "digits.onnx", "--data", "calib.npz", "-o", "digits.onnx"],
        ["calibrate", "digits.onnx", "--data", "calib.npz", "-o", "calib.npz"],
        ["quantize", "digits.onnx", "--data", "calib.npz", "-o", "./calib.npz"],
        ["quantize", "digits.onnx", "--data", "calib.npz", "--eval", "eval.npz", "-o", "eval.npz"],
        ["quantize", "digits.onnx", "--data", "calib.npz", "-o", "x", "--report", "x"],
        ["quantize", "digits.onnx", "--data", "calib.npz", "-o", "x", "--save-recipe", "./x"],
    ],
)
def test_no_output_takes_the_place_of_an_input_or_of_another(folder: Path, arguments: list[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(arguments) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_samples_limit_calibration_and_not_evaluation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["quantize", "digits.onnx", "--data", "calib.npz", "--eval", "eval.npz", "--samples", "20", "-o", "q.onnx"]
    assert main([*line, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["calibration_samples"], report["accuracy"]["samples"]) == (18, 500)


@pytest.mark.parametrize("labels", [np.eye(10)[np.zeros(500, int)], np.full(500, 11), np.array(["3"] * 500), None])
def test_labels_that_are_no_classes_are_refused(
    folder: Path, labels: np.ndarray | None, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.load("eval.npz")["image"]
    arrays = {"image": image} if labels is None else {"image": image, "labels": labels}
    np.savez("bad.npz", **arrays)
    assert main(["quantize", "digits.onnx", "--data", "calib.npz", "--eval", "bad.npz", "-o", "q.onnx"]) == 2
    assert "label" in capsys.readouterr().err
    assert not Path("q.onnx").exists()


def test_a_table_without_samples_measures_nothing_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "digits.onnx", "--data", "calib.npz", "-o", "t.json", "-q"]) == 0
    assert main(["quantize", "digits.onnx", "--table", "t.json", "-o", "q.onnx", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["latency"] is None
    assert not report["outputs"]
    assert any("no samples" in note for note in report["notes"])


def test_names_are_printed_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load("digits.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["a[/foo]:smile:" if name == "stem/relu/out" else name for name in names]
    place = folder / "ünï [bold]" / "[/x]"
    place.mkdir(parents=True)
    onnx.save(model, place / "m.onnx")
    assert main(["calibrate", str(place / "m.onnx"), "--data", "calib.npz", "-o", "t.json"]) == 0
    assert "a[/foo]:smile:" in capsys.readouterr().out
    assert main(["quantize", str(place / "m.onnx"), "--data", "calib.npz", "-o", str(place / "q.onnx")]) == 0
    assert "[bold]/[/x]/m.onnx" in capsys.readouterr().out.replace("\n", "")


def test_names_command_no_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load("digits.onnx")
    for node in model.graph.node:
        node.output[:] = ["\x1b[2Jlogits\x9b" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "\x1b[2Jlogits\x9b"
    onnx.save(model, "m.onnx")
    assert main(["quantize", "m.onnx", "--data", "calib.npz", "-o", "q.onnx"]) == 0
    out = capsys.readouterr().out
    assert "output \u241b[2Jlogits\ufffd" in out
    assert main(["inspect", "\x1b[2J.onnx"]) == 2
    assert "\u241b[2J.onnx does not exist" in (error := capsys.readouterr().err)
    assert not {"\x1b", "\x9b"} & set(out + error)


def test_a_reader_that_leaves_early_is_no_failure(folder: Path) -> None:
    line = f"{sys.executable} -m requant inspect digits.onnx | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_instruction_set_is_refused(folder: Path) -> None:
    line = [sys.executable, "-m", "requant", "quantize", "digits.onnx", "--data", "calib.npz", "-o", "q.onnx"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={"REQUANT_ISA": "mmx", "PATH": ""})
    assert done.returncode == 2
    assert "mmx" in done.stderr
    assert not Path("q.onnx").exists()


@pytest.mark.parametrize("step", range(4))
def test_a_disk_that_fills_up_leaves_every_output_as_it_was(
    folder: Path, step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ["q.onnx", "r.json", "r.html", "recipe.toml"]
    for name in outputs:
        Path(name).write_text("old")
    right, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > step:
            raise OSError(errno.ENOSPC, "No space left on device")
        right(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    line = ["quantize", "digits.onnx", "--data", "calib.npz", "-o", "q.onnx", "--report", "r.json", "--html", "r.html"]
    assert main([*line, "--save-recipe", "recipe.toml"]) == 2
    assert "nothing was changed" in capsys.readouterr().err
    assert [Path(name).read_text() for name in outputs] == ["old"] * 4
    assert not list(folder.glob(".requant*"))

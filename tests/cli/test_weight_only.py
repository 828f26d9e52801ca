"""``--weight-only`` on the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tests import models

from requant.cli import main

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(models.language_model(), tmp_path / "lm.onnx")
    np.savez(tmp_path / "tokens.npz", input_ids=models.tokens(32)["input_ids"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_language_model_from_file_to_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", "lm.onnx", "--weight-only", "int4", "--data", "tokens.npz", "--save-recipe", "recipe.toml"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["quantized"] == {"MatMul": 7, "Gather": 1}
    assert report["config"]["weight_only"] == "int4"
    assert report["calibration_samples"] == 28
    assert any("tokens per second" in note for note in report["notes"])
    first = (folder / "lm.int4.onnx").read_bytes()
    assert main(["quantize", "lm.onnx", "--recipe", "recipe.toml", "--data", "tokens.npz", "-q"]) == 0
    assert (folder / "lm.int4.onnx").read_bytes() == first


def test_the_plan_needs_no_data_and_names_what_stays_float(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", "lm.onnx", "--weight-only", "int4", "--algorithm", "gptq", "--exclude", "head"]
    assert main([*arguments, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {node["name"]: node["scheme"]["bits"] for node in plan["blocked"]}["gate0"] == 4
    assert {skip["node"]: skip["reason"] for skip in plan["skipped"]}["head"] == "excluded by 'head'"
    assert not (folder / "lm.int4.onnx").exists()
    assert main([*arguments]) == 2
    assert "algorithm gptq needs calibration data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--block-size", "24"], "block_size is 24"),
        (["--keep", "0.99", "--target-bits", "5", "--data", "tokens.npz"], "keep and target_bits both choose"),
        (["--keep", "0.99"], "--data"),
        (["--dynamic"], "dynamic has no meaning for weight-only quantization"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_does_not_fit_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "lm.onnx", "--weight-only", "int4", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("quick_latency")
def test_the_fewest_bits_that_keep_a_share(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["quantize", "lm.onnx", "--weight-only", "int4", "--algorithm", "rtn", "--data", "tokens.npz"]
    assert main([*line, "--keep", "0.999", "-o", "a.onnx", "--save-recipe", "r.toml"]) == 0
    out = capsys.readouterr().out
    for word in ("Models tried to keep 0.999", "rtn, bits ", "cosine of the outputs", "->"):
        assert word in out
    recipe = ["quantize", "lm.onnx", "--recipe", "r.toml", "--data", "tokens.npz", "-o", "b.onnx", "-q"]
    assert main(recipe) == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    assert main([*line, "--keep", "1", "-o", "c.onnx", "-q"]) == 1
    assert "1 was asked for" in capsys.readouterr().err
    assert (folder / "c.onnx").exists()

"""Checkpoints quantized without a graph, read back by the formulas of their layout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import requant
from requant.checkpoint.safetensors import Checkpoint
from requant.cli import main

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
TENSORS: dict[str, Any] = {
    "a.weight": RNG.standard_normal((8, 128)).astype(np.float32),
    "b.weight": RNG.standard_normal((4, 64)).astype(np.float16),
    "odd.weight": RNG.standard_normal((4, 50)).astype(np.float32),
    "embed.weight": RNG.standard_normal((4, 64)).astype(np.float32),
    "norm.weight": np.ones(64, np.float32),
    "table": np.ones((4, 64), np.float32),
    "ids": np.arange(3),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    return path


def unpacked(found: dict[str, np.ndarray], name: str, bits: int) -> np.ndarray:
    packed, scale = found[f"{name}_packed"], found[f"{name}_scale"]
    n, k = found[f"{name}_shape"]
    q = np.zeros((n, k), np.int64)
    for column in range(k):
        word, place = divmod(column * bits, 32)
        q[:, column] = (packed[:, word].astype(np.int64) >> place) & (2**bits - 1)
    blocks = (q - 2 ** (bits - 1)).reshape(n, scale.shape[1], -1)
    return np.asarray(blocks * scale[:, :, None]).reshape(n, k)


@pytest.mark.parametrize(("bits", "block_size", "noise"), [(8, 0, 1e-4), (8, 32, 1e-4), (4, 32, 0.02), (2, 16, 0.3)])
def test_matrices_follow_from_their_integers(checkpoint: Path, bits: int, block_size: int, noise: float) -> None:
    output = checkpoint.with_name("out.safetensors")
    report = requant.quantize_checkpoint(checkpoint, output, bits=bits, block_size=block_size)
    found = load_file(output)
    for name in ("a.weight", "b.weight"):
        w = TENSORS[name].astype(np.float64)
        error = np.sum((unpacked(found, name, bits) - w) ** 2) / np.sum(w**2)
        assert error < noise
        (told,) = [tensor for tensor in report.tensors if tensor.name == name]
        assert told.sqnr_db == pytest.approx(-10 * np.log10(error), abs=1e-3)
        assert found[f"{name}_packed"].dtype == np.int32
    kept = {tensor.name: tensor.reason for tensor in report.tensors if tensor.reason}
    if block_size:
        assert kept["odd.weight"] == f"rows of 50 values do not divide into {block_size}"
    assert kept["embed.weight"] == "excluded"
    assert (kept["norm.weight"], kept["ids"]) == ("no matrix", "no reals")
    for name in kept:
        assert np.array_equal(found[name], TENSORS[name])
    with safe_open(output, "np") as file:
        config = json.loads(file.metadata()["quantization_config"])
    assert config == report.quantization_config
    assert config["config_groups"]["group_0"]["weights"]["num_bits"] == bits
    assert "embed" in config["ignore"]


def test_bfloat16_is_read_and_kept(tmp_path: Path) -> None:
    brain = {name: TENSORS["a.weight"].astype(ml_dtypes.bfloat16) for name in ("a.weight", "lm_head.weight")}
    save_file(brain, tmp_path / "in.safetensors")
    requant.quantize_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = Checkpoint(tmp_path / "out.safetensors")
    assert found.entries["lm_head.weight"].dtype == "BF16"
    assert np.array_equal(found.read("lm_head.weight"), brain["lm_head.weight"].astype(np.float32))


def test_wrong_wishes_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    with pytest.raises(requant.ConfigError, match="pack integers of 2, 4 or 8 bits"):
        requant.quantize_checkpoint(checkpoint, output, bits=3)
    with pytest.raises(requant.ConfigError, match="needs data"):
        requant.quantize_checkpoint(checkpoint, output, algorithm="gptq")
    with pytest.raises(requant.OutputError, match="would overwrite"):
        requant.quantize_checkpoint(checkpoint, checkpoint)
    with pytest.raises(requant.ModelError, match="no matrix to quantize"):
        requant.quantize_checkpoint(checkpoint, output, block_size=256)
    broken = TENSORS["a.weight"].copy()
    broken[3, 5] = np.nan
    save_file({"a.weight": broken}, checkpoint)
    with pytest.raises(requant.DataError, match=r"'a.weight'.*\[3, 5\]|'a.weight'.*\(3, 5\)"):
        requant.quantize_checkpoint(checkpoint, output)
    assert not output.exists()


def test_from_the_command_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert main(["quantize", "model.safetensors", "--weight-only", "int8", "--block-size", "64"]) == 0
    assert "2 of 7 in int8" in capsys.readouterr().out
    assert unpacked(load_file("model.int8.safetensors"), "a.weight", 8).shape == (8, 128)
    assert main(["quantize", "model.safetensors", "--weight-only", "int4", "--json", "-o", "o.safetensors"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1
    for line, words in (
        ([], "say --weight-only"),
        (["--weight-only", "int4", "--data", "x.npz"], "--data has no meaning"),
        (["--weight-only", "int3"], "2, 4 or 8 bits"),
        (["--weight-only", "int4", "--asymmetric"], "--asymmetric has no meaning"),
        (["--weight-only", "int4", "--algorithm", "gptq"], "needs data"),
    ):
        assert main(["quantize", "model.safetensors", *line]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [["--target-bits", "6"], ["--activations", "int8"], ["--format", "qdq"], ["--include", "x"], ["--show", "x"]],
)
def test_options_that_a_checkpoint_has_no_use_for_are_refused(
    checkpoint: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = checkpoint.with_name("out.safetensors")
    assert main(["quantize", str(checkpoint), "--weight-only", "int4", "-o", str(output), *option]) == 2
    assert f"{option[0]} has no meaning for a checkpoint" in capsys.readouterr().err
    assert not output.exists()

"""``requant gguf`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

import requant
from requant.cli import main

W = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file({"a.weight": W, "b.weight": W[:, :96].copy(), "norm": W[0]}, "model.safetensors")
    return tmp_path


def test_a_file_is_written_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["gguf", "model.safetensors", "-o", "out.gguf", "--type", "q6_k", "--tensor-type", "b.*=q4_1"]
    assert main([*line, "--metadata", "general.architecture=llama", "--metadata", "llama.context_length=7"]) == 0
    out = capsys.readouterr().out
    for words in (
        "model.safetensors -> out.gguf",
        "q6_k 1",
        "q4_1 1",
        "f32 1",
        "bits a weight",
        "no matrix",
        "a.weight",
    ):
        assert words in out
    assert "no architecture" not in out
    reader = gguf.GGUFReader("out.gguf")
    assert reader.fields["llama.context_length"].contents() == 7
    assert [t.tensor_type.name for t in reader.tensors] == ["Q6_K", "Q4_1", "F32"]


def test_json_is_alone_on_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gguf", "model.safetensors", "-o", "out.gguf", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["output"], found["dtype"]) == (1, "out.gguf", "q4_k")
    assert [(t["name"], t["dtype"]) for t in found["tensors"]] == [
        ("a.weight", "q4_k"),
        ("b.weight", "q5_0"),
        ("norm", "f32"),
    ]
    assert found["bytes"] == Path("out.gguf").stat().st_size
    assert found["worst"] == ["a.weight", "b.weight"]
    assert main(["gguf", "model.safetensors", "-o", "out.gguf", "-q"]) == 0
    assert capsys.readouterr().out == ""


def test_the_way_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gguf", "model.safetensors", "-o", "out.gguf", "-q"]) == 0
    assert main(["gguf", "out.gguf", "-o", "back.npz"]) == 0
    assert "out.gguf -> back.npz" in capsys.readouterr().out
    assert set(np.load("back.npz").files) == {"a.weight", "b.weight", "norm"}
    assert np.array_equal(np.load("back.npz")["a.weight"], requant.read_gguf("out.gguf")["a.weight"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["model.safetensors", "-o", "model.safetensors"], "would overwrite"),
        (["model.safetensors", "-o", "out.gguf", "--type", "q4k"], "did you mean 'q4_k'"),
        (["model.safetensors", "-o", "out.gguf", "--metadata", "x"], "not a name and a value"),
        (["model.safetensors", "-o", "out.gguf", "--tensor-type", "c=q8_0"], "no tensor is called 'c'"),
        (["model.safetensors", "-o", "out.gguf", "--data", "x.npz"], "no graph to run data through"),
        (["nothing.safetensors", "-o", "out.gguf"], "does not exist"),
        (["model.safetensors", "-o", "out.npz"], "names another format, and what is written is GGUF"),
        (["nothing.gguf", "-o", "out.npz"], "does not exist"),
        (["model.gguf", "-o", "out.npz", "--type", "q4_k"], "--type says how a GGUF file is written"),
        (["model.gguf", "-o", "out.onnx"], "expected .npz or .safetensors"),
        (["model.safetensors", "-o", "nowhere/out.gguf"], "does not exist"),
    ],
)
def test_mistakes_are_told_in_a_few_lines(
    folder: Path, line: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gguf", *line]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 6
    assert not Path("out.gguf").exists()

"""``requant edit`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.cli.clear import assert_clear
from tests.models import conv_relu, run, samples

import requant
from requant.cli import main
from requant.cli.edit import parse_spec

OPTIONS = {"scale": 1, "zero_point": 1, "mean": None, "range": 2}


@pytest.fixture(scope="module")
def quantized() -> bytes:
    return requant.quantize(conv_relu(), samples(conv_relu(), 16), threads=1).data


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: bytes) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("q.onnx").write_bytes(quantized)
    onnx.save(conv_relu(), "float.onnx")
    return tmp_path


def test_edit_writes_a_model_and_tells_what_its_integers_stand_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["edit", "q.onnx", "--input", "x=uint8:mean=0.5,0.4,0.3,std=0.2", "--output", "y=uint8", "-o", "edge.onnx"]
    assert main(line) == 0
    out = capsys.readouterr().out
    for words in ("input x", "(q * 0.00392157 - [0.5, 0.4, 0.3]) / 0.2", "removed DequantizeLinear", "output y: equal"):
        assert words in out
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    assert run(Path("edge.onnx").read_bytes(), {"x": pixels})[0].dtype == np.uint8


def test_json_is_alone_on_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "q.onnx", "--input", "x=int8", "-o", "edge.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["output"], found["bytes"]) == (1, "edge.onnx", Path("edge.onnx").stat().st_size)
    (boundary,) = found["boundaries"]
    assert (boundary["kind"], boundary["name"], boundary["dtype"], boundary["exact"]) == ("input", "x", "int8", True)
    assert found["differences"] == {"y": 0.0}
    assert main(["edit", "q.onnx", "--input", "x=int8", "-o", "edge.onnx", "-q"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image=uint8", ("image", "uint8", {})),
        ("serving:0=uint8:scale=0.5,zero_point=-3", ("serving:0", "uint8", {"scale": 0.5, "zero_point": -3})),
        ("a=b=int8:mean=1,2,3,scale=1e-3", ("a=b", "int8", {"mean": (1.0, 2.0, 3.0), "scale": 1e-3})),
        ("y=int8:range=-8,8", ("y", "int8", {"range": (-8.0, 8.0)})),
        ("tensor y/1=int8", ("tensor y/1", "int8", {})),
    ],
)
def test_specs_are_read(text: str, expected: tuple[str, str, dict[str, Any]]) -> None:
    assert parse_spec("--input", text, OPTIONS) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["q.onnx"], ["nothing to convert"]),
        (["q.onnx", "--input", "xx=uint8"], ["no input 'xx'", "did you mean 'x'"]),
        (["q.onnx", "--input", "x=float"], ["dtype is 'float'", "uint8, int8, uint16, int16"]),
        (["q.onnx", "--input", "x=unt8"], ["'unt8'", "did you mean 'uint8'", "uint8, int8, uint16, int16"]),
        (["q.onnx", "--input", "x"], ["NAME=TYPE", "-o FILE"]),
        (["q.onnx", "--input", "x=uint8:"], ["after the colon"]),
        (["q.onnx", "--input", "x=uint8:0.5"], ["after the colon", "'0.5'"]),
        (["q.onnx", "--input", "x=uint8:scal=1"], ["'scal'", "did you mean 'scale'"]),
        (["q.onnx", "--input", "x=uint8:scale=1,scale=2"], ["given twice"]),
        (["q.onnx", "--input", "x=uint8:scale=one"], ["'one'", "expected numbers"]),
        (["q.onnx", "--input", "x=uint8:scale=1,zero_point=0.5"], ["'0.5'", "expected an integer"]),
        (["q.onnx", "--input", "x=uint8:range=0,1"], ["'range'", "choose from scale"]),
        (["q.onnx", "--output", "y=uint8:range=1"], ["range takes 2", "got 1"]),
        (["q.onnx", "--output", "edge.onnx"], ["NAME=TYPE", "-o FILE"]),
        (["float.onnx", "--input", "x=uint8"], ["float.onnx is not quantized"]),
        (["nope.onnx", "--input", "x=uint8"], ["nope.onnx does not exist"]),
        (["q.onnx", "--input", "x=uint8", "--input", "x=uint8"], ["uint8 already"]),
        (["q.onnx", "--input", "x=uint8", "-o", "q.onnx"], ["would overwrite"]),
        (["q.onnx", "--input", "x=uint8", "-o", "no/folder.onnx"], ["does not exist"]),
    ],
)
def test_bad_input_is_told_in_six_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    output = [] if "-o" in arguments else ["-o", "edge.onnx"]
    assert main(["edit", *output, *arguments]) == 2
    assert_clear(capsys, words)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

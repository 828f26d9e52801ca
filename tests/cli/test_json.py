"""What any command prints with ``--json`` is JSON as the standard has it, whatever the figures are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from tests.models import Net

import requant
from requant.cli import main
from requant.documents import finite, json_text
from requant.report import OutputQuality

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")

DATA = ["--data", "data.npz"]
COMMANDS = {
    "quantize": ["quantize", "float.onnx", *DATA, "-o", "out.onnx", "--show", "h"],
    "quantize --keep": ["quantize", "float.onnx", *DATA, "-o", "out.onnx", "--keep", "0.5"],
    "quantize --weight-only": ["quantize", "float.onnx", "-o", "out.onnx", "--weight-only", "int8"],
    "calibrate": ["calibrate", "float.onnx", *DATA, "-o", "table.json"],
    "inspect": ["inspect", "float.onnx"],
    "evaluate": ["evaluate", "q.onnx", *DATA, "--float", "float.onnx", "--metric", "mse"],
    "compare": ["compare", "float.onnx", "float.onnx", *DATA, "--no-latency"],
    "compare with float64": ["compare", "float64.onnx", "float64.onnx", *DATA, "--no-latency"],
    "sensitivity": ["sensitivity", "float.onnx", *DATA],
    "drift": ["drift", "q.onnx", *DATA],
    "edit": ["edit", "q.onnx", "--input", "x=uint8", "-o", "out.onnx"],
    "gguf": ["gguf", "float.onnx", "-o", "out.gguf", "--type", "q8_0"],
    "doctor": ["doctor"],
}


def degenerate() -> Any:
    """One output that is always zero, one that is constant, and one of large numbers."""
    net = Net()
    x = net.input("x", ["n", 32])
    hidden = net.op("MatMul", x, net.normal(32, 32, scale=1e15), output="h")
    zero = net.op("MatMul", hidden, net.const(np.zeros((32, 32))), output="zero")
    constant = net.op("Gemm", x, net.const(np.zeros((32, 32))), net.const(np.full(32, 3.0)), output="constant")
    return net.model(zero, constant, net.op("MatMul", hidden, net.normal(32, 32, scale=1e15), output="large"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("json")
    model = degenerate()
    x = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    (made / "float.onnx").write_bytes(model.SerializeToString())
    np.savez(made / "data.npz", x=x)
    requant.quantize(model, {"x": x}, threads=1).save(made / "q.onnx")
    net = Net()
    net.initializers.append(numpy_helper.from_array(np.full(32, 1e200), "huge"))
    wide = net.op("Mul", net.op("Cast", net.input("x", ["n", 32]), to=TensorProto.DOUBLE), "huge")
    (made / "float64.onnx").write_bytes(net.model(net.op("Identity", wide, output="y")).SerializeToString())
    return made


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_every_command_prints_json(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line, "--json"]) in {0, 1}
    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document["schema"] == 1


def test_numbers_that_are_not_finite_are_null() -> None:
    odd = {"a": math.inf, "b": [1.5, -math.inf, {"c": (math.nan, "inf", 3)}], "d": None}
    assert json.loads(json_text(finite(odd))) == {"a": None, "b": [1.5, None, {"c": [None, "inf", 3]}], "d": None}


def test_results_as_dicts_have_none_instead() -> None:
    result = requant.evaluate("float.onnx", "data.npz", float_model="float.onnx", metric="mse")
    assert result.to_dict()["value"] == 0.0
    lost = OutputQuality("y", -math.inf, math.nan, math.inf)
    report = requant.quantize("float.onnx", "data.npz", threads=1).report
    changed = replace(report, outputs=(lost,))
    assert changed.to_dict()["outputs"] == ({"name": "y", "sqnr_db": None, "cosine": None, "max_error": None},)
    assert json.loads(changed.to_json(), parse_constant=refuse)["outputs"][0]["cosine"] is None

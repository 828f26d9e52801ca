"""``requant quantize --show``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.digits import CALIB, MODEL

import requant
from requant.cli import main
from requant.errors import ConfigError

LINE = ["quantize", MODEL, "--data", CALIB, "-o", "q.onnx"]

pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_tensor_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--show", "worst", "--show", "image"]) == 0
    out = capsys.readouterr().out
    assert out.count("<- chosen") == 2
    assert "├────" in out
    assert "rounding" in out


def test_json_holds_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--show", ".*silu/out", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["shown"]
    assert len(shown) > 1
    assert all(view["name"].endswith("silu/out") and view["curve"] for view in shown)


def test_a_name_that_means_nothing_is_refused_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--show", "imgae"]) == 2
    assert "did you mean 'image'" in capsys.readouterr().err
    assert not Path("q.onnx").exists()


def test_from_python(digits: Path) -> None:
    result = requant.quantize(digits / "digits.onnx", digits / "calib.npz")
    found = result.view_range("image")
    reported = next(tensor for tensor in result.report.tensors if tensor.name == "image")
    assert (found.lo, found.hi, found.chosen.granular) == (reported.lo, reported.hi, reported.granular)
    with pytest.raises(ConfigError, match=r"no activation that was calibrated; did you mean 'image'"):
        result.view_range("imag")
    with pytest.raises(ConfigError, match="no activation"):
        requant.quantize(digits / "digits.onnx", dynamic=True).view_range("image")

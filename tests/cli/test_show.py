"""``requant quantize --show``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.digits import CALIB, MODEL

import requant
from requant.cli import main, show
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


@pytest.mark.parametrize("more", [[], ["--dynamic"], ["--weight-only", "int8"], ["--keep", "0.9"]])
def test_a_name_that_means_nothing_is_refused_before_the_work(
    more: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("quantize", "quantize_to_keep"):
        monkeypatch.setattr(requant, work, None)
    assert main([*LINE, *more, "--show", "image", "--show", "imgae"]) == 2
    error = capsys.readouterr().err
    assert "matches no activation that is calibrated" in error
    assert ("did you mean 'image'" if more in ([], ["--keep", "0.9"]) else "only static quantization") in error
    assert not Path("q.onnx").exists()


def test_what_stayed_float_in_the_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    result = requant.quantize(MODEL, CALIB)
    assert show.chosen(result, ["stem/.*", "image", "of the plan"]) == ["stem/relu/out", "image"]
    assert "--show 'of the plan' draws nothing: what it names stayed in float" in caplog.text


def test_from_python(digits: Path) -> None:
    result = requant.quantize(digits / "digits.onnx", digits / "calib.npz")
    found = result.view_range("image")
    reported = next(tensor for tensor in result.report.tensors if tensor.name == "image")
    assert (found.lo, found.hi, found.chosen.granular) == (reported.lo, reported.hi, reported.granular)
    with pytest.raises(ConfigError, match=r"no activation that was calibrated; did you mean 'image'"):
        result.view_range("imag")
    with pytest.raises(ConfigError, match="no activation"):
        requant.quantize(digits / "digits.onnx", dynamic=True).view_range("image")

"""``requant sensitivity`` from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.cli.clear import assert_clear
from tests.digits import CALIB, EVAL, MODEL

from requant.cli import main


def test_a_ranked_table_and_a_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", MODEL, "--data", CALIB, "--eval", EVAL, "--metric", "top5", "--plot", "p.svg"]) == 0
    out = capsys.readouterr().out
    for word in ("SQNR 30", "top5", "Conv", "Gemm", "noise", "alone in float"):
        assert word in out
    ET.parse("p.svg")
    assert [p.name for p in folder.iterdir()] == ["p.svg"]


def test_json_is_alone_and_a_table_gives_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", MODEL, "--data", CALIB, "-o", "t.json", "-q"]) == 0
    found = []
    for more in ([], ["--table", "t.json"]):
        assert main(["sensitivity", MODEL, "--data", CALIB, "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["schema"] == 1
    assert found[0]["parts"] == found[1]["parts"]
    assert found[0]["metric"] is None


def test_weights_alone_need_no_calibration(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", MODEL, "--data", CALIB, "--weight-only", "int4", "--eval", EVAL]) == 0
    out = capsys.readouterr()
    assert "calibrating" not in out.err
    for word in ("dB with all in integers", "top1", "Gemm"):
        assert word in out.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", CALIB], ["MODEL"]),
        ([MODEL], ["--data"]),
        ([MODEL, "--data", CALIB, "--depth", "0"], ["depth is 0"]),
        ([MODEL, "--data", CALIB, "--metric", "top5"], ["--metric", "give --eval DATA"]),
        ([MODEL, "--data", CALIB, "--depth", "x"], ["--depth", "'x'"]),
        ([MODEL, "--data", CALIB, "--plot", "no/p.svg"], ["does not exist"]),
        ([MODEL, "--data", CALIB, "--plot", MODEL], ["would overwrite"]),
        ([MODEL, "--data", CALIB, "--eval", CALIB], ["has no labels"]),
        ([MODEL, "--data", CALIB, "--eval", EVAL, "--metric", "topp1"], ["did you mean 'top1'"]),
        ([MODEL, "--data", CALIB, "--table", "nope.json"], ["nope.json does not exist"]),
        ([MODEL, "--data", CALIB, "--dynamic"], ["unknown option '--dynamic'", "requant sensitivity --help"]),
        ([MODEL, "--data", CALIB, "--optimize", "latency"], ["unknown option '--optimize'"]),
    ],
)
def test_bad_input_is_told_in_six_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert main(["sensitivity", *arguments]) == 2
    assert_clear(capsys, words)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("wrong", [["--depth", "0"], ["--dynamic"], ["--eval", EVAL, "--metric", "topp1"]])
def test_options_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("a model was read")

    monkeypatch.setattr("requant.search.trials.load_float", work)
    monkeypatch.setattr("requant.api.load_float", work)
    assert main(["sensitivity", MODEL, "--data", CALIB, *wrong]) == 2
    assert_clear(capsys, ["expected"] if "--depth" in wrong else ["help"])


def test_an_interrupt_leaves_nothing(folder: Path) -> None:
    # The metric says that the first trial is under way, and is slow: the interrupt meets a trial.
    Path("slow_metric.py").write_text(
        "import time\ndef slow(outputs, labels):\n    print('trial', flush=True)\n    time.sleep(1)\n    return 1\n"
    )
    before = sorted(p.name for p in folder.iterdir())
    line = [sys.executable, "-B", "-m", "requant", "sensitivity", MODEL, "--data", CALIB, "--plot", "p.svg"]
    line += ["--eval", EVAL, "--metric", "slow_metric:slow"]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert child.stdout is not None
    assert child.stdout.readline().startswith("trial")  # of two at once, it may be, whose lines mix
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "interrupted" in rest
    assert sorted(p.name for p in folder.iterdir()) == before

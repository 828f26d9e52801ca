"""The command line as a user meets it: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.cli.clear import assert_clear
from tests.digits import CALIB, EVAL, MODEL

import requant
from requant.cli import main


def test_quantize_writes_a_model_and_tells_about_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--data", CALIB, "--eval", EVAL, "-o", "out.onnx", "--report", "r.json"]) == 0
    out = capsys.readouterr().out
    for word in ("top1", "SQNR", "latency", "smaller", "Ten worst tensors", "clipped"):
        assert word in out
    report = json.loads(Path("r.json").read_text())
    assert report["schema"] == 1
    assert report["accuracy"]["float_value"] == pytest.approx(0.99)
    assert report["accuracy"]["quantized_value"] >= 0.98
    assert report["quantized_bytes"] == Path("out.onnx").stat().st_size
    assert len(report["worst"]) == 10
    assert sorted(p.name for p in folder.iterdir()) == ["out.onnx", "r.json"]


def test_json_is_alone_on_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--data", CALIB, "-o", "out.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == "out.onnx"


def test_quiet_prints_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--data", CALIB, "-o", "out.onnx", "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_default_output_lies_in_the_working_directory(folder: Path) -> None:
    assert main(["quantize", MODEL, "--data", CALIB, "-q"]) == 0
    assert Path("digits.int8.onnx").exists()


def test_a_table_gives_the_same_model_as_calibrating(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", MODEL, "--data", CALIB, "-o", "table.json"]) == 0
    out = capsys.readouterr().out
    for method in ("minmax", "percentile", "entropy", "mse", "sqnr"):
        assert method in out
    table = json.loads(Path("table.json").read_text())
    methods = ("minmax", "percentile", "entropy", "mse", "sqnr", "auto")
    ranges = next(iter(table["tensors"].values()))["ranges"]
    assert set(ranges) == {f"{method}{scheme}" for method in methods for scheme in ("", "_symmetric")}
    for method in ("mse", "entropy"):
        assert main(["quantize", MODEL, "--data", CALIB, "-o", "a.onnx", "-q", "--method", method]) == 0
        with_table = ["quantize", MODEL, "--data", CALIB, "--table", "table.json", "-o", "b.onnx", "-q"]
        assert main([*with_table, "--method", method]) == 0
        assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_a_saved_recipe_repeats_the_run(folder: Path) -> None:
    options = ["--method", "percentile", "--percentile", "99.9", "--symmetric", "--per-tensor", "--samples", "64"]
    assert main(["quantize", MODEL, "--data", CALIB, "-o", "a.onnx", "-q", "--save-recipe", "r.toml", *options]) == 0
    assert main(["quantize", MODEL, "--data", CALIB, "-o", "b.onnx", "-q", "--recipe", "r.toml"]) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_dry_run_and_inspect_need_no_data_and_write_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--dry-run", "--json"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert main(["inspect", MODEL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == dry
    assert dry["ops"]["BatchNormalization"] == 7
    assert {"Conv", "Gemm"} <= {node["op_type"] for node in dry["nodes"]}
    assert main(["inspect", MODEL]) == 0
    assert "Would be quantized" in capsys.readouterr().out
    assert not list(folder.iterdir())


def test_dynamic_needs_no_data_and_says_that_nothing_was_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["quantize", MODEL, "--dynamic", "-o", "out.onnx", "--report", "r.json", "--save-recipe", "r.toml"]) == 0
    )
    out = capsys.readouterr().out
    for word in ("not measured: no data", "found at run time", "Weights stored as int8", "checked on zeros"):
        assert word in out
    report = json.loads(Path("r.json").read_text())
    assert report["data"] == "no data"
    assert report["outputs"] == []
    assert report["latency"] is None
    assert report["config"]["dynamic"] is True
    assert "method" not in report["config"]
    assert sum(report["stored"].values()) >= 5
    assert main(["quantize", MODEL, "--recipe", "r.toml", "-o", "again.onnx", "-q"]) == 0
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()


def test_dynamic_with_data_compares_the_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--dynamic", "--data", CALIB, "--eval", EVAL, "-o", "out.onnx"]) == 0
    out = capsys.readouterr().out
    for word in ("top1", "SQNR", "latency", "(32 samples)"):
        assert word in out
    assert "not measured" not in out


def test_a_dynamic_plan_is_printed_without_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--dynamic", "--dry-run", "--json"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert main(["inspect", MODEL, "--dynamic", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == dry
    assert {node["form"] for node in dry["dynamic"]} == {"stored"}
    assert all(skip["reason"] for skip in dry["skipped"])
    assert main(["inspect", MODEL, "--dynamic"]) == 0
    assert "Weights would be stored as int8: Conv" in capsys.readouterr().out
    assert not list(folder.iterdir())


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cpu"]["kernels"] in found["cpu"]["available"]
    assert "generic" in found["cpu"]["available"]
    assert main(["doctor"]) == 0
    assert "kernels" in capsys.readouterr().out


def _write_bad_inputs() -> None:
    image = np.load(CALIB)["image"]
    nan = image.copy()
    nan[17, 0, 3, 3] = np.nan
    np.savez("name.npz", imgae=image)
    np.savez("nan.npz", image=nan)
    np.savez("uint8.npz", image=(image * 255).astype(np.uint8))
    np.savez("object.npz", image=np.array([{}], object))
    np.savez("none.npz", image=image[:0])
    Path("empty.onnx").touch()
    Path("text.onnx").write_text("hello")
    Path("short.onnx").write_bytes(Path(MODEL).read_bytes()[:5000])
    Path("bad.toml").write_text('methd = "mse"\n')
    Path("table.json").write_text("{}")
    shutil.copy(MODEL, "model.onnx")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND is missing"]),
        (["quantise"], ["quantise", "did you mean 'quantize'"]),
        (["model.onnx", "--data", "CALIB"], ["COMMAND is 'model.onnx'", "`requant quantize model.onnx`"]),
        (["quantize", "model.onnx", "--data", "CALIB", "--data", "none.npz"], ["--data is given twice", "'none.npz'"]),
        (["quantize", "model.onnx", "--", "--data", "CALIB"], ["unknown argument '--data'", "behind --"]),
        (["--dry-run", "quantize", "model.onnx"], ["'--dry-run' stands before the command"]),
        (["quantize"], ["MODEL is missing", "requant quantize --help"]),
        (["evaluate"], ["MODEL and --data are missing", "requant evaluate --help"]),
        (["calibrate"], ["MODEL, -o/--output and --data are missing"]),
        (["calibrate", "model.onnx", "--dta", "CALIB"], ["unknown option '--dta'; did you mean '--data'"]),
        (["quantize", "", "--data", "CALIB"], ["MODEL is an empty string"]),
        (["quantize", "model.onnx", "--data", "CALIB", "-o", ""], ["-o/--output is an empty string"]),
        (["quantize", "model.onnx", "--data", "CALIB", "--exclude", ""], ["--exclude is an empty string"]),
        (["quantize", "model.onnx", "--methd", "mse"], ["--methd", "did you mean '--method'", "quantize --help"]),
        (["quantize", "model.onnx", "--symmetric", "--asymmetric"], ["contradict each other"]),
        (["quantize", "model.onnx", "--keep", "most"], ["--keep", "'most' is not a number"]),
        (["quantize", "model.onnx", "--data", "CALIB", "--metric", "top5"], ["--metric", "--eval DATA or --keep"]),
        (["quantize", "model.onnx", "--data", "CALIB", "--labels", "y"], ["--labels", "leave out --labels"]),
        (["quantize", "model.onnx", "--method", "msee"], ["msee", "did you mean 'mse'"]),
        (["quantize", "model.onnx", "--samples", "0", "--data", "CALIB"], ["samples is 0", "at least 1"]),
        (["quantize", "model.onnx", "--samples", "many"], ["--samples", "'many' is not a whole number"]),
        (["quantize", "nope.onnx", "--data", "CALIB"], ["nope.onnx does not exist"]),
        (["quantize", "modle.onnx", "--data", "CALIB"], ["modle.onnx does not exist", "did you mean 'model.onnx'"]),
        (["quantize", "empty.onnx", "--data", "CALIB"], ["empty.onnx is empty"]),
        (["quantize", "text.onnx", "--data", "CALIB"], ["not an ONNX model"]),
        (["quantize", "short.onnx", "--data", "CALIB"], ["truncated", "5,000 bytes"]),
        (["quantize", "model.onnx"], ["needs calibration data", "--table"]),
        (["quantize", "model.onnx", "--data", "nope.npz"], ["nope.npz"]),
        (["quantize", "model.onnx", "--data", "name.npz"], ["imgae", "did you mean 'image'"]),
        (["quantize", "model.onnx", "--data", "nan.npz"], ["sample 17", "NaN", "'image'"]),
        (["quantize", "model.onnx", "--data", "uint8.npz"], ["uint8", "float32"]),
        (["quantize", "model.onnx", "--data", "object.npz"], ["unpickled"]),
        (["quantize", "model.onnx", "--data", "none.npz"], ["no samples"]),
        (["quantize", "model.onnx", "--data", "CALIB", "-o", "model.onnx"], ["would overwrite"]),
        (["quantize", "model.onnx", "--data", "CALIB", "-o", "no/folder.onnx"], ["does not exist"]),
        (["quantize", "model.onnx", "--data", "CALIB", "--recipe", "defualt"], ["did you mean 'default'"]),
        (
            ["quantize", "model.onnx", "--data", "CALIB", "--recipe", "bad.toml"],
            ["recipe bad.toml", "methd", "did you mean 'method'"],
        ),
        (["quantize", "model.onnx", "--table", "table.json"], ["not a calibration table"]),
        (["quantize", "model.onnx", "--table", "name.npz"], ["not a calibration table", "samples are --data"]),
        (["quantize", "model.onnx", "--data", "table.json"], ["no data file", "are --table"]),
        (["calibrate", "model.onnx", "--data", "CALIB"], ["--output"]),
        (
            ["quantize", "model.onnx", "--dry-run", "--html", "page.html"],
            ["--dry-run prints the plan and stops, and --html asks for more", "leave out"],
        ),
        (
            ["quantize", "model.onnx", "--data", "data.npz", "--percentile", "99"],
            ["--percentile is for method percentile, and --method is mse", "say --method percentile"],
        ),
        (
            ["quantize", "model.onnx", "--dynamic", "--method", "mse"],
            ["method", "dynamic quantization calibrates nothing"],
        ),
        (["quantize", "model.onnx", "--dynamic", "--asymmetric"], ["symmetric", "leave out symmetric or dynamic"]),
        (["quantize", "model.onnx", "--dynamic", "--activations", "uint8"], ["activations", "leave out"]),
        (["quantize", "model.onnx", "--dynamic", "--recipe", "npu"], ["activations", "leave out"]),
        (["quantize", "model.onnx", "--dynamic", "--table", "TABLE"], ["table holds calibrated ranges", "leave out"]),
        (["calibrate", "model.onnx", "--data", "CALIB", "-o", "t.json", "--dynamic"], ["--dynamic"]),
        (
            ["quantize", "model.onnx", "--data", "none.npz", "--image-std", "2"],
            ["--image-std", "there are none in none.npz", "leave it out"],
        ),
        (["quantize", "model.onnx", "--dynamic", "--image-size", "8x8"], ["--image-size", "none in no data"]),
        (["quantize", "model.onnx", "--dynamic", "--data", "nan.npz"], ["sample 17", "NaN", "'image'"]),
    ],
)
def test_bad_input_is_told_in_six_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    _write_bad_inputs()
    before = sorted(p.name for p in folder.iterdir())
    model = Path("model.onnx").read_bytes()
    if "TABLE" in arguments:
        requant.calibrate(MODEL, CALIB, samples=8).save("good.json")
        before = sorted([*before, "good.json"])
    names = {"CALIB": CALIB, "TABLE": "good.json"}
    assert main([names.get(a, a) for a in arguments]) == 2
    assert_clear(capsys, words)
    assert sorted(p.name for p in folder.iterdir()) == before
    assert Path("model.onnx").read_bytes() == model


def test_an_already_quantized_model_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "--data", CALIB, "-o", "q.onnx", "-q"]) == 0
    assert main(["quantize", "q.onnx", "--data", CALIB, "-o", "qq.onnx"]) == 2
    assert "quantized already" in capsys.readouterr().err


def test_a_bug_has_its_own_status_and_a_traceback_on_demand(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import requant.api

    def broken(*args: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(requant.api, "plan_whole", broken)
    assert main(["quantize", MODEL, "--data", CALIB, "-o", "q.onnx"]) == 101
    assert "Traceback" not in capsys.readouterr().err
    assert main(["quantize", MODEL, "--data", CALIB, "-o", "q.onnx", "--debug"]) == 101
    assert "Traceback" in capsys.readouterr().err
    assert not list(folder.iterdir())


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["quantize", "--help"]])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from requant.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "assert not {'numpy', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def _large_model(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(12):
        weights.append(numpy_helper.from_array(rng.normal(0, 0.1, (48, 48, 3, 3)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], pads=[1, 1, 1, 1], name=f"c{i}"))
    inputs = [helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["n", 48, 96, 96])]
    outputs = [helper.make_tensor_value_info("t12", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "large", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_an_interrupt_while_modules_load_is_told_in_a_line() -> None:
    program = """
import runpy, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "requant.cli.parser":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
runpy.run_module("requant", run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted: nothing was written\n")


@pytest.mark.parametrize("delay", [0.0, 0.7])
def test_an_interrupt_stops_at_once_and_leaves_nothing(folder: Path, delay: float) -> None:
    _large_model(Path("large.onnx"))
    np.savez("data.npz", t0=np.random.default_rng(1).normal(size=(64, 48, 96, 96)).astype(np.float32))
    line = [sys.executable, "-m", "requant", "quantize", "large.onnx", "--data", "data.npz", "-o", "out.onnx", "-v"]
    child = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert child.stderr is not None
    for text in child.stderr:
        if "calibrating" in text:
            break
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, rest = child.communicate(timeout=20)
    assert child.returncode == 130
    assert time.monotonic() - start < 2.0  # the promise is 0.2 s; a loaded machine gets the benefit of the doubt
    assert "interrupted" in rest
    assert sorted(p.name for p in folder.iterdir()) == ["data.npz", "large.onnx"]

"""The whole way, from a float model and samples to a file that runs."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.models import MODELS, Array, Net, conv_relu, run, samples, two_gemm

import requant
from requant.config import METHODS
from requant.errors import (
    OutputError,
)
from requant.runtime import installation, opening

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("quick_latency")


def inner_sqnr(real: Array, got: Array) -> float:
    return float(10 * np.log10(np.sum(real**2) / max(float(np.sum((real - got) ** 2)), 1e-30)))


# -- the shipped model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_table() -> requant.CalibrationTable:
    folder = Path(__file__).parents[2] / "examples" / "digits"
    return requant.calibrate(folder / "digits.onnx", folder / "calib.npz", threads=1)


def top1(model: bytes, folder: Path) -> float:
    with np.load(folder / "eval.npz") as data:
        labels = next(data[name] for name in data.files if data[name].ndim == 1)
        images = next(data[name] for name in data.files if data[name].ndim == 4)
    name = onnx.load_from_string(model).graph.input[0].name
    return float(np.mean(run(model, {name: images})[0].argmax(axis=1) == labels))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_accuracy(
    method: str, symmetric: bool, digits: Path, digits_table: requant.CalibrationTable
) -> None:
    result = requant.quantize(digits / "digits.onnx", table=digits_table, method=method, symmetric=symmetric, threads=1)
    assert top1(result.data, digits) >= 0.97
    assert len(result.data) < 0.6 * (digits / "digits.onnx").stat().st_size
    assert not result.report.skipped


def test_the_report_tells_what_is_so(digits: Path, tmp_path: Path) -> None:
    result = requant.quantize(digits / "digits.onnx", digits / "calib.npz", evaluation=digits / "eval.npz", threads=1)
    report = result.report
    assert report.accuracy is not None
    assert report.accuracy.quantized_value == top1(result.data, digits)
    assert report.accuracy.float_value == top1((digits / "digits.onnx").read_bytes(), digits)
    assert report.quantized_bytes == len(result.data)
    assert report.float_bytes == (digits / "digits.onnx").stat().st_size
    assert sum(report.quantized.values()) == len(result.plan.nodes)
    assert report.calibration_samples + report.verification_samples == len(np.load(digits / "calib.npz")["image"])
    assert report.latency is not None
    assert {t.name for t in report.tensors if t.kind == "activation"} >= set(result.plan.calibrated)
    assert len(report.worst) == 10
    document = json.loads(report.to_json())
    assert document["schema"] == 1
    assert document["config"] == report.config
    assert "<table>" in result._repr_html_()
    path = tmp_path / "out.onnx"
    result.save(path)
    assert path.read_bytes() == result.data
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


# -- small models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_small_models_stay_close(any_model: onnx.ModelProto, method: str) -> None:
    feeds = samples(any_model, 64)
    result = requant.quantize(any_model, feeds, method=method, threads=1)
    for real, got in zip(run(any_model, feeds), run(result.data, feeds), strict=True):
        assert inner_sqnr(real, got) > (12 if method == "entropy" else 18)


def test_a_table_gives_what_the_data_gives(any_model: onnx.ModelProto) -> None:
    feeds = samples(any_model, 16)
    table = requant.calibrate(any_model, feeds, threads=1)
    for method in METHODS:
        with_data = requant.quantize(any_model, feeds, method=method, threads=1).data
        assert requant.quantize(any_model, feeds, table=table, method=method, threads=1).data == with_data
    with_data = requant.quantize(any_model, feeds, rounding="nearest", threads=1).data
    alone = requant.quantize(any_model, table=table, rounding="nearest", threads=1)
    assert alone.data == with_data


def test_the_model_that_is_given_is_not_changed(any_model: onnx.ModelProto) -> None:
    before = any_model.SerializeToString(deterministic=True)
    requant.quantize(any_model, samples(any_model), threads=1)
    requant.inspect(any_model)
    assert any_model.SerializeToString(deterministic=True) == before


# -- determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 0])
def test_threads_do_not_change_a_byte(threads: int, digits: Path) -> None:
    def quantized(threads: int) -> bytes:
        return requant.quantize(
            digits / "digits.onnx", digits / "calib.npz", samples=40, batch_size=8, threads=threads
        ).data

    assert quantized(threads) == quantized(1)


def test_hash_seeds_do_not_change_a_byte(digits: Path) -> None:
    code = (
        "import hashlib, requant, sys; from requant.evaluation import verify; verify._LATENCY_SECONDS = 0;"
        "data = requant.quantize(sys.argv[1], sys.argv[2], samples=20, threads=1).data;"
        "print(hashlib.sha256(data).hexdigest())"
    )
    found = set()
    for seed in ("0", "1", "12345"):
        child = subprocess.run(
            [sys.executable, "-c", code, str(digits / "digits.onnx"), str(digits / "calib.npz")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert child.stderr == ""
        found.add(child.stdout)
    assert len(found) == 1


def test_threads_at_once_give_the_serial_result() -> None:
    model = conv_relu()
    feeds = samples(model, 16)
    serial = requant.quantize(model, feeds, threads=1).data
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda _: requant.quantize(model, feeds, threads=1).data, range(16))
        assert set(results) == {serial}


# -- forms of data ---------------------------------------------------------------------------------------------------


def rows(x: Array) -> Iterator[Array]:
    yield from (row[np.newaxis] for row in x)


def test_the_same_samples_in_any_form_give_the_same_bytes(tmp_path: Path) -> None:
    model = two_gemm()
    x = samples(model, 16)["x"]
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    forms: list[Any] = [x, {"x": x}, [{"x": x[:5]}, {"x": x[5:]}], rows(x), tmp_path / "x.npy", tmp_path / "x.npz"]
    assert len({requant.quantize(model, form, threads=1).data for form in forms}) == 1


def test_one_sample_is_enough_and_the_report_says_so() -> None:
    model = two_gemm()
    result = requant.quantize(model, samples(model, 1), threads=1)
    assert result.report.calibration_samples == 1
    assert any("too few samples" in note for note in result.report.notes)


def test_shapes_may_vary_between_samples() -> None:
    net = Net()
    x = net.input("x", ["n", 3, "h", "w"])
    model = net.model(net.conv(net.op("Relu", net.conv(x, 3, 4)), 4, 2))
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((1, 3, h, w)).astype(np.float32) for h, w in [(8, 8), (4, 6), (9, 5)] * 6]
    result = requant.quantize(model, images, threads=1)
    for image in images[:3]:
        assert inner_sqnr(run(model, {"x": image})[0], run(result.data, {"x": image})[0]) > 18


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-40, 1e-20, 1e20])
def test_constant_samples_of_any_size_give_a_model_that_runs(value: float) -> None:
    model = two_gemm()
    data = np.full((8, 8), value, np.float32)
    result = requant.quantize(model, data, threads=1)
    assert np.isfinite(run(result.data, {"x": data})[0]).all()


def test_inputs_of_other_types_are_fed_as_they_are() -> None:
    net = Net()
    tokens = net.input("tokens", ["n", 5], TensorProto.INT64)
    hidden = net.op("Gather", net.normal(10, 8, name="table"), tokens)
    model = net.model(net.op("MatMul", hidden, net.normal(8, 4)))
    data = {"tokens": np.arange(80).reshape(16, 5) % 10}
    result = requant.quantize(model, data, threads=1)
    assert inner_sqnr(run(model, data)[0], run(result.data, data)[0]) > 25


# -- writing ---------------------------------------------------------------------------------------------------------


def test_the_float_model_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(two_gemm().SerializeToString())
    (tmp_path / "link.onnx").symlink_to(path)
    result = requant.quantize(path, samples(two_gemm()), threads=1)
    monkeypatch.chdir(tmp_path)
    for name in (path, "m.onnx", "link.onnx", tmp_path / ".." / tmp_path.name / "m.onnx"):
        with pytest.raises(OutputError, match="would overwrite"):
            result.save(name)
    assert path.read_bytes() == two_gemm().SerializeToString()


def test_a_relative_model_is_known_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_bytes(two_gemm().SerializeToString())
    monkeypatch.chdir(tmp_path)
    result = requant.quantize("m.onnx", samples(two_gemm()), threads=1)
    monkeypatch.chdir("/")
    with pytest.raises(OutputError, match="would overwrite"):
        result.save(tmp_path / "m.onnx")


def test_the_weights_of_the_float_model_are_not_written_over(tmp_path: Path) -> None:
    model = two_gemm()
    path, weights = tmp_path / "m.onnx", tmp_path / "m.bin"
    onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    result = requant.quantize(path, samples(model), threads=1)
    before = weights.read_bytes()
    with pytest.raises(OutputError):
        result.save(weights)
    assert weights.read_bytes() == before


def test_a_model_of_bytes_may_be_saved_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").write_bytes(b"something else")
    requant.quantize(two_gemm(), samples(two_gemm()), threads=1).save("model")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = requant.quantize(two_gemm(), samples(two_gemm()), threads=1)
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OutputError, match="No space left on device"):
            result.save(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_quantizing_writes_nothing_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(conv_relu().SerializeToString())
    monkeypatch.chdir(tmp_path)
    requant.quantize(path, samples(conv_relu()), threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_leaves_nothing_behind() -> None:
    before = threading.active_count()

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        requant.quantize(conv_relu(), samples(conv_relu(), 256), batch_size=1, progress=interrupt)
    assert time.perf_counter() - start < 2
    while threading.active_count() > before and time.perf_counter() - start < 5:
        time.sleep(0.01)  # what was running ends by itself
    assert threading.active_count() == before


# -- without onnxruntime ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv_relu", "two_gemm", "mlp"])
def test_without_onnxruntime_the_reference_runs_it(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = MODELS[name]()
    feeds = samples(model, 4)
    expected = requant.quantize(model, feeds, threads=1).data
    monkeypatch.setattr(installation, "available", lambda: False)
    opening._warn_slow.cache_clear()
    with caplog.at_level(logging.WARNING, "requant"):
        result = requant.quantize(model, feeds, threads=1)
    assert "onnxruntime is not installed" in caplog.text
    assert result.report.latency is not None
    assert result.report.latency.runtime == "onnx.reference"
    for one, other in zip(run(result.data, feeds), run(expected, feeds), strict=True):
        assert inner_sqnr(one, other) > 20


# -- looking ---------------------------------------------------------------------------------------------------------


def test_inspecting_needs_no_data_and_tells_all(digits: Path) -> None:
    found = requant.inspect(digits / "digits.onnx")
    assert found.size == (digits / "digits.onnx").stat().st_size
    assert found.inputs[0].name == onnx.load(digits / "digits.onnx").graph.input[0].name
    assert sum(found.op_types.values()) == len(onnx.load(digits / "digits.onnx").graph.node)
    assert found.plan.nodes
    assert found.weight_bytes > 0
    assert found.quantized_ops == ()


def test_results_are_short_as_text(digits: Path) -> None:
    result = requant.quantize(digits / "digits.onnx", digits / "calib.npz", samples=32, rounding="nearest")
    assert len(repr(result)) < 200
    assert "digits.onnx" in repr(result)
    assert repr(result.table) == f"CalibrationTable({len(result.plan.calibrated)} tensors, 28 samples)"
    assert str(result.report).splitlines()[0].startswith("size ")

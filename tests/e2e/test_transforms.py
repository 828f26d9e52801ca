"""Outlier channels and unequal weights, and what smoothing and equalizing make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import Array, Net, run, samples, two_gemm

import requant
from requant.cli import main
from requant.config import METHODS
from requant.errors import CalibrationError
from requant.onnx import passes
from requant.onnx.graph import Graph
from requant.onnx.passes import norms
from requant.transforms import smooth

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.usefixtures("quick_latency")

WIDTH = 32


def block(outlier: float = 100.0, *, spelling: str = "layer", seed: int = 0) -> onnx.ModelProto:
    """Attention without heads and an MLP, each behind a norm of which two channels are ``outlier`` times too large.

    The weights that meet these channels are as much smaller, as in trained models.
    """
    net = Net(seed=seed)
    gain = np.ones(WIDTH)
    gain[[3, 17]] = outlier

    def norm(x: str) -> str:
        beta = net.const(net.rng.standard_normal(WIDTH) * 0.1 * gain)
        if spelling == "layer":
            return net.op("LayerNormalization", x, net.const(gain), beta)
        root = net.op("Sqrt", net.op("ReduceMean", net.op("Mul", x, x), axes=[-1], keepdims=1))
        return net.op("Mul", net.op("Div", x, root), net.const(gain))

    def linear(x: str, out: int, *, behind_norm: bool = True, name: str) -> str:
        weight = net.rng.standard_normal((WIDTH, out)) * WIDTH**-0.5
        weight = weight / gain[:, None] if behind_norm else weight
        return net.op("Add", net.op("MatMul", x, net.const(weight), name=name), net.normal(out, scale=0.1))

    x = net.input("x", ["n", 6, WIDTH])
    normed = norm(x)
    q, k, v = (linear(normed, WIDTH, name=name) for name in ("q", "k", "v"))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    mixed = net.op("MatMul", net.op("Softmax", scores), v)
    x = net.op("Add", x, linear(mixed, WIDTH, behind_norm=False, name="out"))
    hidden = net.op("Relu", linear(norm(x), WIDTH, name="fc1"))
    return net.model(net.op("Add", x, linear(hidden, WIDTH, behind_norm=False, name="fc2"), output="y"))


LINEAR = {"q", "k", "v", "out", "fc1", "fc2"}


def sqnr(model: onnx.ModelProto, result: requant.QuantizedModel, feeds: dict[str, Array]) -> float:
    """Of the first output, in dB."""
    real, got = run(model, feeds)[0], run(result.data, feeds)[0]
    return float(10 * np.log10(np.sum(real**2) / np.sum((real - got) ** 2)))


def factors_of(result: requant.QuantizedModel) -> Mapping[str, Array]:
    assert result.table is not None
    return result.table.factors


def smoothed(result: requant.QuantizedModel) -> bool:
    return any("smoothed" in line for line in result.report.prepared)


@pytest.fixture(autouse=True)
def gains_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pass that evens out gains without looking at data, so that there is something to smooth."""
    monkeypatch.setattr(passes, "PASSES", [p for p in passes.PASSES if p[1] is not norms.even_out_norms])


@pytest.mark.parametrize("spelling", ["layer", "rms"])
def test_outlier_channels_cost_nothing_once_they_are_smoothed(spelling: str) -> None:
    model, feeds, unseen = block(spelling=spelling), samples(block(), 32), samples(block(), 64, seed=2)
    plain = requant.quantize(model, feeds, smooth="none", threads=1)
    mended = requant.quantize(model, feeds, threads=1)
    never_broken = requant.quantize(block(1.0, spelling=spelling), feeds, smooth="none", threads=1)
    assert sqnr(model, mended, unseen) > sqnr(model, plain, unseen) + 20
    assert sqnr(model, mended, unseen) > sqnr(block(1.0, spelling=spelling), never_broken, unseen) - 5
    assert {node.name for node in mended.plan.nodes} >= LINEAR
    assert smoothed(mended)
    assert not smoothed(plain)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_outliers_the_result_stays_the_same_file(seed: int) -> None:
    feeds = samples(block(), 32)
    for model in (block(1.0, seed=seed), block(1.0, seed=seed, spelling="rms")):
        results = [requant.quantize(model, feeds, smooth=how, threads=1) for how in ("auto", "none")]
        assert results[0].data == results[1].data


@pytest.mark.parametrize(("gain", "count"), [(1e3, 2), (1e6, 0)])
def test_what_gains_too_little_stays(gain: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smooth, "GAIN", gain)  # the error of these layers falls about three thousand times
    assert len(requant.calibrate(block(), samples(block(), 32), threads=1).factors) == count


def test_an_alpha_is_used_everywhere() -> None:
    model, feeds = block(), samples(block(), 32)
    result = requant.quantize(model, feeds, smooth=0.5, threads=1)
    assert "3 activations of 5 linear layers smoothed (alpha 0.5)" in result.report.prepared
    assert sqnr(model, result, feeds) > 30
    assert set(factors_of(result)) == {
        node.outputs[0].name
        for node in Graph.load(model).nodes
        if node.op_type == "LayerNormalization" or node.name == "fc1"
    }


def test_outliers_that_nothing_can_take_are_named() -> None:
    net = Net()
    x = net.input("x", ["n", WIDTH])
    model = net.model(net.gemm(x, WIDTH, 8, name="head", output="y"))
    feeds = samples(model, 16)
    feeds["x"][:, 5] *= 300
    result = requant.quantize(model, feeds, threads=1)
    (note,) = (note for note in result.report.notes if "outlier" in note)
    assert note.startswith("outlier channels stay in x (")
    assert note.endswith("it reads an input of the model")


def test_a_range_that_a_rule_gives_stays_that_of_its_tensor() -> None:
    model, feeds = block(), samples(block(), 32)
    names = [node.outputs[0].name for node in Graph.load(model).nodes if node.op_type == "LayerNormalization"]
    rules = [{"match": names[0], "clip": 50.0}]
    result = requant.quantize(model, feeds, rules=rules, threads=1)
    assert names[0] not in factors_of(result)
    assert names[1] in factors_of(result)
    assert float(result.plan.tensors[str(names[0])].clip or 0) == 50.0


@pytest.mark.parametrize("scale", [1e-30, 1e31])
@pytest.mark.parametrize("how", ["auto", 0.5])
def test_magnitudes_at_the_ends_of_float32_stay_in_it(how: str | float, scale: float) -> None:
    net = Net()
    normed = net.op("LayerNormalization", net.input("x", ["n", 8]), net.const(np.logspace(0, 4, 8)), net.normal(8))
    hidden = net.op("Relu", net.gemm(normed, 8, 8, name="first"))
    model = net.model(net.op("Gemm", hidden, net.normal(8, 4, scale=scale), name="last", output="y"))
    result = requant.quantize(model, samples(model, 32), smooth=how, equalize=True, threads=1)
    assert {node.name for node in result.plan.nodes} == {"first", "last"}
    if how != "auto":
        assert ("t1" in factors_of(result)) == (scale < 1)  # the first product's output
    assert np.isfinite(run(result.data, samples(model, 32))[0]).all()


# -- tables and sources ----------------------------------------------------------------------------------------------


def test_a_table_repeats_what_was_done(tmp_path: Path) -> None:
    model, feeds = block(), samples(block(), 32)
    path = tmp_path / "table.json"
    requant.calibrate(model, feeds, threads=1).save(path)
    table = requant.CalibrationTable.load(path)
    for method in METHODS:
        with_data = requant.quantize(model, feeds, method=method, threads=1)
        with_table = requant.quantize(model, feeds, table=table, method=method, threads=1)
        assert with_table.data == with_data.data
        assert "2 tensors rescaled as the table says" in with_table.report.prepared


def test_factors_that_do_not_fit_are_refused() -> None:
    model, feeds = block(), samples(block(), 32)
    table = requant.calibrate(model, feeds, threads=1)
    name = next(iter(table.factors))
    for factors in ({"nowhere": np.ones(WIDTH, np.float32)}, {name: np.ones(WIDTH - 1, np.float32)}):
        with pytest.raises(CalibrationError, match="rescales what the model does not have"):
            requant.quantize(model, table=table.with_factors(factors), threads=1)


def test_data_that_can_be_read_only_once_is_read_once() -> None:
    model, feeds = block(), samples(block(), 64)
    taken = 0

    def rows() -> Iterator[Array]:
        nonlocal taken
        for row in feeds["x"]:
            taken += 1
            yield row[np.newaxis]

    once = requant.quantize(model, rows(), threads=1)
    assert taken == 64
    assert smoothed(once)
    assert once.data == requant.quantize(model, feeds, threads=1).data


def test_threads_do_not_change_it() -> None:
    model, feeds = block(), samples(block(), 32)
    assert requant.quantize(model, feeds, threads=1).data == requant.quantize(model, feeds, threads=2).data


# -- equalization ----------------------------------------------------------------------------------------------------


def unequal(seed: int = 0) -> onnx.ModelProto:
    """Convolutions, one of them depthwise, whose channels have very different weights: a function no weights show."""
    net = Net(seed=seed)
    rng = net.rng
    spread = [np.exp2(rng.uniform(-5, 5, 8)) for _ in range(2)]

    def conv(x: str, weight: Array, **attrs: Any) -> str:
        bias = net.const(np.zeros(len(weight)))
        return net.op("Conv", x, net.const(weight), bias, pads=[weight.shape[-1] // 2] * 4, **attrs)

    x = net.input("x", ["n", 4, 8, 8])
    first = rng.standard_normal((8, 4, 3, 3)) * 0.2 * spread[0][:, None, None, None]
    x = net.op("Relu", conv(x, first, name="first"))
    depthwise = rng.standard_normal((8, 1, 3, 3)) * 0.3 * (spread[1] / spread[0])[:, None, None, None]
    x = net.op("Relu", conv(x, depthwise, group=8, name="depthwise"))
    last = rng.standard_normal((6, 8, 1, 1)) * 0.3 / spread[1][None, :, None, None]
    return net.model(net.op("Identity", conv(x, last, name="last"), output="y"))


def test_equalizing_mends_one_scale_for_a_weight() -> None:
    model, feeds = unequal(), samples(unequal(), 32)
    plain, equalized = (
        requant.quantize(model, feeds, per_channel=False, equalize=equalize, threads=1) for equalize in (False, True)
    )
    assert sqnr(model, equalized, feeds) > sqnr(model, plain, feeds) + 10
    assert "2 pairs of linear layers equalized" in equalized.report.prepared
    (note,) = (note for note in equalized.report.notes if "not equalized" in note)
    assert "1 since it reads an input of the model" in note
    assert not factors_of(plain)


def test_equal_weights_on_both_sides_of_a_channel_stay() -> None:
    """The factors bring both ranges of each channel within a power of two of each other."""
    model, feeds = unequal(), samples(unequal(), 16)
    factors = factors_of(requant.quantize(model, feeds, per_channel=False, equalize=True, threads=1))
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    first, depthwise, last = (weights[node.input[1]] for node in model.graph.node if node.op_type == "Conv")
    one, two = factors.values()
    ratios = np.abs(first).max(axis=(1, 2, 3)) / one / (np.abs(depthwise).max(axis=(1, 2, 3)) * one / two)
    assert ratios.max() / ratios.min() <= 8
    ratios = np.abs(depthwise).max(axis=(1, 2, 3)) * one / two / (np.abs(last).max(axis=(0, 2, 3)) * two)
    assert ratios.max() / ratios.min() <= 8


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_words_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(block(), "block.onnx")
    np.savez("calib.npz", **samples(block(), 32))  # type: ignore[arg-type]
    command = ["quantize", "block.onnx", "--data", "calib.npz", "-o", "out.onnx", "--json"]
    for arguments, expected, layers in (
        ([], "auto", "4 linear layers smoothed"),
        (["--smooth", "none"], "none", None),
        (["--smooth", "0.6"], 0.6, "5 linear layers smoothed (alpha 0.6)"),
    ):
        assert main([*command, *arguments]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["config"]["smooth"] == expected
        assert report["config"]["equalize"] is False
        (line,) = [line for line in report["prepared"] if "smoothed" in line] or [None]
        assert line is layers is None or layers in line
    assert main([*command, "--equalize"]) == 0
    assert any("not equalized" in note for note in json.loads(capsys.readouterr().out)["notes"])
    assert main([*command, "--smooth", "often"]) == 2
    assert "smooth is 'often'" in capsys.readouterr().err
    assert main(["calibrate", "block.onnx", "--data", "calib.npz", "-o", "t.json", "--smooth", "0.5", "-q"]) == 0
    assert len(json.loads(Path("t.json").read_text())["factors"]) == 3


def test_a_model_without_anything_to_do_gets_no_line() -> None:
    result = requant.quantize(two_gemm(), samples(two_gemm(), 16), threads=1)
    assert not any("smooth" in line or "equal" in line for line in (*result.report.prepared, *result.report.notes))

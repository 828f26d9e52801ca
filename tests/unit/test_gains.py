"""What errors cost at the outputs of layers, against sums written out, and the choices that are made by it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.models import Net, run

import requant
from requant.calibration.choosing import SHARES
from requant.calibration.table import CalibrationTable
from requant.config import QuantConfig
from requant.config.rules import Rule
from requant.errors import CalibrationError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

RNG = np.random.default_rng(0)


def gain_of(vectors: np.ndarray, weights: np.ndarray) -> list[float]:
    """Of ``vectors [n, k]`` and ``weights [k, outputs]``, value by value and vector by vector."""
    vectors, weights = vectors.astype(np.float64), weights.astype(np.float64)
    usual = np.mean([np.sum((x @ weights) ** 2) for x in vectors])
    ordered = sorted(vectors.reshape(-1).tolist())
    errors: list[np.ndarray] = []
    for share in SHARES:
        cut = max(1, round((len(ordered) - 1) * share))
        lo, hi = min(ordered[cut], 0.0), max(ordered[-1 - cut], 0.0)
        clipped = np.array([min(max(value, lo), hi) for value in vectors.reshape(-1)]).reshape(vectors.shape)
        if not errors:
            scale = (clipped.max() - clipped.min()) / 255
            errors.append(scale * np.round(clipped / scale) - clipped)
        errors.append(clipped - vectors)
    gains = []
    for each in errors:
        relative = [
            np.sum((e @ weights) ** 2) / (np.sum((x @ weights) ** 2) + usual)
            for x, e in zip(vectors, each, strict=True)
        ]
        gains.append(float(np.mean(relative) / np.mean(each**2)))
    return gains


def gains_in(table: CalibrationTable, name: str) -> list[float]:
    return [table.gains[name].rounding, *table.gains[name].clipping]


def calibrated(model: onnx.ModelProto, data: Any, **options: Any) -> CalibrationTable:
    return requant.calibrate(model, data, batch_size=16, **options)


def test_the_gain_of_a_product_is_that_of_its_vectors() -> None:
    x = RNG.standard_t(2, size=(9, 60, 6)).astype(np.float32)
    w = RNG.normal(size=(6, 4)).astype(np.float32)
    net = Net()
    table = calibrated(net.model(net.op("MatMul", net.input("x", ["n", 60, 6]), net.const(w), output="y")), x)
    assert gains_in(table, "x") == pytest.approx(gain_of(np.delete(x, 7, 0).reshape(-1, 6), w), rel=0.02)


def test_the_gain_of_a_convolution_is_that_of_its_windows() -> None:
    x = RNG.standard_t(2, size=(18, 2, 6, 6)).astype(np.float32)
    w = RNG.normal(size=(5, 2, 3, 3)).astype(np.float32)
    net = Net()
    model = net.model(net.op("Conv", net.input("x", ["n", 2, 6, 6]), net.const(w), output="y", strides=[3, 3]))
    table = calibrated(model, x)
    kept = [i for i in range(18) if i % 8 != 7]  # and not held back
    windows = [x[i, :, a : a + 3, b : b + 3].reshape(-1) for i in kept for a in (0, 3) for b in (0, 3)]
    assert gains_in(table, "x") == pytest.approx(gain_of(np.array(windows), w.reshape(5, -1).T), rel=0.02)


def test_readers_add_up_and_what_does_not_multiply_passes_errors_on() -> None:
    x = RNG.normal(size=(16, 20, 6)).astype(np.float32)
    w = RNG.normal(size=(6, 6)).astype(np.float32)
    net = Net()
    read = net.input("x", ["n", 20, 6])
    table = calibrated(
        net.model(net.op("Add", net.op("MatMul", read, net.const(w)), read, output="y")), x, target="generic"
    )
    kept = np.delete(x, [7, 15], 0)
    own = gain_of(kept.reshape(-1, 6), w)
    itself = 1 / (2 * np.mean(kept.astype(np.float64) ** 2))  # of one vector, which is as loud as the usual one
    assert gains_in(table, "x") == pytest.approx([gain + itself for gain in own], rel=0.02)


def heavy(count: int) -> np.ndarray:
    """Samples of 40 rows of 16 channels, of which the first has a heavy tail."""
    rng = np.random.default_rng(count)
    x = rng.normal(size=(count, 40, 16))
    x[..., 0] *= np.where(rng.random((count, 40)) < 0.05, 30.0, 1.0)
    return x.astype(np.float32)


def weighing(first: float, *, smooth: bool = False) -> onnx.ModelProto:
    """A product in which the first channel has that weight, behind a GELU (tanh's form) if it is ``smooth``."""
    net = Net(opset=20)
    w = np.random.default_rng(1).normal(size=(16, 8))
    w[0] *= first
    x = net.input("x", ["n", 40, 16])
    read = net.op("Gelu", x, output="g") if smooth else x
    return net.model(net.op("MatMul", read, net.const(w), output="y"))


def noise(model: onnx.ModelProto, data: bytes) -> float:
    """Error of the output, relative to the output of the row and the usual one."""
    fresh = heavy(200)
    expected, got = (run(each, {"x": fresh})[0].astype(np.float64) for each in (model, data))
    power = np.sum(expected**2, axis=-1)
    return float(np.mean(np.sum((got - expected) ** 2, axis=-1) / (power + power.mean())))


@pytest.mark.parametrize(("first", "narrower"), [(0.0, True), (1.0, False), (30.0, False)])
def test_auto_errs_less_at_the_output_than_what_is_best_for_the_tensor(first: float, narrower: bool) -> None:
    model = weighing(first)
    options: dict[str, Any] = {"smooth": "none", "rounding": "nearest", "percentile": 99.8}
    mse = requant.quantize(model, heavy(60), **options)
    auto = requant.quantize(model, heavy(60), method="auto", **options)
    assert noise(model, auto.data) <= 1.02 * noise(model, mse.data)
    chosen = {tensor.name: tensor for tensor in auto.report.tensors}["x"]
    usual = {tensor.name: tensor for tensor in mse.report.tensors}["x"]
    assert usual.method == "mse"
    if narrower:
        assert chosen.method in ("percentile", "entropy")
        assert chosen.hi < usual.hi
        assert noise(model, auto.data) < 0.8 * noise(model, mse.data)
    assert any("calibration method by the error" in line for line in auto.report.prepared)


def bursts(count: int) -> np.ndarray:
    """Samples of 256 rows in which a few values, all above 0, are far larger."""
    rng = np.random.default_rng(count)
    x = rng.normal(size=(count, 256, 16))
    large = rng.random(x.shape) < 3e-3
    x[large] = 12 * np.abs(x[large])
    return x.astype(np.float32)


def test_what_pays_at_the_layer_and_not_at_the_outputs_is_not_chosen(tmp_path: Path) -> None:
    """A mean over many rows takes rounding away and leaves what clipping, always of one sign, has done."""
    net = Net()
    product = net.op("MatMul", net.input("x", ["n", 256, 16]), net.normal(16, 16))
    model = net.model(net.op("ReduceMean", product, axes=[1], keepdims=0, output="y"))
    table = calibrated(model, bursts(64))
    assert table.unproven == {"x"}
    trusting = table.with_gains(table.gains)
    fresh = bursts(100)
    errors = []
    for each in (table, trusting):
        result = requant.quantize(model, table=each, method="auto", rounding="nearest")
        error = run(model, {"x": fresh})[0].astype(np.float64) - run(result.data, {"x": fresh})[0]
        errors.append(float(np.square(error).mean()))
    assert errors[0] < 0.8 * errors[1]
    table.save(tmp_path / "table.json")
    assert CalibrationTable.load(tmp_path / "table.json").unproven == {"x"}


def test_a_table_serves_auto_like_the_data_does(tmp_path: Path) -> None:
    model = weighing(0.0)
    calibrated(model, heavy(40)).save(tmp_path / "table.json")
    table = CalibrationTable.load(tmp_path / "table.json")
    direct = requant.quantize(model, heavy(40), method="auto", rounding="nearest", batch_size=16)
    assert requant.quantize(model, table=table, method="auto", rounding="nearest").data == direct.data
    assert table.all_ranges(QuantConfig())["x"].keys() >= {"auto", "auto_symmetric", "mse"}
    without = CalibrationTable(dict(table), digest=table.digest, samples=table.samples)
    assert "auto" not in without.all_ranges(QuantConfig())["x"]
    with pytest.raises(CalibrationError, match="does not say what errors of tensor 'x' cost"):
        requant.quantize(model, table=without, method="auto")


@pytest.mark.parametrize("damaged", [[1.0], [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, float("inf")], "abcd"])
def test_damaged_gains_are_refused(damaged: Any, tmp_path: Path) -> None:
    calibrated(weighing(1.0), heavy(100)).save(tmp_path / "table.json")
    table = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps(table | {"gains": {"x": damaged}}))
    with pytest.raises(CalibrationError, match="not a calibration table"):
        CalibrationTable.load(tmp_path / "table.json")


def test_a_rule_asks_for_auto_and_a_recipe_keeps_it(tmp_path: Path) -> None:
    config = QuantConfig(rules=(Rule("x", method="auto"), Rule("Gelu", clip="auto")))
    (tmp_path / "recipe.toml").write_text(config.to_toml())
    assert QuantConfig.from_recipe(tmp_path / "recipe.toml") == config
    assert config.weighs_outputs
    assert not QuantConfig(rules=(Rule("Gelu", clip=10),)).weighs_outputs


@pytest.mark.parametrize(("first", "cut"), [(0.0, True), (30.0, False)])
def test_a_clip_is_searched_and_cuts_where_that_lowers_the_output_error(first: float, cut: bool) -> None:
    model = weighing(first, smooth=True)
    options: dict[str, Any] = {"smooth": "none", "rounding": "nearest", "method": "minmax"}
    whole = requant.quantize(model, heavy(60), **options)
    clipped = requant.quantize(model, heavy(60), rules=[{"match": "Gelu", "clip": "auto"}], **options)
    before, after = (next(t for t in r.report.tensors if t.name == "g") for r in (whole, clipped))
    assert (after.hi < 0.5 * before.hi) == cut
    if cut:
        assert noise(model, clipped.data) < 0.5 * noise(model, whole.data)
    else:
        assert noise(model, clipped.data) <= 1.02 * noise(model, whole.data)
    assert any("cut by the error at the outputs" in line for line in clipped.report.prepared)


def test_threads_change_nothing() -> None:
    model = weighing(0.0)
    tables = [calibrated(model, heavy(200), threads=threads) for threads in (1, 2)]
    assert tables[0].gains == tables[1].gains


def test_what_only_moves_values_on_reads_nothing() -> None:
    x = RNG.normal(size=(16, 4, 2)).astype(np.float32)
    net = Net()
    moved = net.op("Transpose", net.input("x", ["n", 4, 2]), perm=[0, 2, 1])
    weight = RNG.normal(size=(4, 3)).astype(np.float32)
    table = calibrated(net.model(net.op("MatMul", moved, net.const(weight), output="y")), x)
    (name,) = table.gains
    vectors = np.delete(x, [7, 15], 0).transpose(0, 2, 1).reshape(-1, 4)
    assert gains_in(table, name) == pytest.approx(gain_of(vectors, weight), rel=0.02)

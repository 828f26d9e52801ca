"""High-bias absorption: exact on the samples, not beyond the range of what was seen, and nowhere it cannot be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import Array, Net, run, samples

import requant
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.shift import find_shifts, shift
from requant.transforms.absorb import choose

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")

HIGH = np.array([0.0, 9.0, 0.0, 14.0, 0.5, 0.0])  # biases of the first layer


def first(net: Net, *, gemm: bool = False) -> str:
    """A layer of six channels, the highest of which no sample brings near 0."""
    if gemm:
        return net.op("Gemm", net.input("x", ["n", 4]), net.normal(4, 6, scale=0.5), net.const(HIGH), output="t")
    x = net.input("x", ["n", 4, 6, 6])
    return net.op("Conv", x, net.normal(6, 4, 1, 1, scale=0.5), net.const(HIGH), output="t")


def behind(name: str) -> onnx.ModelProto:
    """What may stand behind the layer."""
    net = Net(seed=4)
    x = net.op("Relu", first(net, gemm=name == "gemm"))
    if name == "gemm":
        return net.model(net.op("Gemm", x, net.normal(5, 6, scale=0.5), transB=1, output="y"))
    if name == "conv":
        y = net.op("Conv", x, net.normal(8, 6, 3, 3, scale=0.3), net.normal(8))
    elif name == "groups":
        y = net.op("Conv", x, net.normal(9, 2, 2, 2), net.normal(9), group=3, strides=[2, 2])
    elif name == "depthwise":
        y = net.op("Conv", x, net.normal(6, 1, 3, 3), group=6, auto_pad="VALID")
    elif name == "two":
        y = net.op("Concat", *(net.op("Conv", x, net.normal(3, 6, 1, 1), net.normal(3)) for _ in range(2)), axis=1)
    else:
        x = net.op("GlobalAveragePool", net.op("MaxPool", x, kernel_shape=[2, 2], pads=[1, 0, 0, 1]))
        return net.model(net.gemm(net.op("Flatten", x), 6, 3, output="y"))
    return net.model(net.op("Identity", y, output="y"))


NAMES = ["gemm", "conv", "groups", "depthwise", "two", "pooled"]


def prepared(model: onnx.ModelProto) -> Graph:
    return prepare(Graph.load(model))[0]


def channels(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    """The values of each of the six channels, ``[6, values]``."""
    graph = prepared(model)
    (x,) = run(bytes(graph.serialize(["t"]).proto), feeds)
    return np.moveaxis(x, 1, 0).reshape(6, -1)


@pytest.mark.parametrize("name", NAMES)
def test_the_float_model_gives_the_same_on_what_was_seen(name: str) -> None:
    model, feeds = behind(name), samples(behind(name), 100)
    graph = prepared(model)
    (site,) = find_shifts(graph)[0]
    seen = channels(model, feeds)
    least = np.maximum(seen.min(axis=1), 0).astype(np.float32)
    assert (least > 0).sum() >= 2
    moved = shift(graph, {site.tensor: least})
    expected = run(model, feeds)[0]
    got = run(moved.to_bytes(), feeds)[0]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    inner = channels(onnx.load_from_string(moved.to_bytes()), feeds)
    np.testing.assert_allclose(np.maximum(inner, 0), np.maximum(seen, 0) - least[:, None], atol=1e-5)
    # Beyond the samples the error is at most what was moved: channel i is c_i where it is less.
    lower = {"x": feeds["x"] * 30}
    beyond = np.maximum(channels(model, lower), 0)
    off = np.maximum(beyond, least[:, None]) - beyond
    assert 0 < off.max() <= least.max() * 1.0001


@pytest.mark.parametrize("name", NAMES)
def test_what_is_moved_is_told_and_lowers_the_error(name: str) -> None:
    model, feeds, unseen = behind(name), samples(behind(name), 400), samples(behind(name), 200, seed=5)
    options: dict[str, Any] = {"rounding": "nearest", "balance": False, "smooth": "none", "threads": 1}
    plain = requant.quantize(model, feeds, **options)
    absorbed = requant.quantize(model, feeds, absorb=True, **options)
    (line,) = [line for line in absorbed.report.prepared if "absorbed" in line]
    assert line.endswith("of 1 layer absorbed into the next biases, by 368 samples")  # one in eight is held back
    assert not any("absorbed" in line for line in plain.report.prepared)

    def error(result: requant.QuantizedModel) -> float:
        exact = run(model, unseen)[0].astype(np.float64)
        return float(np.mean((run(result.data, unseen)[0] - exact) ** 2))

    assert error(absorbed) < error(plain)


def test_all_samples_count_and_not_only_the_first() -> None:
    model, feeds = behind("conv"), samples(behind("conv"), 200)
    feeds["x"][-2] *= 2  # lower than the first 32 samples
    table = requant.calibrate(model, feeds, absorb=True, threads=1)
    (moved,) = table.shifts.values()
    calibrated = {"x": np.delete(feeds["x"], np.s_[7:256:8], axis=0)}
    assert np.all(moved <= np.maximum(channels(model, calibrated).min(axis=1), 0))
    assert np.any(moved > 0)
    once = requant.calibrate(model, (row[np.newaxis] for row in feeds["x"]), absorb=True, threads=1)
    assert np.any(next(iter(once.shifts.values())) > moved)


def test_a_table_and_another_number_of_threads_give_the_same(tmp_path: Path) -> None:
    model, feeds = behind("two"), samples(behind("two"), 64)
    requant.calibrate(model, feeds, absorb=True, equalize=True, threads=1).save(tmp_path / "t.json")
    table = requant.CalibrationTable.load(tmp_path / "t.json")
    options: dict[str, Any] = {"absorb": True, "equalize": True}
    direct = requant.quantize(model, feeds, threads=2, **options)
    there = requant.quantize(model, feeds, table=table, threads=1, **options)
    assert there.data == direct.data
    assert "biases of 1 layer absorbed as the table says" in there.report.prepared
    for shifts in ({"nowhere": np.ones(6, np.float32)}, {next(iter(table.shifts)): np.ones(5, np.float32)}):
        with pytest.raises(requant.CalibrationError, match="rescales what the model does not have"):
            requant.quantize(model, table=table.with_factors(table.factors, shifts), threads=1)
    document = json.loads((tmp_path / "t.json").read_text())
    document["shifts"] = {"t": [-1.0]}
    (tmp_path / "t.json").write_text(json.dumps(document))
    with pytest.raises(requant.CalibrationError, match="damaged"):
        requant.CalibrationTable.load(tmp_path / "t.json")


def obstacle(name: str) -> onnx.ModelProto:
    net = Net(opset=17)
    x = first(net)
    if name == "clip":
        x = net.op("Clip", x, net.const(np.array(0.0)), net.const(np.array(6.0)))
        return net.model(net.op("Conv", x, net.normal(3, 6, 1, 1), output="y"))
    y = net.op("Relu", x)
    if name == "padding":
        return net.model(net.op("Conv", y, net.normal(3, 6, 3, 3), pads=[0, 0, 1, 0], output="y"))
    if name == "one of two pads":
        padded = net.op("Conv", y, net.normal(3, 6, 3, 3), pads=[1, 1, 1, 1])
        return net.model(net.op("Concat", padded, net.op("Conv", y, net.normal(3, 6, 1, 1)), axis=1, output="y"))
    if name == "average":
        pooled = net.op("AveragePool", y, kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1)
        return net.model(net.op("Conv", pooled, net.normal(3, 6, 1, 1), output="y"))
    if name == "product":
        return net.model(net.op("Conv", net.op("Mul", y, net.const(2.0)), net.normal(3, 6, 1, 1), output="y"))
    return net.model(net.op("ConvTranspose", y, net.normal(6, 3, 2, 2), output="y"))


OBSTACLES = {
    "clip": "Clip bounds it from above, too",
    "padding": "Conv behind it pads with zeros",
    "one of two pads": "Conv behind it pads with zeros",
    "average": "AveragePool behind it does not pass a constant on",
    "product": "Mul behind it does not pass a constant on",
    "transposed": "ConvTranspose behind it has no bias of its own",
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_is_in_the_way_is_told(name: str) -> None:
    model = obstacle(name)
    sites, reasons = find_shifts(prepared(model))
    assert not sites
    assert set(reasons.values()) == {OBSTACLES[name]}
    options: dict[str, Any] = {"threads": 1, "balance": False, "smooth": "none"}
    both = [requant.quantize(model, samples(model, 32), absorb=absorb, **options) for absorb in (True, False)]
    assert both[0].data == both[1].data


def test_no_more_is_moved_than_narrows_the_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        least = rng.normal(0, 2, 5)
        largest = np.maximum(least, 0) + rng.exponential(3, 5)
        moved = choose(least, largest).astype(np.float64)
        assert np.all((moved >= 0) & (moved <= np.maximum(least, 0) + 1e-6))
        all_of_it = (largest - np.maximum(least, 0)).max()
        if moved.any():
            assert (largest - moved).max() == pytest.approx(all_of_it, rel=1e-5)
            assert all_of_it <= 0.99 * largest.max()
            assert np.all((moved == 0) | np.isclose(largest - moved, all_of_it, rtol=1e-5))
        else:
            assert all_of_it > 0.99 * largest.max()

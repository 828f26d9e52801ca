"""Dynamic quantization, from a float model to a file that runs: no data, or data to compare on only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tests.models import MODELS, Array, Net, run, samples

import requant
from requant.errors import ConfigError, ModelError
from requant.onnx import dynamic
from requant.runtime import optimized
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")


def sqnr(real: Array, got: Array) -> float:
    return float(10 * np.log10(np.sum(real**2) / max(float(np.sum((real - got) ** 2)), 1e-30)))


def transformer() -> onnx.ModelProto:
    """Embedding, attention and feed-forward of one layer, 64 wide."""
    net = Net()
    ids = net.input("ids", [1, "n"], onnx.TensorProto.INT64)
    x = net.op("Gather", net.normal(200, 64), ids)
    q, k, v = (net.op("MatMul", x, net.normal(64, 64, scale=0.125)) for _ in range(3))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])))
    x = net.op("Add", x, net.op("MatMul", scores, v))
    hidden = net.op("Relu", net.op("Add", net.op("MatMul", x, net.normal(64, 256, scale=0.125)), net.normal(256)))
    return net.model(net.op("MatMul", hidden, net.normal(256, 64, scale=0.06), output="y"))


def test_a_transformer_needs_no_data(tmp_path: Path) -> None:
    model = transformer()
    result = requant.quantize(model, dynamic=True)
    assert result.table is None
    assert result.report.quantized == {"MatMul": 2}
    assert result.report.stored == {"Gather": 1, "MatMul": 3}
    assert not result.report.outputs
    assert result.report.latency is None
    assert ("accuracy", "not measured: no data") in result.report.summary()
    assert any("checked on zeros" in note for note in result.report.notes)
    assert len(result.data) < len(model.SerializeToString()) / 3.3
    reasons = {(skip.op_type, skip.reason) for skip in result.report.skipped}
    assert ("MatMul", "its weight is computed at run time") in reasons
    feeds = {"ids": np.arange(0, 200, 7)[None]}
    assert sqnr(run(model, feeds)[0], run(result.data, feeds)[0]) > 33
    result.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == result.data


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [[], ["n"], [2, "n"]])
def test_of_a_large_table_only_what_is_looked_up_becomes_real(
    shape: list[int | str], per_channel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    ids = net.input("ids", shape, onnx.TensorProto.INT64)
    model = net.model(net.op("Gather", net.normal(200, 64), ids, output="y"))
    folded = requant.quantize(model, dynamic=True, per_channel=per_channel)
    monkeypatch.setattr(dynamic, "_LARGE_TABLE", 1000)
    looked_up = requant.quantize(model, dynamic=True, per_channel=per_channel)
    assert looked_up.report.stored == folded.report.stored == {"Gather": 1}
    size = {0: (), 1: (4,), 2: (2, 2)}[len(shape)]
    feeds = {"ids": np.resize([3, -1, 199, 7], size)}
    np.testing.assert_array_equal(run(looked_up.data, feeds)[0], run(folded.data, feeds)[0])
    for result, kept in ((folded, {"Gather"}), (looked_up, {"Gather", "Cast", "Mul"})):
        runs = optimized(SerializedModel(result.data))
        assert runs is not None
        assert {node.op_type for node in onnx.load_from_string(runs).graph.node} == kept
    with pytest.raises(ModelError, match="quantized already"):
        requant.quantize(looked_up.data, dynamic=True)


def test_data_is_compared_on_and_changes_nothing() -> None:
    model = transformer()
    data = [{"ids": np.arange(i, i + 20)[None]} for i in range(0, 100, 10)]
    result = requant.quantize(model, data, dynamic=True)
    assert result.data == requant.quantize(model, dynamic=True).data
    assert result.report.verification_samples == len(data)
    assert result.report.calibration_samples == 0
    assert result.report.latency is not None
    assert result.report.outputs[0].sqnr_db is not None
    assert result.report.outputs[0].sqnr_db > 33
    assert all(t.kind == "weight" and t.sqnr_db is not None and t.sqnr_db > 33 for t in result.report.tensors)


@pytest.mark.parametrize("name", MODELS)
def test_every_small_model_stays_close_on_integers(name: str) -> None:
    """For a target without a least size, where everything that has weights runs on integers."""
    model = MODELS[name]()
    result = requant.quantize(model, dynamic=True, target="generic", weights="uint8")
    assert result.report.quantized
    feeds = samples(model)
    for real, got in zip(run(model, feeds), run(result.data, feeds), strict=True):
        assert sqnr(real, got) > 24


def test_the_shipped_model_becomes_smaller_and_not_slower(digits: Path) -> None:
    result = requant.quantize(digits / "digits.onnx", dynamic=True, evaluation=digits / "eval.npz")
    assert result.report.accuracy is not None
    assert result.report.accuracy.quantized_value >= result.report.accuracy.float_value - 0.005
    assert result.report.quantized == {}, "none of its products is large enough to gain from integers"
    assert len(result.data) < (digits / "digits.onnx").stat().st_size / 2


def mixed() -> onnx.ModelProto:
    """An embedding, an LSTM, a product, and a weight that a static product and a lookup share."""
    net = Net()
    ids = net.input("ids", ["n"], onnx.TensorProto.INT64)
    x = net.op("Unsqueeze", net.op("Gather", net.normal(256, 128, name="table"), ids), net.const(np.array([1])))
    recurrent = [net.normal(1, 512, 128, scale=0.09) for _ in range(2)]
    y = net.ops("LSTM", x, *recurrent, outputs=["y"], hidden_size=128)[0]
    y = net.op("Squeeze", y, net.const(np.array([1, 2])))
    shared = net.normal(128, 128, scale=0.09, name="shared")
    return net.model(net.op("MatMul", y, shared, output="a"), net.op("Gather", shared, ids, output="b"))


def test_the_rest_of_a_static_model_is_quantized_by_default() -> None:
    model = mixed()
    data = [{"ids": np.arange(i, i + 40)} for i in range(0, 80, 5)]
    plain = requant.quantize(model, data, rest="keep")
    result = requant.quantize(model, data)
    assert plain.report.quantized == {"MatMul": 1}
    assert result.report.quantized == {"MatMul": 1, "LSTM": 1}
    assert result.report.stored == {"Gather": 2}
    assert result.table is not None
    assert plain.table is not None
    assert list(result.table) == list(plain.table)
    assert len(result.data) < len(model.SerializeToString()) / 3.5 < len(plain.data)
    static = {skip.node: skip.reason for skip in plain.report.skipped}
    for skip in result.report.skipped:
        assert skip.reason.startswith(static[skip.node])
    for real, got in zip(run(model, data[0]), run(result.data, data[0]), strict=True):
        assert sqnr(real, got) > 28


def test_a_model_that_stands_in_bodies_is_calibrated_like_any_other() -> None:
    net = Net()
    x, flag = net.input("x", [4, 128]), net.input("flag", [], onnx.TensorProto.BOOL)
    bodies = {}
    for branch in ("then_branch", "else_branch"):
        net.normal(128, 128, scale=0.09, name=f"w_{branch}")
        node = onnx.helper.make_node("MatMul", [x, f"w_{branch}"], [branch])
        info = onnx.helper.make_tensor_value_info(branch, onnx.TensorProto.FLOAT, [4, 128])
        bodies[branch] = onnx.helper.make_graph([node], branch, [], [info])
    model = net.model(net.op("If", flag, output="y", **bodies))
    data = [{"x": samples_of(i), "flag": np.array(bool(i % 2))} for i in range(16)]
    result = requant.quantize(model, data, rest="keep")
    assert result.table is not None
    assert list(result.table) == ["x"]
    assert result.report.quantized == {"MatMul": 2}
    assert result.report.outputs[0].sqnr_db is not None
    assert result.report.outputs[0].sqnr_db > 33
    assert len(result.data) < len(model.SerializeToString()) / 3.4


def samples_of(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((4, 128)).astype(np.float32)


def test_what_has_no_weights_is_refused() -> None:
    net = Net()
    model = net.model(net.op("Relu", net.input("x", ["n", 4])))
    with pytest.raises(ModelError, match="nothing in model can be quantized"):
        requant.quantize(model, dynamic=True)


def test_statistics_do_not_go_with_it(digits: Path) -> None:
    table = requant.calibrate(digits / "digits.onnx", digits / "calib.npz", samples=8)
    with pytest.raises(ConfigError, match="a table holds calibrated ranges"):
        requant.quantize(digits / "digits.onnx", table=table, dynamic=True)
    with pytest.raises(ConfigError, match="nothing to calibrate"):
        requant.calibrate(digits / "digits.onnx", digits / "calib.npz", dynamic=True)


def test_a_dynamic_model_is_not_quantized_again() -> None:
    data = requant.quantize(transformer(), dynamic=True).data
    with pytest.raises(ModelError, match="quantized already: it holds Cast of int8 weights, DynamicQuantizeLinear"):
        requant.quantize(data, dynamic=True)
    net = Net()
    only_stored = requant.quantize(net.model(net.conv(net.input("x", [1, 16, 8, 8]), 16, 16)), dynamic=True).data
    with pytest.raises(ModelError, match="quantized already: it holds Cast of int8 weights"):
        requant.quantize(only_stored, dynamic=True)

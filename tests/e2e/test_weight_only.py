"""Weight-only quantization end to end: every form runs in onnxruntime, and computes what its integers stand for."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests import models

import requant
from requant.arrays import lowbit
from requant.onnx import blocks, graph

if TYPE_CHECKING:
    from pathlib import Path

    from requant.quantized import QuantizedModel

pytest.importorskip("onnxruntime")

ALGORITHMS = ("rtn", "mse", "hqq", "kquant", "gptq", "awq", "awq+gptq", "auto")


def quantize(model: onnx.ModelProto, data: Any = None, **options: Any) -> QuantizedModel:
    return requant.quantize(model, data, **{"weight_only": "int4", "batch_size": 4, **options})


def op_types(result: QuantizedModel) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(result.data).graph.node]


def logits(model: onnx.ModelProto | bytes) -> np.ndarray[Any, Any]:
    return models.run(model, models.tokens(8, seed=7))[0].astype(np.float64)


def error(result: QuantizedModel, model: onnx.ModelProto) -> float:
    exact = logits(model)
    return float(np.sum((logits(result.data) - exact) ** 2) / np.sum(exact**2))


@pytest.mark.parametrize("bits", ["int2", "int3", "int4", "int8"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
@pytest.mark.parametrize("block_size", [16, 32])
def test_every_form_runs_and_both_formats_hold_the_same_reals(
    bits: str, symmetric: bool, form: str, block_size: int
) -> None:
    model = models.language_model()
    options = {"weight_only": bits, "algorithm": "rtn", "symmetric": symmetric, "block_size": block_size}
    result = quantize(model, format=form, activations="float", **options)
    noise = {"int2": 0.6, "int3": 0.2, "int4": 0.03, "int8": 1e-3}[bits]
    own = error(result, model)
    if form == "matmulnbits":
        assert own < noise
        assert op_types(result).count("MatMulNBits") == 7
        assert op_types(result).count("GatherBlockQuantized") == 1
    else:
        other = quantize(model, activations="float", **options)
        plain = models.run(result.data, models.tokens(8, seed=7), optimize=False)[0]
        np.testing.assert_allclose(plain, logits(other.data), rtol=1e-3, atol=1e-3)
        assert op_types(result).count("DequantizeLinear") == 8


def test_data_is_needed_for_some_algorithms_only() -> None:
    model = models.language_model()
    for algorithm in ("gptq", "awq", "awq+gptq"):
        with pytest.raises(requant.DataError, match=f"algorithm {algorithm.replace('+', '.')} needs calibration data"):
            quantize(model, algorithm=algorithm)
    for algorithm in ("rtn", "mse", "hqq", "kquant", "auto"):
        assert quantize(model, algorithm=algorithm).report.calibration_samples == 0


def test_algorithms_that_see_data_beat_those_that_do_not() -> None:
    model = models.language_model(scale=6.0)
    data = models.tokens(64)
    errors = {name: error(quantize(model, data, algorithm=name, weight_only="int3"), model) for name in ALGORITHMS}
    assert errors["gptq"] < errors["rtn"]
    assert errors["awq"] < errors["rtn"]
    assert errors["auto"] <= min(errors["rtn"], errors["mse"])


def test_scaling_leaves_a_model_of_many_bits_as_it_was() -> None:
    model = models.language_model(scale=30.0)
    result = quantize(model, models.tokens(64), algorithm="awq", weight_only="int8")
    assert error(result, model) < 1e-3
    scaled = quantize(model, models.tokens(64), algorithm="awq", weight_only="int2")
    assert any("scaled by channel" in note for note in scaled.report.notes)


def test_a_tied_embedding_is_stored_once() -> None:
    model = models.language_model(tied=True)
    for form in ("matmulnbits", "qdq"):
        result = quantize(model, algorithm="rtn", format=form)
        stored = [t for t in onnx.load_from_string(result.data).graph.initializer if "table_q" in t.name]
        assert sum(int(np.prod(t.dims)) > 4 for t in stored) == 1
        assert error(result, model) < 0.05


@pytest.mark.parametrize("bias", ["vector", "none", "matrix"])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_keeps_its_bias_and_ragged_rows_work(bias: str, trans_b: int) -> None:
    net = models.Net()
    x = net.input("x", ["n", 40])
    w = net.normal(*((24, 40) if trans_b else (40, 24)))
    rest = {"vector": [net.normal(24)], "none": [], "matrix": [net.normal(1, 24)]}[bias]
    model = net.model(net.op("Gemm", x, w, *rest, transB=trans_b, alpha=2.0, name="fc", output="y"))
    for form, activations in itertools.product(("matmulnbits", "qdq"), ("float", "int8")):
        result = quantize(model, algorithm="rtn", weight_only="int8", format=form, activations=activations)
        feeds = models.samples(model)
        exact, got = models.run(model, feeds)[0], models.run(result.data, feeds)[0]
        assert np.linalg.norm(got - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (1.0, 2.0), (0.25, -3.0), (2.0, 0.0)])
@pytest.mark.parametrize("algorithm", ["rtn", "awq+gptq"])
def test_factors_that_preparation_cannot_fold_are_kept(alpha: float, beta: float, algorithm: str) -> None:
    net = models.Net()
    x = net.input("x", ["n", 40])
    bias = net.op("ReduceMean", x, keepdims=1)  # computed at run time
    model = net.model(net.op("Gemm", x, net.normal(40, 24), bias, alpha=alpha, beta=beta, name="fc", output="y"))
    feeds = models.samples(model, 64)
    for form in ("matmulnbits", "qdq"):
        result = requant.quantize(model, feeds, weight_only="int8", algorithm=algorithm, format=form, threads=1)
        exact, got = models.run(model, feeds)[0], models.run(result.data, feeds)[0]
        assert np.linalg.norm(got - exact) < 0.02 * np.linalg.norm(exact)


def test_the_optimized_graph_has_the_arithmetic_that_was_asked_for() -> None:
    model = models.language_model()
    for activations, kind in (("float", "W4A32"), ("int8", "W4A8")):
        result = quantize(model, algorithm="rtn", activations=activations)
        assert any(f"onnxruntime runs {kind} in 7 products" in note for note in result.report.notes)
        levels = [
            attribute.i
            for node in onnx.load_from_string(result.data).graph.node
            for attribute in node.attribute
            if attribute.name == "accuracy_level"
        ]
        assert set(levels) == {4 if activations == "int8" else 1}


def test_weights_of_8_bits_are_multiplied_by_integers_unless_floats_are_asked_for() -> None:
    model = models.language_model()
    rules = [{"match": "head", "bits": 8}]
    for activations, runs in ((None, "W4A32 in 6 products, W8A8"), ("float", "W4A32 in 6 products, W8A32")):
        result = quantize(model, algorithm="rtn", rules=rules, activations=activations)
        assert any(f"onnxruntime runs {runs} in 1 product" in note for note in result.report.notes)
        assert any("unpacked at each run" in note for note in result.report.notes) is (activations == "float")


def test_rules_choose_bits_algorithm_and_what_stays_float() -> None:
    model = models.language_model()
    rules = [{"match": "gate0", "bits": 8}, {"match": "gate1", "block_size": 16, "algorithm": "hqq"}]
    result = quantize(model, algorithm="rtn", exclude="head", rules=rules)
    found = {node.name: node for node in result.plan.blocked}
    assert "head" not in found
    assert found["gate0"].scheme.bits == 8
    assert (found["gate1"].scheme.block_size, found["gate1"].algorithm) == (16, "hqq")
    assert next(skip.reason for skip in result.plan.skipped if skip.node == "head") == "excluded by 'head'"


def test_the_recipe_gives_the_same_bytes() -> None:
    model = models.language_model()
    config = requant.QuantConfig(weight_only="int3", algorithm="gptq", block_size=16, batch_size=4)
    first = requant.quantize(model, models.tokens(), config)
    import tomllib

    again = requant.quantize(model, models.tokens(), tomllib.loads(config.to_toml()))
    assert first.data == again.data
    assert first.model.size < len(model.SerializeToString())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 48}, "block_size is 48"),
        ({"block_size": 0}, "MatMulNBits has no scale for whole rows"),
        ({"weight_only": "int5"}, "weight_only is 'int5'"),
        ({"algorithm": "gtpq"}, "algorithm is 'gtpq'"),
        ({"dynamic": True}, "dynamic has no meaning"),
        ({"method": "minmax"}, "method has no meaning"),
        ({"activations": "uint8"}, "activations is 'uint8'"),
        ({"format": "qoperator"}, "format qoperator has no weights"),
        ({"target_bits": 1.0}, "target_bits is 1.0"),
        ({"rules": [{"match": "head", "bits": 5}]}, "bits is 5"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(requant.ConfigError, match=message):
        quantize(models.language_model(), **options)


@pytest.mark.parametrize("option", [{"algorithm": "rtn"}, {"block_size": 32}, {"format": "matmulnbits"}])
def test_options_of_weights_are_refused_elsewhere(option: dict[str, Any]) -> None:
    with pytest.raises(requant.ConfigError, match="weight-only"):
        requant.QuantConfig(**option)


@pytest.mark.parametrize("options", [{"algorithm": "rtn"}, {"algorithm": "gptq"}, {}, {"target_bits": 8.0}], ids=str)
def test_a_nan_among_the_weights_is_refused(options: dict[str, Any]) -> None:
    model = models.language_model()
    for tensor in model.graph.initializer:
        if tensor.name == "up0.w":
            array = numpy_helper.to_array(tensor).copy()
            array[3, 4] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(requant.ModelError, match=r"up0\.w"):
        quantize(model, None if options == {"algorithm": "rtn"} else models.tokens(16), **options)


def test_scaling_spares_a_table_that_a_product_shares() -> None:
    """What a scaled product is divided by would be missing in the table's own rows."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((64, 32)).astype(np.float32)
    net = models.Net()
    ids = net.input("ids", ["n", 8], onnx.TensorProto.INT64)
    x = net.op("Gather", net.const(table, "table"), ids)
    y = net.op("Relu", net.op("MatMul", x, net.const(np.ascontiguousarray(table.T), "tied")))
    model = net.model(net.op("MatMul", y, net.const(rng.standard_normal((64, 48)).astype(np.float32), "last")))
    feeds = {"ids": rng.integers(0, 64, (64, 8))}
    exact = models.run(model, feeds)[0]

    def noise(algorithm: str) -> float:
        result = quantize(model, feeds, weight_only="int3", algorithm=algorithm, rules=[{"match": "Gather", "bits": 3}])
        return float(np.sum((models.run(result.data, feeds)[0] - exact) ** 2) / np.sum(exact**2))

    assert noise("awq") < 2 * noise("rtn")


def test_whole_models_go_with_blocks_of_any_opset_and_data_in_files(tmp_path: Path) -> None:
    model = models.language_model()
    inside = quantize(model, algorithm="rtn", format="qdq")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=256, location="m.bin")
    result = requant.quantize(tmp_path / "m.onnx", weight_only="int4", algorithm="rtn", format="qdq")
    np.testing.assert_array_equal(logits(result.data), logits(inside.data))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_memory_of_a_model_in_files_is_that_of_a_few_layers(
    dtype: type[np.floating[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "IN_MEMORY", 0)
    monkeypatch.setattr(lowbit, "_PART", 1 << 16)
    monkeypatch.setattr(blocks, "_VALUES", 1 << 16)
    layer, count = (512, 512), 24
    net = models.Net()
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = net.input("x", ["n", layer[0]], kind)
    for _ in range(count):
        x = net.op("MatMul", x, net.const((net.rng.standard_normal(layer) / 23).astype(dtype)))
    path = tmp_path / "m.onnx"
    onnx.save(net.model(x), path, save_as_external_data=True, location="m.bin")
    tracemalloc.start()
    result = requant.quantize(path, weight_only="int4", algorithm="rtn")
    result.save(tmp_path / "out.onnx", external_data=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.model.external_bytes > count * layer[0] * layer[1] // 2
    assert any("run in pieces" in note for note in result.report.notes)
    assert peak < 4 * count * layer[0] * layer[1] / 3


@pytest.mark.parametrize(
    "options", [{"target_bits": 6.0}, {"target_bits": 6.0, "weight_only": "int8", "block_size": 0}]
)
def test_a_budget_may_take_fewer_bits_than_the_opset_was_for(options: dict[str, Any]) -> None:
    result = quantize(models.language_model(), algorithm="rtn", format="qdq", **options)
    assert {node.scheme.bits for node in result.plan.blocked} & {2, 4}
    assert np.isfinite(logits(result.data)).all()


def test_a_rule_of_bits_and_a_budget_are_one_too_many() -> None:
    with pytest.raises(requant.ConfigError, match="gives bits"):
        quantize(models.language_model(), target_bits=6.0, rules=[{"match": "Gather", "bits": 4}])


def test_a_model_with_foreign_ops_is_quantized_without_running_it() -> None:
    model = models.language_model()
    last = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Foo", [last], ["foo"], domain="my.ops"))
    model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("foo", 1, None))
    result = quantize(model, algorithm="rtn")
    assert any("my.ops:Foo" in note for note in result.report.notes)


def test_a_budget_of_bits_is_kept_and_spent_where_errors_are() -> None:
    model = models.language_model()
    for data in (None, models.tokens(32)):
        sizes = []
        for bits in (6.0, 7.5, 9.5):
            result = quantize(model, data, algorithm="rtn", target_bits=bits, block_size=16)
            blocks = {node.key: node.scheme for node in result.plan.blocked}
            assert {scheme.bits for scheme in blocks.values()} <= {2, 4, 8}
            assert next(node.scheme.bits for node in result.plan.blocked if node.op_type == "Gather") == 8
            sizes.append(result.model.size)
            assert _stored(result) <= bits
        assert sizes == sorted(sizes)
        assert len({node.scheme.bits for node in quantize(model, data, target_bits=8.0).plan.blocked}) > 1
    with pytest.raises(requant.ConfigError, match="the fewest bits, scales included, are"):
        quantize(model, algorithm="rtn", target_bits=2.0)


def _stored(result: QuantizedModel) -> float:
    """Bits to a planned weight, scales and zero points included."""
    written = {i.name: i for i in onnx.load_from_string(result.data).graph.initializer}
    kinds = ("_q", "_scales", "_zero_points")
    nbytes = sum(numpy_helper.to_array(i).nbytes for name, i in written.items() if name.endswith(kinds))
    shapes = {i.name: i.dims for i in models.language_model().graph.initializer}
    weights = {node.key: int(np.prod(shapes[node.weight])) for node in result.plan.blocked}
    return 8 * nbytes / sum(weights.values())


def test_divergence_from_the_float_model_is_that_of_the_definition() -> None:
    model = models.language_model()
    result = quantize(model, algorithm="rtn", weight_only="int3")
    feeds = models.tokens(8)
    p, q = (models.run(m, feeds)[0].astype(np.float64) for m in (model, result.data))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (p, q))
    each = np.sum(p * np.log(p / q), axis=-1)
    for metric, wanted in (("kl", each.mean()), ("kl99", np.quantile(each, 0.99))):
        found = requant.evaluate(result.data, feeds, metric=metric, float_model=model)
        assert found.value == pytest.approx(wanted, rel=1e-3)
    assert requant.evaluate(model, feeds, metric="kl", float_model=model).value < 1e-9
    with pytest.raises(requant.DataError, match="kl compares with the float model"):
        requant.evaluate(result.data, feeds, metric="kl")


def test_a_square_weight_is_walked_as_it_is_written() -> None:
    """Layers behind it are rounded by what it really gives."""
    net = models.Net(seed=5)
    x = net.input("x", ["n", 64])
    for i in range(4):
        x = net.op("Relu", net.op("MatMul", x, net.normal(64, 64, scale=0.2, name=f"w{i}"), name=f"layer{i}"))
    model = net.model(net.op("MatMul", x, net.normal(64, 16, scale=0.2, name="w4"), name="layer4", output="y"))
    data, feeds = models.samples(model, 512, seed=1), models.samples(model, 64, seed=2)
    exact = models.run(model, feeds)[0]

    def off(algorithm: str) -> float:
        result = quantize(model, data, algorithm=algorithm, batch_size=64, samples=512)
        return float(np.linalg.norm(models.run(result.data, feeds)[0] - exact))

    assert off("gptq") < 0.7 * off("rtn")


@pytest.mark.parametrize("algorithm", ["auto", "gptq"])
def test_rows_too_long_for_moments_are_rounded_without_data(algorithm: str) -> None:
    """Moments of rows of 100,000 values would take 80 GB."""
    net = models.Net(seed=3)
    x = net.op("MatMul", net.input("x", ["n", 100_000]), net.normal(100_000, 32, name="long.w"), name="long")
    model = net.model(net.op("MatMul", x, net.normal(32, 16, name="short.w"), name="short", output="y"))
    result = quantize(model, models.samples(model, 8), algorithm=algorithm)
    assert "1 weight rounded without data: rows of more than 12,288 values" in result.report.notes
    assert (result.report.outputs[0].sqnr_db or 0) > 10


@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
def test_weights_in_bodies_are_rounded_without_data(form: str) -> None:
    net = models.Net(seed=2)
    x = net.input("x", ["n", 32])
    outer = net.op("MatMul", x, net.normal(32, 32, name="outer.w"), name="outer")
    branches = []
    for name in ("yes", "no"):
        w = numpy_helper.from_array(net.rng.standard_normal((32, 32)).astype(np.float32), f"{name}.w")
        node = onnx.helper.make_node("MatMul", [outer, f"{name}.w"], [f"{name}.out"], name=name)
        given = onnx.helper.make_tensor_value_info(f"{name}.out", 1, ["n", 32])
        branches.append(onnx.helper.make_graph([node], name, [], [given], [w]))
    flag = net.op("Greater", net.op("ReduceSum", x, keepdims=0), net.const(0.0))
    net.op("If", flag, then_branch=branches[0], else_branch=branches[1], name="if", output="y")
    output = onnx.helper.make_tensor_value_info("y", 1, ["n", 32])
    graph = onnx.helper.make_graph(net.nodes, "g", net.inputs, [output], net.initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    result = quantize(model, models.samples(model, 64), weight_only="int8", format=form, algorithm="gptq")
    assert {node.name for node in result.plan.blocked} == {"outer", "yes", "no"}
    for seed in range(4):
        feeds = models.samples(model, 4, seed=seed)
        exact, got = models.run(model, feeds)[0], models.run(result.data, feeds)[0]
        assert np.linalg.norm(got - exact) < 0.02 * np.linalg.norm(exact)


def test_what_stays_float_is_told_where_it_is_most_of_the_file() -> None:
    net = models.Net()
    many, few = net.conv(net.input("x", ["n", 32, 8, 8]), 32, 64), net.op("GlobalAveragePool", "t0")
    model = net.model(net.gemm(net.op("Flatten", few), 64, 64, bias=False), many)
    told = "of the file are constants that stay float, most of them of Conv: Conv has no form with weights in blocks"
    notes = [note for note in quantize(model).report.notes if told in note]
    assert len(notes) == 1
    assert notes[0].endswith("quantized with data, or with --dynamic, they become int8")
    assert not any("that stay float" in note for note in requant.quantize(model, dynamic=True).report.notes)

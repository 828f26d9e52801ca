"""Models that few exporters write and some users have: each is quantized, and stays what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import Net, run, session

import requant

if TYPE_CHECKING:
    from collections.abc import Callable

    Feeds = dict[str, Any]
    Case = tuple[onnx.ModelProto, list[Feeds]]

pytestmark = pytest.mark.usefixtures("quick_latency")

_SAMPLES = 24


def drawn(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(net: Net, *outputs: onnx.ValueInfoProto) -> onnx.ModelProto:
    """A model whose outputs are declared, as inference does not know all of them."""
    graph = helper.make_graph(net.nodes, "g", net.inputs, list(outputs), net.initializers)
    opsets = [helper.make_opsetid("", net.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=net.ir_version)


def strings() -> Case:
    """A string that passes through beside a network."""
    net = Net()
    x, names = net.input("x", ["n", 8]), net.input("names", ["n"], TensorProto.STRING)
    y = net.gemm(net.op("Relu", net.gemm(x, 8, 16)), 16, 4, output="y")
    model = net.model(y, net.op("Identity", names, output="who"))
    return model, [{"x": drawn(i, 2, 8), "names": ["a", f"b{i}"]} for i in range(_SAMPLES)]


def sequence() -> Case:
    """An output that is a sequence of tensors."""
    net = Net()
    x = net.op("Relu", net.gemm(net.input("x", ["n", 8]), 8, 16))
    both = net.op("SequenceConstruct", x, net.gemm(x, 16, 16), output="both")
    net.op("SequenceAt", both, net.const(np.int64(1)), output="y")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])
    whole = helper.make_tensor_sequence_value_info("both", TensorProto.FLOAT, ["n", 16])
    return model_of(net, y, whole), [{"x": drawn(i, 1, 8)} for i in range(_SAMPLES)]


def empty_cache() -> Case:
    """A language model's layer, whose cache is empty before the first token."""
    net = Net()
    x, past = net.input("x", [1, "t", 16]), net.input("past", [1, "p", 16])
    keys = net.op("Concat", past, net.op("MatMul", x, net.normal(16, 16, scale=0.2)), axis=1, output="keys")
    scores = net.op("Softmax", net.op("MatMul", x, net.op("Transpose", keys, perm=[0, 2, 1])), axis=-1)
    mixed = net.op("MatMul", net.op("MatMul", scores, keys), net.normal(16, 8, scale=0.2), output="y")
    return net.model(mixed, keys), [{"x": drawn(i, 1, 3, 16), "past": drawn(i, 1, i % 3, 16)} for i in range(_SAMPLES)]


def lengths() -> Case:
    """A recurrent network with time first, and a vector of one length beside it."""
    net = Net()
    x, length = net.input("x", ["t", 1, 8]), net.input("length", [1], TensorProto.INT32)
    weights = net.normal(1, 48, 8, scale=0.3), net.normal(1, 48, 16, scale=0.2), net.normal(1, 96, scale=0.1)
    _, last = net.ops("GRU", x, *weights, length, outputs=["all", "last"], hidden_size=16)
    y = net.gemm(net.op("Squeeze", last, net.const(np.array([0]))), 16, 4, output="y")
    return net.model(y), [{"x": drawn(i, 4 + i % 3, 1, 8), "length": np.array([3], np.int32)} for i in range(_SAMPLES)]


def sparse() -> Case:
    """A weight that is stored as a sparse initializer."""
    net = Net()
    x = net.op("MatMul", net.input("x", ["n", 8]), "w")
    net.gemm(net.op("Relu", x), 4, 4, output="y")
    model = model_of(net, helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]))
    places = np.array([0, 5, 9, 20, 31])
    values = numpy_helper.from_array(drawn(0, 5), "w")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), [8, 4])
    )
    return model, [{"x": drawn(i, 1, 8)} for i in range(_SAMPLES)]


def through() -> Case:
    """An input that is an output as well, as caches of the encoder are in a decoder."""
    net = Net()
    x, cache = net.input("x", ["n", 8]), net.input("cache", ["n", 8])
    y = net.gemm(net.op("Relu", net.gemm(net.op("Add", x, cache), 8, 16)), 16, 4, output="y")
    floats = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in ((y, 4), (cache, 8))
    ]
    return model_of(net, *floats), [{"x": drawn(i, 1, 8), "cache": drawn(100 + i, 1, 8)} for i in range(_SAMPLES)]


CASES = (strings, sequence, empty_cache, lengths, sparse, through)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_unusual_models_are_quantized(case: Callable[[], Case]) -> None:
    model, data = case()
    result = requant.quantize(model, data, threads=1)
    assert result.report.quantized
    for feeds in data[:3]:
        given = {name: np.asarray(x, object) if isinstance(x, list) else x for name, x in feeds.items()}
        for expected, got in zip(outputs(model, given), outputs(result.data, given), strict=True):
            if expected.dtype.kind != "f":
                np.testing.assert_array_equal(got, expected)
                continue
            assert got.shape == expected.shape
            noise, signal = np.square(got - expected).sum(), np.square(expected).sum()
            assert noise < 1e-2 * signal, f"{10 * np.log10(signal / noise):.1f} dB"


def outputs(model: onnx.ModelProto | bytes, feeds: Feeds) -> list[Any]:
    """The arrays that a model gives, those of sequences one by one."""
    if any(x.dtype.kind == "O" for x in feeds.values()):
        return [np.asarray(x) for x in session(model).run(None, feeds)]
    found = session(model).run(None, feeds)
    return [np.asarray(x) for each in found for x in (each if isinstance(each, list) else [each])]


def test_outputs_that_are_no_tensors_are_evaluated_and_compared() -> None:
    model, data = sequence()
    quantized = requant.quantize(model, data, threads=1).data
    assert [out.name for out in requant.compare(model, quantized, data, measure=False).outputs] == ["y"]
    assert requant.evaluate(quantized, data, metric="cosine", float_model=model).value > 0.99


def test_inputs_that_are_no_tensors_are_refused() -> None:
    net = Net()
    net.inputs.append(helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, ["n", 8]))
    x = net.op("SequenceAt", "parts", net.const(np.int64(0)))
    net.gemm(x, 8, 4, output="y")
    model = model_of(net, helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]))
    with pytest.raises(requant.ModelError, match="'parts' of model is a sequence or optional, expected a tensor\nhelp"):
        requant.quantize(model, [{"parts": [drawn(0, 2, 8)]}])


def test_values_that_are_no_strings_are_refused() -> None:
    model, data = strings()
    with pytest.raises(requant.DataError, match="'names' has the wrong dtype\n  expected string"):
        requant.quantize(model, [{**data[0], "names": [1, 2]}])
    with pytest.raises(requant.DataError, match="'names' holds values that are no strings"):
        requant.quantize(model, [{**data[0], "names": np.array(["a", 2], object)}])


def test_batch_normalization_that_trains_stays() -> None:
    net = Net(opset=14)
    x = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)
    constants = [net.const(np.full(4, value)) for value in (1.0, 0.0, 5.0, 2.0)]
    y = net.ops("BatchNormalization", x, *constants, outputs=["y", "mean", "var"], training_mode=1)[0]
    model = net.model(y)
    result = requant.quantize(model, {"x": drawn(0, _SAMPLES, 3, 8, 8)}, threads=1)
    feeds = {"x": drawn(1, 4, 3, 8, 8)}
    np.testing.assert_allclose(run(result.data, feeds)[0], run(model, feeds)[0], atol=0.1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_classifier_that_gives_maps(dynamic: bool, caplog: pytest.LogCaptureFixture) -> None:
    """As scikit-learn's are exported by default: the label, and a map from each label to its probability."""
    net = Net(opset=17)
    scores = net.op("MatMul", net.input("x", ["n", 64]), net.normal(64, 256, scale=0.1))
    scores = net.op("Softmax", net.op("MatMul", net.op("Relu", scores), net.normal(256, 64, scale=0.1)))
    net.op("ZipMap", scores, domain="ai.onnx.ml", classlabels_int64s=list(range(64)), output="maps")
    element = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    maps = helper.make_value_info("maps", helper.make_sequence_type_proto(element))
    graph = helper.make_graph(net.nodes, "g", net.inputs, [maps], net.initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    feeds = {"x": np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)}
    result = requant.quantize(model, None if dynamic else feeds, dynamic=dynamic, threads=1)
    assert result.report.quantized == {"MatMul": 2}
    assert not caplog.records
    assert [10 < (each.sqnr_db or 0) < 80 for each in result.report.outputs] == [True] * (not dynamic)
    wanted, got = (session(each).run(None, feeds)[0] for each in (model, result.data))
    assert onnx.load_model_from_string(result.data).graph.output[0] == maps
    for real, found in zip(wanted, got, strict=True):
        np.testing.assert_allclose([found[i] for i in range(64)], [real[i] for i in range(64)], atol=0.05)
    assert len(requant.quantize(model, weight_only="int4", threads=1).data) < len(model.SerializeToString()) / 3
    if not dynamic:  # the values of the maps are what is kept
        assert requant.quantize_to_keep(model, feeds, 0.9, threads=1).met

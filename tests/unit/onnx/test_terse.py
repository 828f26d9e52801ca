"""What a file need not hold: the model without it is the same to the bit, and runs in the same kernels."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.models import MODELS, Net, run, session
from tests.quantized import Quantized

import requant
from requant.onnx.graph import Graph
from requant.onnx.matching import match_tensors
from requant.onnx.terse import drop_implied, name_briefly

if TYPE_CHECKING:
    from pathlib import Path


def wide(*, second: int = 24) -> onnx.ModelProto:
    """Convolutions that share an input, a depthwise one and a Gemm, of more channels than a scale is worth."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", ["n", 3, 8, 8]), 3, 16))
    y = net.op("Add", net.conv(x, 16, second), net.conv(net.conv(x, 16, 16, group=16), 16, second, 1))
    flat = net.op("Flatten", net.op("GlobalAveragePool", y))
    return net.model(net.gemm(flat, second, 10, trans_b=1, output="y"))


def written(data: bytes) -> tuple[onnx.GraphProto, dict[str, Any], dict[str, onnx.NodeProto]]:
    graph = onnx.load_from_string(data).graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    return graph, constants, {out: node for node in graph.node for out in node.output}


@pytest.mark.parametrize("name", [*MODELS, "wide"])
def test_the_model_is_the_same_to_the_bit_in_the_same_kernels(name: str, tmp_path: Path) -> None:
    q = Quantized(MODELS[name]() if name in MODELS else wide())
    terse = drop_implied(Graph.load(q.proto), folds=True).to_bytes()
    onnx.checker.check_model(onnx.load_from_string(terse), full_check=True)
    for optimize in (False, True):
        outputs = (run(data, q.feeds, optimize=optimize) for data in (q.data, terse))
        for before, after in zip(*outputs, strict=True):
            np.testing.assert_array_equal(before, after)
    kernels = []
    for data in (q.data, terse):
        session(data, save_to=str(tmp_path / "o.onnx"))
        kernels.append(Counter(node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node))
    assert kernels[0] == kernels[1]


def test_a_reader_of_the_standard_computes_the_same() -> None:
    q = Quantized(wide())
    terse = drop_implied(Graph.load(q.proto), folds=True).to_bytes()
    newer = [onnx.version_converter.convert_version(onnx.load_from_string(data), 21) for data in (q.data, terse)]
    (before,), (after,) = (ReferenceEvaluator(model).run(None, q.feeds) for model in newer)
    np.testing.assert_array_equal(before, after)


def test_scales_of_biases_are_products_and_zero_points_of_convolutions_are_left_out() -> None:
    q = Quantized(wide())
    before = {node.name: node for node in q.proto.graph.node}
    graph, constants, producer = written(drop_implied(Graph.load(q.proto), folds=True).to_bytes())
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 5
    _, held, gives = written(q.data)
    for node in layers:
        weight, bias = producer[node.input[1]], producer[node.input[2]]
        product = producer[bias.input[1]]
        assert product.op_type == "Mul"
        scales = [constants[name] for name in product.input]
        np.testing.assert_array_equal(scales[0] * scales[1], held[gives[before[node.name].input[2]].input[1]])
        assert len(weight.input) == (3 if node.op_type == "Gemm" else 2)  # onnxruntime fuses no Gemm without


def test_a_scale_of_few_channels_is_not_worth_a_node() -> None:
    q = Quantized(wide(second=8))
    graph, _, producer = written(drop_implied(Graph.load(q.proto), folds=True).to_bytes())
    given = {
        producer[node.input[1]].input[0]: node.input[1] in producer
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[1] in producer
    }
    assert len(given) == 3  # of 16, 16 and 10 channels, not of 8


def test_a_scale_that_is_no_product_stays() -> None:
    q = Quantized(wide())
    _, _, producer = written(q.data)
    biases = {producer[node.input[2]].input[1] for node in q.proto.graph.node if node.op_type in ("Conv", "Gemm")}
    for tensor in q.proto.graph.initializer:
        if tensor.name in biases:
            array = np.nextafter(numpy_helper.to_array(tensor), np.float32(1))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    left = drop_implied(Graph.load(q.proto), folds=True)
    assert not any(node.op_type == "Mul" for node in left.nodes)


def test_a_runtime_that_folds_nothing_reads_all_of_it() -> None:
    q = Quantized(wide())
    kept = drop_implied(Graph.load(q.proto), folds=False)
    assert [node.op_type for node in kept.nodes] == [node.op_type for node in Graph.load(q.proto).nodes]
    assert all(len(node.inputs) == 3 for node in kept.nodes if node.inputs[0] and node.op_type == "QuantizeLinear")


SAID: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "group of one": ("Conv", {"group": 1}, ()),
    "groups": ("Conv", {"group": 2}, ("group",)),
    "steps of one": ("Conv", {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}, ()),
    "steps": ("Conv", {"strides": [1, 2], "dilations": [2, 1], "pads": [0, 0, 1, 0]}, ("strides", "dilations", "pads")),
    "the kernel": ("Conv", {"kernel_shape": [1, 1]}, ("kernel_shape",)),
    "a plain product": ("Gemm", {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}, ()),
    "a product": ("Gemm", {"alpha": 0.5, "beta": 2.0, "transB": 1}, ("alpha", "beta", "transB")),
    "last axis": ("Softmax", {"axis": -1}, ()),
    "first axis": ("Softmax", {"axis": 0}, ("axis",)),
    "slope": ("LeakyRelu", {"alpha": 0.01}, ()),
    "unpadded pool": ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 0, "strides": [1, 1]}, ("kernel_shape",)),
}


@pytest.mark.parametrize("name", SAID)
def test_attributes_that_say_what_holds_without_them_go(name: str) -> None:
    op_type, attributes, left = SAID[name]
    net = Net()
    x = net.input("x", ["n", 4] if op_type == "Gemm" else ["n", 4, 6, 6])
    weights = {"Conv": (4, 4 // attributes.get("group", 1), 1, 1), "Gemm": (4, 4)}
    rest = [net.normal(*weights[op_type])] if op_type in weights else []
    model = net.model(net.op(op_type, x, *rest, output="y", **attributes))
    terse = drop_implied(Graph.load(model), folds=False)
    (node,) = onnx.load_from_string(terse.to_bytes()).graph.node
    assert {attribute.name for attribute in node.attribute} == set(left)
    feeds = {
        "x": np.random.default_rng(0).normal(size=(2, 4) if op_type == "Gemm" else (2, 4, 6, 6)).astype(np.float32)
    }
    np.testing.assert_array_equal(run(model, feeds)[0], run(terse.to_bytes(), feeds)[0])


@pytest.mark.usefixtures("quick_latency")
def test_quantized_models_are_written_so() -> None:
    model = wide()
    for target, products in (("ort-cpu", True), ("openvino", False)):
        data = requant.quantize(model, {"x": Quantized(model).feeds["x"]}, target=target).data
        graph, _, producer = written(data)
        computed = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[1] in producer]
        assert bool(computed) is products
        assert not any(a.name in ("group", "strides") and a.i == 1 for n in graph.node for a in n.attribute)


def long_names(width: int = 24) -> onnx.ModelProto:
    """A product between ops in float, all under the names that exporters give."""
    net = Net()
    x = net.input("x", ["n", 16])
    y = net.op("Erf", x, name="/block/act/Erf", output="/block/act/Erf_output_0")
    y = net.op(
        "MatMul", y, net.normal(16, width, scale=0.3), name="/block/fc/MatMul", output="/block/fc/MatMul_output_0"
    )
    y = net.op("Softplus", y, name="/block/end/Softplus", output="/block/end/Softplus_output_0")
    return net.model(net.op("Tanh", y, name="/block/Tanh", output="/block/Tanh_output_0"))


def test_long_names_of_inner_tensors_go_but_of_those_that_are_quantized() -> None:
    q = Quantized(long_names())
    graph, given = Graph.load(q.proto), Graph.load(q.model)
    named = onnx.load_from_string(name_briefly(graph, given).to_bytes()).graph
    names = {node.name: node.output[0] for node in named.node}
    assert names["/block/act/Erf"] == "/block/act/Erf_output_0"  # its range is in the file
    assert names["/block/fc/MatMul"] == "t1"
    assert names["/block/end/Softplus"] == "t2"
    assert [output.name for output in named.output] == ["/block/Tanh_output_0"]
    before = match_tensors(given, graph)
    after = match_tensors(given, name_briefly(graph, given))
    assert [match.name for match in after] == [match.name for match in before]
    assert {match.stand_in for match in after if match.name.startswith("/block/fc")} == {"t1"}


def test_names_stay_that_are_little_of_the_file() -> None:
    q = Quantized(long_names(width=2400))
    assert not any(
        node.outputs[0].name == "t1" for node in name_briefly(Graph.load(q.proto), Graph.load(q.model)).nodes
    )


def test_names_stay_that_the_node_does_not_tell() -> None:
    """A node with the name of one that gave another tensor, and one of the model's own names that are short."""
    q = Quantized(long_names())
    other = long_names()
    for node in other.graph.node:
        if node.op_type == "Softplus":
            node.name = "elsewhere"
    other.graph.node[1].output[0] = other.graph.node[2].input[0] = "t1"  # taken there
    names = {n.name: n.outputs[0].name for n in name_briefly(Graph.load(q.proto), Graph.load(other)).nodes}
    assert names["/block/end/Softplus"] == "/block/end/Softplus_output_0"
    assert names["/block/fc/MatMul"] != "t1"


TABLES = {
    "positions": (np.arange(400, dtype=np.int64) % 200, TensorProto.UINT8),
    "offsets": (np.arange(400, dtype=np.int64) - 390, TensorProto.INT16),
    "many": (np.arange(400, dtype=np.int64) * 1000, TensorProto.INT32),
    "too many": (np.arange(400, dtype=np.int64) << 33, TensorProto.INT64),
    "few": (np.arange(100, dtype=np.int64), TensorProto.INT64),
    "mask": (np.where(np.arange(400) % 3, 0, -100).astype(np.float32), TensorProto.INT8),
    "closed mask": (np.where(np.arange(400) % 3, 0, -np.inf).astype(np.float32), TensorProto.FLOAT16),
    "signed zeros": (np.where(np.arange(400) % 3, 0, -0.0).astype(np.float32), TensorProto.FLOAT16),
    "reals": (np.linspace(0, 1, 400, dtype=np.float32), TensorProto.FLOAT),
}


@pytest.mark.parametrize("name", TABLES)
def test_numbers_are_stored_in_the_smallest_type_that_holds_them(name: str) -> None:
    array, stored = TABLES[name]
    net = Net()
    x = net.input("x", [array.size], onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
    model = net.model(net.op("Add", x, net.const(array, "table"), output="y"))
    terse = drop_implied(Graph.load(model), folds=True).to_bytes()
    (tensor,) = onnx.load_from_string(terse).graph.initializer
    assert (tensor.name, tensor.data_type) == ("table", stored)
    kept = onnx.load_from_string(drop_implied(Graph.load(model), folds=False).to_bytes()).graph.initializer[0]
    assert kept.data_type == model.graph.initializer[0].data_type
    for optimize in (False, True):
        (got,) = run(terse, {"x": np.zeros_like(array)}, optimize=optimize)
        np.testing.assert_array_equal(got, array)


def test_what_is_added_has_names_of_its_own() -> None:
    """The runtime refuses two nodes of one name; a tensor of the model may be called so, too."""
    net = Net()
    table = net.const(np.arange(400, dtype=np.float32) % 7, "table")
    x = net.op("Add", net.input("x", ["n", 400]), table, name="n1", output="n2")
    hidden = net.op("Relu", net.gemm(x, 400, 16, name="m1"), output="m2")
    q = Quantized(net.model(net.gemm(hidden, 16, 4, output="y")))
    terse = drop_implied(Graph.load(q.proto), folds=True).to_bytes()
    nodes = onnx.load_from_string(terse).graph.node
    assert {"m3", "n3"} <= {node.name for node in nodes}
    np.testing.assert_array_equal(run(terse, q.feeds)[0], run(q.data, q.feeds)[0])

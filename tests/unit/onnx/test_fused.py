"""Fused ops of onnxruntime are taken apart, and give the same; onnxruntime with the fused ones is the oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.models import Net, run

import requant
from requant.onnx.foreign import typed
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDE, HEADS, WORDS = 16, 4, 30
CONTRIB = {"domain": "com.microsoft"}
LENGTHS = np.array([3, 5], np.int32)
MASKS: dict[str, tuple[list[str], NDArray[Any]]] = {
    "lengths": (["b"], LENGTHS),
    "positions": (["b", "s"], (np.arange(5) < LENGTHS[:, None]).astype(np.int32)),
    "pairs": (["b", "s", "s"], np.tril(np.ones((2, 5, 5), np.int32))),
}


def finished(net: Net, output: str) -> onnx.ModelProto:
    """The model of ``net``, where ONNX cannot infer the type of its output."""
    found = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["b", "s", None])
    graph = helper.make_graph(net.nodes, "g", net.inputs, [found], net.initializers)
    opsets = [helper.make_opsetid("", net.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.load_model_from_string(prepare(typed(Graph.load(model)))[0].to_bytes())


def attention(
    mask: str, *, biased: bool = True, scores: bool = False, **attrs: Any
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    net = Net()
    x = net.input("x", ["b", "s", WIDE])
    feeds: dict[str, Any] = {x: net.rng.standard_normal((2, 5, WIDE)).astype(np.float32)}
    widths = attrs.get("qkv_hidden_sizes", [WIDE] * 3)
    inputs = [x, net.normal(WIDE, sum(widths), scale=0.3), net.normal(sum(widths)) if biased else ""]
    if mask in MASKS:
        shape, feeds["mask"] = MASKS[mask]
        inputs.append(net.input("mask", shape, TensorProto.INT32))
    if scores:
        inputs += [""] * (5 - len(inputs)) + [net.normal(1, HEADS, 5, 5)]
    net.op("Attention", *inputs, output="y", num_heads=HEADS, **CONTRIB, **attrs)
    return finished(net, "y"), feeds


@pytest.mark.parametrize("mask", ["no mask", *MASKS])
@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"unidirectional": 1},
        {"biased": False},
        {"scores": True},
        {"qkv_hidden_sizes": [WIDE, WIDE, 2 * WIDE]},
        {"scale": 0.5, "mask_filter_value": -1e4},
    ],
    ids=str,
)
def test_attention_becomes_products_and_gives_the_same(mask: str, attrs: dict[str, Any]) -> None:
    model, feeds = attention(mask, **attrs)
    found = prepared(model)
    assert [node.op_type for node in found.graph.node] == ["MatMul"] * 3 + ["MultiHeadAttention"]
    np.testing.assert_allclose(run(found, feeds)[0], run(model, feeds)[0], atol=1e-5)


def test_lengths_and_starts_that_only_attention_takes_stay_with_it() -> None:
    model, _ = attention("lengths")
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "twice b"
    assert [node.op_type for node in prepared(model).graph.node] == ["Attention"]


def test_a_weight_that_comes_at_run_time_stays_with_its_attention() -> None:
    net = Net()
    x, w = net.input("x", ["b", "s", WIDE]), net.input("w", [WIDE, 3 * WIDE])
    net.op("Attention", x, w, net.normal(3 * WIDE), output="y", num_heads=HEADS, **CONTRIB)
    assert [node.op_type for node in prepared(finished(net, "y")).graph.node] == ["Attention"]


@pytest.mark.parametrize("kinds", [False, True])
@pytest.mark.parametrize("placed", [False, True])
def test_embeddings_are_looked_up_and_give_the_same(*, kinds: bool, placed: bool) -> None:
    model, feeds = encoder(kinds=kinds, placed=placed)
    found = prepared(model)
    ops = {node.op_type for node in found.graph.node}
    assert "EmbedLayerNormalization" not in ops
    assert "Attention" not in ops
    np.testing.assert_allclose(run(found, feeds)[0], run(model, feeds)[0], atol=1e-5)


def encoder(*, kinds: bool, placed: bool) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """What onnxruntime's optimizer makes of an encoder's first layer: the mask becomes lengths in the embedding."""
    net = Net()
    shape = ["b", "s"]
    ids = net.input("ids", shape, TensorProto.INT32)
    feeds: dict[str, Any] = {ids: net.rng.integers(0, WORDS, (2, 5)).astype(np.int32), "mask": MASKS["positions"][1]}
    mask = net.input("mask", shape, TensorProto.INT32)
    which, sorts, places = "", "", ""
    if kinds:
        which, sorts = net.input("kinds", shape, TensorProto.INT32), net.normal(2, WIDE)
        feeds[which] = (np.arange(10).reshape(2, 5) % 2).astype(np.int32)
    if placed:
        places = net.input("places", shape, TensorProto.INT32)
        feeds[places] = np.array([[4, 3, 2, 1, 0], [0, 1, 2, 3, 4]], np.int32)
    tables = (net.normal(WORDS, WIDE), net.normal(8, WIDE), sorts)
    inputs = [ids, which, *tables, net.normal(WIDE), net.normal(WIDE), mask, places]
    x, lengths = net.ops("EmbedLayerNormalization", *inputs, outputs=["x", "lengths"], **CONTRIB)
    weights = net.normal(WIDE, 3 * WIDE, scale=0.3), net.normal(3 * WIDE)
    y = net.op("Attention", x, *weights, lengths, num_heads=HEADS, **CONTRIB)
    net.op("SkipLayerNormalization", x, y, net.normal(WIDE), output="y", **CONTRIB)
    return finished(net, "y"), feeds


def test_products_between_fused_ops_run_on_integers() -> None:
    """ONNX cannot tell what ops of onnxruntime give, so that products behind them seemed to be of no known type."""
    net = Net()
    x = net.input("x", ["b", "s", WIDE])
    y = net.op("SkipLayerNormalization", x, x, net.normal(WIDE), **CONTRIB)
    z = net.op("MatMul", y, net.normal(WIDE, 32))
    net.op("FastGelu", z, net.normal(32), output="z", **CONTRIB)
    data = net.rng.standard_normal((8, 1, 4, WIDE)).astype(np.float32)
    result = requant.quantize(finished(net, "z"), data)
    assert [node.op_type for node in result.plan.nodes] == ["MatMul"]


@pytest.mark.parametrize(("op_type", "opset"), [("SimplifiedLayerNormalization", 17), ("LayerNormalization", 14)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_normalizations_of_onnxruntime_among_onnx_ops_are_known(op_type: str, opset: int, *, dynamic: bool) -> None:
    """Its optimizer and model builders write them; onnx.checker knows neither of the two in that opset."""
    net = Net(opset=opset)
    x = net.op("Gather", net.normal(WORDS, 64), net.input("ids", ["b", "s"], TensorProto.INT64))
    x = net.op("MatMul", net.op(op_type, x, net.normal(64), axis=-1, epsilon=1e-5), net.normal(64, 512, scale=0.2))
    model = finished(net, net.op("MatMul", net.op("Relu", x), net.normal(512, 32, scale=0.1), output="y"))
    with pytest.raises(onnx.checker.ValidationError, match="No Op registered"):
        onnx.checker.check_model(model)
    feeds = {"ids": np.random.default_rng(0).integers(0, WORDS, (32, 6))}
    result = requant.quantize(model, None if dynamic else feeds, dynamic=dynamic)
    assert result.report.quantized == {"MatMul": 2}
    assert op_type in [node.op_type for node in onnx.load_model_from_string(result.data).graph.node]
    real, got = run(model, feeds)[0], run(result.data, feeds)[0]
    np.testing.assert_allclose(got, real, atol=0.05 * np.abs(real).max())

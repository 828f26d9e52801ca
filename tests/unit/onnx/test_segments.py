"""A walk through a graph gives the tensors that one run of the whole gives, with weights replaced on the way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests import models

from requant.onnx import segments
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.segments import Walk, run_in_pieces

pytest.importorskip("onnxruntime")


def fetched(model: onnx.ModelProto, graph: Graph, name: str, feeds: dict[str, models.Array]) -> models.Array:
    return models.run(graph.to_bytes([name]), feeds)[0]


def test_each_place_shows_what_one_run_of_the_model_shows() -> None:
    model = models.language_model()
    graph, _ = prepare(Graph.load(model))
    batches = [models.tokens(3, seed=1), models.tokens(5, seed=2)]
    walk = Walk(graph, batches)
    for place, node in enumerate(graph.nodes):
        if node.op_type != "MatMul":
            continue
        walk.advance(place)
        name = node.inputs[0].name or ""  # type: ignore[union-attr]
        for array, feeds in zip(walk.arrays(name), batches, strict=True):
            np.testing.assert_allclose(array, fetched(model, graph, name, feeds), rtol=1e-5, atol=1e-5)


def test_later_nodes_read_what_replaces_a_weight() -> None:
    model = models.language_model()
    graph, _ = prepare(Graph.load(model))
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    walk = Walk(graph, [models.tokens(3)])
    walk.advance(places["up0"])
    walk.replace("down0.w", np.zeros((48, 32), np.float32))
    walk.advance(places["gate1"])
    stream = next(walk.arrays(graph.nodes[places["gate1"]].inputs[0].name or ""))  # type: ignore[union-attr]
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in changed.graph.initializer:
        if tensor.name == "down0.w":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((48, 32), np.float32), tensor.name))
    other, _ = prepare(Graph.load(changed))
    name = next(node for node in other.nodes if node.name == "gate1").inputs[0].name or ""  # type: ignore[union-attr]
    np.testing.assert_allclose(stream, fetched(changed, other, name, models.tokens(3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0, 20_000, 1 << 30])
def test_a_run_in_pieces_gives_the_outputs_of_one_run(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_PIECE", size)
    model = models.language_model()
    graph, _ = prepare(Graph.load(model))
    outputs = run_in_pieces(graph, models.tokens(3))
    for got, expected in zip(outputs, models.run(model, models.tokens(3)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_sequences_go_from_piece_to_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_PIECE", 0)
    net = models.Net()
    parts = net.op("SplitToSequence", net.input("x", ["n", 4, 8]), axis=1, keepdims=0)
    hidden = net.op("MatMul", net.op("SequenceAt", parts, net.const(np.int64(2))), net.normal(8, 8))
    model = net.model(net.op("MatMul", hidden, net.normal(8, 8)))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)}
    for got, expected in zip(run_in_pieces(Graph.load(model), feeds), models.run(model, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_bodies_read_tensors_from_outside() -> None:
    net = models.Net()
    x = net.input("x", ["n", 8])
    w = net.normal(8, 8, name="w")
    net.op("MatMul", x, w, name="first", output="hidden")
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["hidden", "x"], ["sum"], name="inner")],
        "branch",
        [],
        [onnx.ValueInfoProto(name="sum")],
    )
    chosen = net.op("If", net.const(np.array(True)), then_branch=branch, else_branch=branch, name="if")
    net.op("MatMul", chosen, w, name="last", output="y")
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            net.nodes, "g", net.inputs, [onnx.helper.make_tensor_value_info("y", 1, ["n", 8])], net.initializers
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    graph = Graph.load(model)
    feeds = {"x": np.ones((2, 8), np.float32)}
    walk = Walk(graph, [feeds])
    walk.advance(len(graph.nodes) - 1)
    name = graph.nodes[-1].inputs[0].name or ""  # type: ignore[union-attr]
    expected = fetched(model, graph, "hidden", feeds) + feeds["x"]
    np.testing.assert_allclose(next(walk.arrays(name)), expected, rtol=1e-5)

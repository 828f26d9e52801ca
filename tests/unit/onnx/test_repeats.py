"""Constants that repeat a few vectors are gathered from them, to the same bits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from tests.models import Array, Net, run

from requant.onnx.graph import Graph
from requant.onnx.terse import drop_implied


def distances(side: int) -> Array:
    """For each pair of positions on a line which of ``2 * side - 1`` distances it has."""
    return np.arange(side)[:, None] - np.arange(side)[None] + side - 1


def biased(*biases: Array, op_type: str = "Add") -> onnx.ModelProto:
    net = Net()
    x = net.input("x", list(biases[0].shape))
    for bias in biases:
        x = net.op(op_type, x, net.const(bias))
    return net.model(net.op("Relu", x, output="y"))


def terse(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.load_from_string(drop_implied(Graph.load(model), folds=True).to_bytes())


def check(model: onnx.ModelProto, gathers: int) -> onnx.ModelProto:
    found = terse(model)
    assert Counter(node.op_type for node in found.graph.node)["Gather"] == gathers
    feeds = {"x": np.random.default_rng(0).standard_normal(run_shape(model)).astype(np.float32)}
    for real, got in zip(run(model, feeds), run(found, feeds), strict=True):
        assert real.tobytes() == got.tobytes()
    return found


def run_shape(model: onnx.ModelProto) -> list[int]:
    return [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]


def test_position_biases_of_several_layers_share_the_places() -> None:
    rng = np.random.default_rng(1)
    biases = [rng.standard_normal((4, 63)).astype(np.float32)[:, distances(32)][None] for _ in range(3)]
    model = biased(*biases)
    found = check(model, gathers=3)
    assert found.ByteSize() < 0.2 * model.ByteSize()
    places = [t for t in found.graph.initializer if t.data_type == onnx.TensorProto.UINT8]
    assert [list(t.dims) for t in places] == [[32, 32]]


@pytest.mark.parametrize("values", [[0.0, -1e9], [-0.0, 0.0], [np.inf, 0.25]])
def test_few_values_are_places_of_these(values: list[float]) -> None:
    mask = np.random.default_rng(2).choice(np.array(values, np.float32), (2, 32, 32))
    found = terse(biased(mask))
    assert found.ByteSize() < 0.4 * mask.nbytes
    check(biased(mask, op_type="Max"), gathers=Counter(node.op_type for node in found.graph.node)["Gather"])


def test_what_repeats_too_little_or_is_a_parameter_stays() -> None:
    rng = np.random.default_rng(3)
    check(biased(rng.standard_normal((2, 32, 32)).astype(np.float32)), gathers=0)
    check(biased(np.resize(np.array([0.1, 0.2, 0.3], np.float32), (2, 8, 8))), gathers=0)
    net = Net()
    weight = np.resize(rng.standard_normal(32).astype(np.float32), (32, 64))
    check(net.model(net.op("MatMul", net.input("x", [1, 32]), net.const(weight), output="y")), gathers=0)


def test_a_runtime_that_folds_nothing_gets_it_written_out() -> None:
    model = biased(np.resize(np.array([0.1, 0.2, 0.3], np.float32), (2, 32, 32)))
    graph = drop_implied(Graph.load(model), folds=False)
    assert "Gather" not in {node.op_type for node in graph.nodes}


def test_many_vectors_are_sorted_only_where_some_of_them_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    check(biased(rng.standard_normal((4, 255)).astype(np.float32)[:, distances(128)]), gathers=1)
    sizes: list[int] = []
    unique: Any = np.unique

    def watched(array: Array, **options: bool) -> object:
        sizes.append(array.size)
        return unique(array, **options)

    monkeypatch.setattr(np, "unique", watched)
    check(biased(rng.standard_normal((4, 128, 128)).astype(np.float32)), gathers=0)
    assert max(sizes) <= 1 << 12

"""Tables that a product multiplies as well are quantized once, and stored once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from tests.models import Array, Net, run

import requant
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.shared import share_constants

ROWS, COLUMNS = 256, 64


def language_model(head: str, *, gain: Array | None = None) -> onnx.ModelProto:
    """A table of embeddings, a layer, and a head that multiplies the same table."""
    net = Net()
    ids = net.input("ids", ["n", 6], TensorProto.INT64)
    reals = net.rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    table = net.const(reals, "table")
    x = net.op("Relu", net.op("MatMul", net.op("Gather", table, ids), net.normal(COLUMNS, COLUMNS, scale=0.1)))
    factors = np.ones(COLUMNS, np.float32) if gain is None else gain
    x = net.op("Mul", x, net.const(1 / factors)) if gain is not None else x
    match head:
        case "transposed":
            logits = net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0]))
        case "stored twice":
            logits = net.op("MatMul", x, net.const((reals * factors).T, "head"))
        case "gemm":
            flat = net.op("Reshape", x, net.const(np.array([-1, COLUMNS])))
            logits = net.op("Gemm", flat, table, transB=1)
        case _:
            logits = net.op("MatMul", x, net.const(net.rng.standard_normal((COLUMNS, ROWS)), "head"))
    return net.model(logits)


def quantized(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, dict[str, Array]]:
    ids = {"ids": np.random.default_rng(1).integers(0, ROWS, (8, 6))}
    data = None if options.get("dynamic") else ids
    result = requant.quantize(model, data, **options)
    return onnx.load_from_string(result.data), ids


def matrices(proto: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Shapes of the constants as large as the table."""
    return [tuple(t.dims) for t in proto.graph.initializer if np.prod(t.dims) == ROWS * COLUMNS]


@pytest.mark.parametrize("options", [{}, {"dynamic": True}, {"format": "qoperator"}], ids=str)
@pytest.mark.parametrize("head", ["transposed", "stored twice", "gemm"])
def test_a_table_and_the_head_share_integers(head: str, options: dict[str, Any]) -> None:
    model = language_model(head)
    proto, feeds = quantized(model, **options)
    assert len(matrices(proto)) == 1
    assert proto.ByteSize() < 0.4 * len(np.zeros((ROWS, COLUMNS), np.float32).tobytes()) + 9000
    (real,), (got,), (plain,) = run(model, feeds), run(proto, feeds), run(proto, feeds, optimize=False)
    assert 10 * np.log10(np.sum(real**2) / np.sum((real - got) ** 2)) > 28
    assert np.max(np.abs(got - plain)) < 0.05 * np.max(np.abs(real))


def test_gains_that_the_head_has_taken_up_are_given_back_to_the_table() -> None:
    gain = np.exp2(np.random.default_rng(2).integers(-2, 3, COLUMNS)).astype(np.float32)
    model = language_model("stored twice", gain=gain)
    proto, feeds = quantized(model)
    assert len(matrices(proto)) == 1
    (real,), (got,) = run(model, feeds), run(proto, feeds)
    assert 10 * np.log10(np.sum(real**2) / np.sum((real - got) ** 2)) > 25


@pytest.mark.parametrize("options", [{"exclude": ("Gather",)}, {"weights": "uint8"}, {"per_channel": False}], ids=str)
def test_what_cannot_be_shared_is_right_all_the_same(options: dict[str, Any]) -> None:
    model = language_model("transposed")
    proto, feeds = quantized(model, **options)
    assert len(matrices(proto)) == 2
    (real,), (got,) = run(model, feeds), run(proto, feeds)
    assert 10 * np.log10(np.sum(real**2) / np.sum((real - got) ** 2)) > 20


def test_another_matrix_of_that_shape_is_no_twin() -> None:
    proto, _ = quantized(language_model("other"))
    assert len(matrices(proto)) == 2


def test_constants_that_are_there_twice_are_stored_once() -> None:
    net = Net()
    x = net.input("x", ["n", 48])
    a = net.rng.standard_normal((48, 64)).astype(np.float32)
    h = net.op("MatMul", net.op("MatMul", x, net.const(a)), net.const(a.T.copy()))
    h = net.op("MatMul", net.op("MatMul", h, net.const(a.copy())), net.normal(64, 48))
    shared = share_constants(graph := Graph.load(net.model(h)))
    stored = [value.const_value for value in shared.model.graph.initializers.values()]
    assert sorted(tensor.numpy().shape for tensor in stored if tensor is not None) == [(48, 64), (64, 48)]
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 48)).astype(np.float32)}
    np.testing.assert_array_equal(run(shared.to_bytes(), feeds)[0], run(graph.to_bytes(), feeds)[0])
    assert share_constants(shared) is shared


def test_a_large_constant_of_many_readers_is_not_multiplied() -> None:
    net = Net()
    table = net.const(np.zeros((1024, 512), np.float32))
    x = net.input("x", ["n", 512])
    parts = [net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0])) for _ in range(3)]
    offsets = [net.op("Gather", table, net.const(np.array(i))) for i in range(9)]
    prepared, _ = prepare(Graph.load(net.model(*parts, *offsets)))
    sizes = [value.const_value.nbytes for value in prepared.model.graph.initializers.values() if value.const_value]
    assert sum(sizes) < 3 * numpy_helper.to_array(net.initializers[0]).nbytes

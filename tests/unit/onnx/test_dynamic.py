"""Graphs with run-time integers: valid, near the float model, and in the kernels that make them fast."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import Array, Net, run, samples, session

from requant.building.dynamic import plan_dynamic, resolve_dynamic
from requant.config import QuantConfig
from requant.onnx.dynamic import insert_dynamic
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WIDE, OUT = 128, 96


def quantized(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    graph = prepare(Graph.load(model))[0]
    config = QuantConfig().with_options(dynamic=True, **options)
    plan = plan_dynamic(graph, config)
    before = graph.to_bytes()
    written = insert_dynamic(graph, plan, resolve_dynamic(graph, plan, config)).to_bytes()
    assert graph.to_bytes() == before, "exporting has changed the float graph"
    proto = onnx.load_from_string(written)
    onnx.checker.check_model(proto, full_check=True)
    assert [o.name for o in proto.graph.output] == [o.name for o in model.graph.output]
    assert [i.name for i in proto.graph.input] == [i.name for i in model.graph.input]
    return proto


def scopes(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from scopes(attribute.g)


def fused(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The op types that onnxruntime really runs."""
    path = folder / "optimized.onnx"
    session(model, save_to=str(path))
    return Counter(node.op_type for scope in scopes(onnx.load(path).graph) for node in scope.node)


def sqnr(real: Array, got: Array) -> float:
    noise = float(np.sum((real.astype(float) - got) ** 2))
    return 10 * math.log10(float(np.sum(real.astype(float) ** 2)) / noise) if noise else math.inf


def assert_close(model: onnx.ModelProto, proto: onnx.ModelProto, feeds: dict[str, Array], *, least: float = 33) -> None:
    """Near the float model, and the fused kernels near the plain ones."""
    plain = run(proto, feeds, optimize=False)
    for real, want, got in zip(run(model, feeds), plain, run(proto, feeds), strict=True):
        assert real.shape == got.shape
        np.testing.assert_allclose(got, want, atol=1e-4 * float(np.abs(real).max()))
        assert sqnr(real, got) > least


# -- products ----------------------------------------------------------------------------------------------------------


def matmul(*shape: int | str) -> onnx.ModelProto:
    net = Net()
    return net.model(net.op("MatMul", net.input("x", [*shape, WIDE]), net.normal(WIDE, OUT), output="y"))


def matmul_add() -> onnx.ModelProto:
    net = Net()
    a = net.op("MatMul", net.input("x", ["n", 5, WIDE]), net.normal(WIDE, OUT))
    return net.model(net.op("Add", a, net.normal(OUT), output="y"))


def gemm(*bias: int, **attrs: Any) -> onnx.ModelProto:
    net = Net()
    w = net.normal(*((OUT, WIDE) if attrs.get("transB") else (WIDE, OUT)))
    rest = [net.normal(*bias, scale=5)] if bias else []
    return net.model(net.op("Gemm", net.input("x", [8, WIDE]), w, *rest, output="y", **attrs))


def gemm_with_computed_bias() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", [8, WIDE])
    return net.model(net.op("Gemm", x, net.normal(WIDE, WIDE), net.op("Relu", x), output="y", alpha=0.3))


PRODUCTS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, int]]] = {
    "matmul 2-D": (lambda: matmul("n"), {"DynamicQuantizeMatMul": 1}),
    "matmul 3-D": (lambda: matmul("n", 5), {"DynamicQuantizeMatMul": 1}),
    "matmul 4-D": (lambda: matmul("n", 2, 5), {"DynamicQuantizeMatMul": 1}),
    "matmul and add": (matmul_add, {"DynamicQuantizeMatMul": 1}),
    "gemm": (gemm, {"DynamicQuantizeMatMul": 1}),
    "gemm with bias": (lambda: gemm(OUT), {"DynamicQuantizeMatMul": 1}),
    "gemm with a bias of rank 2": (lambda: gemm(1, OUT, transB=1), {"DynamicQuantizeMatMul": 1}),
    "gemm with a scalar bias": (lambda: gemm(1, transB=1), {"DynamicQuantizeMatMul": 1}),
    "gemm with factors": (lambda: gemm(OUT, transB=1, alpha=-0.7, beta=1.5), {"DynamicQuantizeMatMul": 1}),
    "gemm with a bias to each row": (lambda: gemm(8, OUT, beta=0.5), {"DynamicQuantizeMatMul": 1, "Add": 1}),
    "gemm with a bias of one column": (lambda: gemm(8, 1), {"DynamicQuantizeMatMul": 1, "Add": 1}),
    "gemm with a computed bias": (gemm_with_computed_bias, {"DynamicQuantizeMatMul": 1, "Relu": 1, "Add": 1}),
}


@pytest.mark.parametrize("options", [{}, {"weights": "uint8"}, {"per_channel": False}], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_becomes_one_integer_kernel(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    build, kernels = PRODUCTS[name]
    model = build()
    proto = quantized(model, **options)
    assert fused(proto, tmp_path) == kernels
    assert_close(model, proto, samples(model))


def test_products_of_one_activation_quantize_it_once(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Tanh", net.input("x", ["n", 5, WIDE]))
    parts = [net.op("Add", net.op("MatMul", x, net.normal(WIDE, OUT)), net.normal(OUT)) for _ in range(3)]
    model = net.model(net.op("Concat", *parts, axis=-1, output="y"))
    proto = quantized(model)
    assert fused(proto, tmp_path) == {"Tanh": 1, "DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 3, "Concat": 1}
    assert_close(model, proto, samples(model))


def test_a_shared_weight_is_written_once_and_no_float_is_left() -> None:
    net = Net()
    w = net.normal(WIDE, WIDE, name="w")
    a = net.op("MatMul", net.input("x", ["n", WIDE]), w)
    model = net.model(net.op("MatMul", net.op("Tanh", a), w, output="y"))
    proto = quantized(model)
    assert sorted(i.data_type for i in proto.graph.initializer) == [TensorProto.FLOAT, TensorProto.INT8]
    assert len(proto.SerializeToString()) < len(model.SerializeToString()) / 3.4
    assert_close(model, proto, samples(model), least=28)


@pytest.mark.parametrize("options", [{}, {"weights": "uint8"}], ids=str)
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_no_pair_of_products_saturates(rows: int, options: dict[str, Any]) -> None:
    """The largest integers everywhere: where a kernel adds pairs in 16 bits, half of each sum would be lost."""
    net = Net()
    w = np.sign(net.rng.standard_normal((WIDE, OUT))) * net.rng.uniform(0.9, 1, (WIDE, OUT))
    w[:, : OUT // 2] = np.abs(w[:, : OUT // 2])
    model = net.model(net.op("MatMul", net.input("x", ["n", WIDE]), net.const(w), output="y"))
    feeds = {"x": np.ones((rows, WIDE), np.float32)}
    assert sqnr(run(model, feeds)[0], run(quantized(model, **options), feeds)[0]) > 40


# -- recurrent ops -----------------------------------------------------------------------------------------------------


def lstm(direction: str = "forward", *, hidden: int = WIDE, states: bool = False, **attrs: Any) -> onnx.ModelProto:
    net = Net()
    d = 2 if direction == "bidirectional" else 1
    x = net.input("x", [6, 3, hidden])
    weights = [net.normal(d, 4 * hidden, hidden, scale=hidden**-0.5) for _ in range(2)]
    inputs = [x, *weights, net.normal(d, 8 * hidden, scale=0.1)]
    if states:
        inputs += [
            net.const(np.array([6, 2, 4], np.int32)),
            net.input("h", [d, 3, hidden]),
            net.input("c", [d, 3, hidden]),
        ]
        inputs.append(net.normal(d, 3 * hidden, scale=0.1))  # peepholes
    names = ["y", "last_h", "last_c"]
    return net.model(*net.ops("LSTM", *inputs, outputs=names, hidden_size=hidden, direction=direction, **attrs))


@pytest.mark.parametrize("options", [{}, {"weights": "uint8"}, {"per_channel": False}], ids=str)
@pytest.mark.parametrize("states", [False, True], ids=["bare", "states"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_lstm_runs_on_integers(direction: str, states: bool, options: dict[str, Any], tmp_path: Path) -> None:
    model = lstm(direction, states=states, clip=3.0)
    proto = quantized(model, **options)
    assert fused(proto, tmp_path) == {"DynamicQuantizeLSTM": 1}
    assert {i.data_type for i in proto.graph.initializer if i.dims[-1:] == [4 * WIDE] and len(i.dims) == 3} <= {
        TensorProto.INT8,
        TensorProto.UINT8,
    }
    assert_close(model, proto, samples(model), least=28)


def test_an_lstm_may_have_few_outputs(tmp_path: Path) -> None:
    net = Net()
    inputs = [net.input("x", [6, 1, WIDE]), *(net.normal(1, 4 * WIDE, WIDE, scale=0.1) for _ in range(2))]
    model = net.model(net.ops("LSTM", *inputs, outputs=["", "last"], hidden_size=WIDE)[1])
    proto = quantized(model)
    assert fused(proto, tmp_path) == {"DynamicQuantizeLSTM": 1}
    assert_close(model, proto, samples(model), least=28)


# -- weights that are only stored as integers --------------------------------------------------------------------------


def gru() -> onnx.ModelProto:
    net = Net()
    inputs = [net.input("x", [6, 1, WIDE]), *(net.normal(1, 3 * WIDE, WIDE, scale=0.1) for _ in range(2))]
    return net.model(*net.ops("GRU", *inputs, outputs=["y", "last"], hidden_size=WIDE))


def conv() -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.input("x", ["n", 4, 8, 8]), 4, 32)
    return net.model(net.conv(net.conv(x, 32, 32, group=32), 32, 8, output="y"))


def transposed() -> onnx.ModelProto:
    net = Net()
    w = net.normal(8, 4, 3, 3, scale=0.1)
    return net.model(net.op("ConvTranspose", net.input("x", ["n", 8, 6, 6]), w, group=2, output="y"))


def embedding() -> onnx.ModelProto:
    net = Net()
    rows = net.op("Gather", net.normal(300, 32, name="table"), net.input("ids", ["n"], TensorProto.INT64), name="g")
    return net.model(net.op("Add", rows, net.op("Gather", "table", "ids"), output="y"))


def sliced(
    table: onnx.TensorProto | None = None,
    shape: tuple[int, ...] = (1, 300, 32),
    then: str = "Add",
    *,
    given: bool = False,
) -> onnx.ModelProto:
    """As many rows of a table as there are tokens, added to them."""
    net = Net()
    x = net.input("x", ["n", 32])
    count = net.op("Slice", net.op("Shape", x), *(net.const(np.array([i])) for i in (0, 1)))
    first, axis = (net.const(np.array([i])) for i in (0, shape.index(300)))
    name = net.normal(*shape, name="table") if table is None else table.name
    net.initializers += [] if table is None else [table]
    rows = net.op("Slice", name, first, count, axis, name="rows")
    if then == "Mul":
        rows = net.op("Mul", rows, x)
    if then == "Sin":
        rows = net.op("Sin", net.op("Mul", rows, net.normal(32)))
    rows = net.op("Reshape", rows, net.const(np.array([-1, 32])))
    return net.model(net.op("Add", rows, x, output="y"), *([rows] if given else []))


@pytest.mark.parametrize("build", [gru, conv, transposed, embedding, sliced, lambda: sliced(shape=(300, 1, 32))])
def test_stored_weights_are_int8_in_the_file_and_folded_when_loaded(
    build: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    model = build()
    proto = quantized(model)
    big = [i for i in proto.graph.initializer if math.prod(i.dims) > 400]
    assert [numpy_helper.to_array(i).dtype for i in big] == [np.dtype(np.int8)] * len(big)
    kernels = fused(proto, tmp_path)
    assert "Cast" not in kernels
    assert "Mul" not in kernels
    feeds = {"ids": np.arange(0, 300, 7)} if build is embedding else samples(model)
    assert_close(model, proto, feeds, least=38)


def test_what_is_sliced_stays_float_where_it_is_no_table_of_positions() -> None:
    """Masks hold infinities; a Sin reads phases; what multiplies is rotary factors; outputs are read by anyone."""
    mask = numpy_helper.from_array(np.triu(np.full((300, 32), -np.inf, np.float32)), "mask")
    for model in (sliced(mask, (300, 32)), sliced(then="Sin"), sliced(then="Mul"), sliced(given=True)):
        stored = [i for i in quantized(model).graph.initializer if math.prod(i.dims) > 400]
        assert [numpy_helper.to_array(i).dtype for i in stored] == [np.dtype(np.float32)]


def test_convolutions_on_integers() -> None:
    model = conv()
    for options in ({}, {"weights": "uint8"}, {"per_channel": False}):
        proto = quantized(model, target="generic", saturation="full", **options)
        assert Counter(n.op_type for n in proto.graph.node)["ConvInteger"] == 3
        assert_close(model, proto, samples(model), least=25)


# -- bodies ------------------------------------------------------------------------------------------------------------


def branch(name: str, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["n", OUT])
    return helper.make_graph(nodes, name, [], [out], weights)


def conditional(*, nested: bool = False) -> onnx.ModelProto:
    """A weight outside of If that both branches read, one that one holds as initializer, one as Constant."""
    net = Net()
    x, flag = net.input("x", ["n", WIDE]), net.input("flag", [], TensorProto.BOOL)
    net.normal(WIDE, WIDE, name="outer", scale=0.1)
    own = numpy_helper.from_array(net.rng.standard_normal((WIDE, OUT)).astype(np.float32), "own")
    other = numpy_helper.from_array(net.rng.standard_normal((WIDE, OUT)).astype(np.float32), "other")
    yes = branch(
        "yes",
        [helper.make_node("MatMul", [x, "outer"], ["a"], "ya"), helper.make_node("MatMul", ["a", "own"], ["y1"], "yb")],
        [own],
    )
    no = branch(
        "no",
        [
            helper.make_node("Constant", [], ["w"], value=other),
            helper.make_node("MatMul", [x, "outer"], ["b"], "na"),
            helper.make_node("Tanh", ["b"], ["t"]),
            helper.make_node("MatMul", ["t", "w"], ["y2"], "nb"),
        ],
        [],
    )
    if nested:
        inner = helper.make_node("If", [flag], ["y3"], "inner", then_branch=yes, else_branch=no)
        zero = numpy_helper.from_array(np.zeros(OUT, np.float32), "zero")
        shift = helper.make_node("Add", ["y3", "zero"], ["y4"])
        yes = branch("outer_yes", [inner, shift], [zero])
        no = branch("outer_no", [helper.make_node("MatMul", [x, "last"], ["y5"])], [])
        net.normal(WIDE, OUT, name="last")
    y = net.op("If", flag, name="if", then_branch=yes, else_branch=no, output="y")
    return net.model(y)


@pytest.mark.parametrize("nested", [False, True])
def test_branches_are_quantized_and_share_what_is_outside(nested: bool, tmp_path: Path) -> None:
    model = conditional(nested=nested)
    proto = quantized(model)
    kernels = fused(proto, tmp_path)
    assert kernels["MatMul"] == 0
    assert kernels["DynamicQuantizeMatMul"] == (5 if nested else 4)
    weights = [i for scope in scopes(proto.graph) for i in scope.initializer if len(i.dims) == 2]
    assert [i.data_type for i in weights] == [TensorProto.INT8] * len(weights)
    assert sum(list(i.dims) == [WIDE, WIDE] for i in weights) == 1, "the outer weight is written once"
    assert len(proto.SerializeToString()) < len(model.SerializeToString()) / 3.2
    names = [out for scope in scopes(proto.graph) for node in scope.node for out in node.output]
    names += [i.name for scope in scopes(proto.graph) for i in scope.initializer]
    assert max(Counter(names).values()) == 1
    for flag in (True, False):
        feeds = {"x": Net().rng.standard_normal((4, WIDE)).astype(np.float32), "flag": np.array(flag)}
        assert_close(model, proto, feeds)


def test_the_body_of_a_loop_is_quantized(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [4, WIDE])
    net.normal(WIDE, WIDE, name="outer", scale=WIDE**-0.5)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["go"]),
            helper.make_node("MatMul", ["state", "outer"], ["m"], "product"),
            helper.make_node("Tanh", ["m"], ["next"]),
        ],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("on", TensorProto.BOOL, []),
            info("state", TensorProto.FLOAT, [4, WIDE]),
        ],
        [info("go", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, [4, WIDE])],
    )
    last = net.op("Loop", net.const(np.array(3)), net.const(np.array(True)), x, body=body)
    model = net.model(net.op("Reshape", last, net.const(np.array([4, WIDE])), output="y"))
    proto = quantized(model)
    kernels = fused(proto, tmp_path)
    assert kernels["DynamicQuantizeMatMul"] == 1
    assert kernels["MatMul"] == 0
    assert_close(model, proto, samples(model), least=28)


def test_an_opset_is_imported_only_where_it_is_used() -> None:
    assert {o.domain for o in quantized(matmul("n")).opset_import} == {""}
    assert {o.domain for o in quantized(lstm()).opset_import} == {"", "com.microsoft"}

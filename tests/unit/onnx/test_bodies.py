"""Bodies of If, Loop and Scan: their tensors can be seen, and they are quantized like the main graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import info as typed, run

import requant
from requant.config import QuantConfig
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.planning.build import build_plan
from requant.runtime import open_runner

if TYPE_CHECKING:
    from numpy.typing import NDArray


def info(name: str, shape: list[int] | None) -> onnx.ValueInfoProto:
    """A float tensor of that shape, or of an unknown one."""
    found = typed(name, shape)
    if shape is None:
        found.type.tensor_type.ClearField("shape")
    return found


def sqnr(reals: NDArray[Any], got: NDArray[Any]) -> float:
    """Decibels of ``reals`` over the distance from them."""
    return float(10 * np.log10(np.mean(reals**2) / max(np.mean((reals - got) ** 2), 1e-20)))


RNG = np.random.default_rng(0)
W = {n: (RNG.standard_normal((16, 16)) / 4).astype(np.float32) for n in "abcd"}
CONSTANTS = [numpy_helper.from_array(w, n) for n, w in W.items()]
STATE = [1, 16]
ROWS: list[Any] = ["n", 16]


def model(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, [info(name, None) for name in outputs], CONSTANTS)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def body(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs)


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=f"make_{output}", **attributes)


FLAG = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
COND = helper.make_tensor_value_info("cond", TensorProto.BOOL, [])
STEP = helper.make_tensor_value_info("step", TensorProto.INT64, [])


def branching() -> onnx.ModelProto:
    """If: two products with a Relu between them in one branch, one with an outer tensor in the other."""
    then = body(
        [node("MatMul", "h b", "p"), node("Relu", "p", "r"), node("MatMul", "r c", "y1")], [], [info("y1", ROWS)]
    )
    other = body([node("MatMul", "x d", "y2")], [], [info("y2", ROWS)])
    call = node("If", "flag", "y", then_branch=then, else_branch=other)
    return model([node("MatMul", "x a", "h"), call], [FLAG, info("x", ROWS)], ["y"])


def looping() -> onnx.ModelProto:
    """Loop: a state that goes through two products, three times."""
    nodes = [
        node("MatMul", "s a", "p"),
        node("Relu", "p", "r"),
        node("MatMul", "r b", "t"),
        node("Tanh", "t", "u"),
        node("Identity", "cond", "go"),
    ]
    out = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    loop = helper.make_node(
        "Loop",
        ["three", "", "x"],
        ["y"],
        name="loop",
        body=body(nodes, [STEP, COND, info("s", STATE)], [out, info("u", STATE)]),
    )
    three = helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.array(3), "three"))
    return model([three, loop], [info("x", STATE)], ["y"])


def scanning() -> onnx.ModelProto:
    """Scan: a recurrence over five rows, which also gives something for each row."""
    nodes = [
        node("MatMul", "row a", "p"),
        node("MatMul", "s b", "q"),
        node("Add", "p q", "sum"),
        node("Tanh", "sum", "u"),
        node("MatMul", "u c", "o"),
    ]
    inner = body(nodes, [info("s", STATE), info("row", STATE)], [info("u", STATE), info("o", STATE)])
    scan = helper.make_node(
        "Scan", ["x0", "xs"], ["last", "ys"], name="scan", body=inner, num_scan_inputs=1, scan_output_axes=[0]
    )
    return model([scan], [info("x0", STATE), info("xs", [5, *STATE])], ["last", "ys"])


def nested() -> onnx.ModelProto:
    """A Loop in a branch."""
    loop = looping().graph
    inner = body(list(loop.node), [], [info("y", STATE)])
    other = body([node("Identity", "x", "same")], [], [info("same", STATE)])
    return model([node("If", "flag", "z", then_branch=inner, else_branch=other)], [FLAG, info("x", STATE)], ["z"])


MODELS = {f.__name__: f for f in (branching, looping, scanning, nested)}


def samples(graph: Graph, count: int, **fixed: Any) -> list[dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(1)
    return [
        {
            spec.name: np.asarray(fixed.get(spec.name, i % 2 == 0))
            if spec.dtype == bool
            else rng.standard_normal([d if isinstance(d, int) else 1 for d in spec.shape]).astype(np.float32)
            for spec in graph.inputs
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_bodies_are_quantized_statically(name: str) -> None:
    proto = MODELS[name]()
    graph = Graph.load(proto.SerializeToString())
    plan = build_plan(prepare(graph)[0], QuantConfig())
    products = sum(n.op_type == "MatMul" for n in graph.all_nodes())
    assert sum(n.op_type == "MatMul" for n in plan.nodes) == products, plan.skipped
    result = requant.quantize(proto.SerializeToString(), samples(graph, 64), threads=1)
    assert dict(result.report.quantized)["MatMul"] == products
    quantized = Graph.load(result.data)
    assert (
        sum(n.op_type == "DequantizeLinear" for n in quantized.all_nodes() if n.graph is not quantized.model.graph)
        > products
    )
    for feeds in samples(graph, 6):
        for optimize in (True, False):
            for real, got in zip(run(proto, feeds), run(result.data, feeds, optimize=optimize), strict=True):
                assert sqnr(real, got) > 20


@pytest.mark.parametrize(
    ("name", "tensors", "shapes"),
    [
        ("branching", ["h", "p", "r", "y2"], {True: [(2, 16)] * 3 + [(0,)], False: [(2, 16), (0,), (0,), (2, 16)]}),
        ("looping", ["p", "s"], {True: [(3, 1, 16)] * 2}),
        ("scanning", ["row", "sum"], {True: [(5, 1, 16)] * 2}),
        ("nested", ["t"], {True: [(3, 1, 16)], False: [(0,)]}),
    ],
)
def test_tensors_of_bodies_can_be_fetched(
    name: str, tensors: list[str], shapes: dict[bool, list[tuple[int, ...]]]
) -> None:
    graph = Graph.load(MODELS[name]().SerializeToString())
    runner = open_runner(graph.serialize(tensors))
    for flag, expected in shapes.items():
        feeds = samples(graph, 1, flag=flag)[0]
        if name == "branching":
            feeds["x"] = np.repeat(feeds["x"], 2, axis=0)
        got = runner.run(feeds)
        assert [array.shape for array in got] == expected
        if name == "branching":
            wanted = [feeds["x"] @ W["a"], feeds["x"] @ W["a"] @ W["b"]] if flag else [feeds["x"] @ W["a"]]
            for array, reals in zip(got, wanted, strict=False):
                np.testing.assert_allclose(array, reals, rtol=1e-4, atol=1e-5)
        if name == "looping":
            np.testing.assert_allclose(got[0][0], feeds["x"] @ W["a"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(got[1][0], feeds["x"])
        if name == "scanning":
            np.testing.assert_array_equal(got[0], feeds["xs"])
            first = feeds["xs"][0] @ W["a"] + feeds["x0"] @ W["b"]
            np.testing.assert_allclose(got[1][0], first, rtol=1e-4, atol=1e-5)
        if name == "nested" and flag:
            first = np.maximum(feeds["x"] @ W["a"], 0) @ W["b"]
            np.testing.assert_allclose(got[0][0], first, rtol=1e-4, atol=1e-5)


def test_what_stands_in_a_branch_that_no_sample_took_stays_float() -> None:
    proto = branching()
    graph = Graph.load(proto.SerializeToString())
    result = requant.quantize(proto.SerializeToString(), samples(graph, 16, flag=False), threads=1, rest="keep")
    reasons = {skip.node: skip.reason for skip in result.report.skipped}
    assert reasons["make_y1"] == "calibration has seen no value of its tensors"
    assert "make_p" not in reasons  # its input is of the main graph
    feeds = samples(graph, 1, flag=True)[0]
    assert sqnr(run(proto, feeds)[0], run(result.data, feeds)[0]) > 20
    table = result.table
    assert table is not None
    again = requant.quantize(proto.SerializeToString(), table=table, threads=1, rest="keep")
    assert again.plan == result.plan


def test_what_may_change_from_one_iteration_to_the_next_is_left_alone() -> None:
    nodes = [node("Concat", "s s", "longer", axis=0), node("MatMul", "longer a", "u"), node("Identity", "cond", "go")]
    out = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    loop = helper.make_node(
        "Loop",
        ["three", "", "x"],
        ["y"],
        name="loop",
        body=body(nodes, [STEP, COND, info("s", None)], [out, info("u", None)]),
    )
    three = helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.array(3), "three"))
    proto = model([three, loop], [info("x", STATE)], ["y"])
    plan = build_plan(prepare(Graph.load(proto.SerializeToString()))[0], QuantConfig())
    assert {s.op_type: s.reason for s in plan.skipped}[
        "MatMul"
    ] == "the shapes of its tensors may change from one iteration to the next"


def test_a_branch_inside_a_loop_is_left_alone() -> None:
    branches = {
        f"{which}_branch": body([node("MatMul", f"s {w}", f"o{w}")], [], [info(f"o{w}", STATE)])
        for which, w in (("then", "a"), ("else", "b"))
    }
    nodes = [helper.make_node("If", ["flag"], ["u"], name="if", **branches), node("Identity", "cond", "go")]
    out = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    loop = helper.make_node(
        "Loop",
        ["three", "", "x"],
        ["y"],
        name="loop",
        body=body(nodes, [STEP, COND, info("s", STATE)], [out, info("u", STATE)]),
    )
    three = helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.array(3), "three"))
    proto = model([three, loop], [FLAG, info("x", STATE)], ["y"])
    plan = build_plan(prepare(Graph.load(proto.SerializeToString()))[0], QuantConfig())
    assert not plan.nodes
    assert {s.reason for s in plan.skipped if s.op_type == "MatMul"} == {
        "it stands in an If inside Loop or Scan, where a branch may change from one iteration to the next"
    }

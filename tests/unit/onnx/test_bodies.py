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
from requant.onnx.passes.cleanup import drop_unused
from requant.onnx.reference import ReferenceRunner
from requant.planning.build import build_plan
from requant.runtime import OrtRunner, held, joined, open_runner

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
        ("branching", ["h", "p", "r", "y2"], {True: [[(2, 16)]] * 3 + [[]], False: [[(2, 16)], [], [], [(2, 16)]]}),
        ("looping", ["p", "s"], {True: [[(1, 16)] * 3] * 2}),
        ("scanning", ["row", "sum"], {True: [[(1, 16)] * 5] * 2}),
        ("nested", ["t"], {True: [[(1, 16)] * 3], False: [[]]}),
    ],
)
def test_tensors_of_bodies_can_be_fetched(
    name: str, tensors: list[str], shapes: dict[bool, list[list[tuple[int, ...]]]]
) -> None:
    graph = Graph.load(MODELS[name]().SerializeToString())
    runner = open_runner(graph.serialize(tensors))
    for flag, expected in shapes.items():
        feeds = samples(graph, 1, flag=flag)[0]
        if name == "branching":
            feeds["x"] = np.repeat(feeds["x"], 2, axis=0)
        outputs = runner.run(feeds)
        got = [[x for x in output[()] if x.size] if output.dtype == object else [output] for output in outputs]
        assert [[array.shape for array in arrays] for arrays in got] == expected
        for output, arrays in zip(outputs, got, strict=True):
            values = np.concatenate([np.zeros(0, np.float32), *(array.ravel() for array in arrays)])
            np.testing.assert_array_equal(joined(output).ravel(), values)
        if name == "branching":
            wanted = [feeds["x"] @ W["a"], feeds["x"] @ W["a"] @ W["b"]] if flag else [feeds["x"] @ W["a"]]
            for arrays, reals in zip(got, wanted, strict=False):
                np.testing.assert_allclose(arrays[0], reals, rtol=1e-4, atol=1e-5)
        if name == "looping":
            np.testing.assert_allclose(got[0][0], feeds["x"] @ W["a"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(got[1][0], feeds["x"])
        if name == "scanning":
            np.testing.assert_array_equal(np.stack(got[0]), feeds["xs"])
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


def in_loop(nodes: list[onnx.NodeProto], inputs: list[Any] | None = None, state: list[Any] | None = None) -> Any:
    """A model of a Loop of three steps from state ``s`` to ``u``, of any shape unless one is given."""
    nodes = [*nodes, node("Identity", "cond", "go")]
    out = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    inner = body(nodes, [STEP, COND, info("s", state)], [out, info("u", state)])
    loop = helper.make_node("Loop", ["three", "", "x"], ["y"], name="loop", body=inner)
    three = helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.array(3), "three"))
    return model([three, loop], [*(inputs or []), info("x", STATE)], ["y"])


def test_what_changes_its_shape_from_one_iteration_to_the_next_is_quantized() -> None:
    proto = in_loop([node("Concat", "s s", "longer", axis=0), node("MatMul", "longer a", "u")])
    graph = Graph.load(proto.SerializeToString())
    result = requant.quantize(proto.SerializeToString(), samples(graph, 32), threads=1)
    assert dict(result.report.quantized)["MatMul"] == 1
    (plan,) = (tensor for name, tensor in result.plan.tensors.items() if name == "longer")
    assert plan.is_calibrated
    assert result.table is not None
    assert result.table["longer"].count == result.table.samples * 16 * (2 + 4 + 8)
    for feeds in samples(graph, 4):
        assert sqnr(run(proto, feeds)[0], run(result.data, feeds)[0]) > 25


def test_a_branch_inside_a_loop_is_quantized_as_far_as_it_is_taken() -> None:
    branches = {
        f"{which}_branch": body([node("MatMul", f"s {w}", f"o{w}")], [], [info(f"o{w}", STATE)])
        for which, w in (("then", "a"), ("else", "b"))
    }
    first = helper.make_node("Constant", [], ["first"], value=numpy_helper.from_array(np.array(0)))
    nodes = [
        first,
        node("Equal", "step first", "begins"),
        node("And", "begins flag", "either"),
        helper.make_node("If", ["either"], ["u"], name="if", **branches),
    ]
    proto = in_loop(nodes, [FLAG], STATE)
    graph = Graph.load(proto.SerializeToString())
    for flag, seen in ((True, {"oa": 1, "ob": 2}), (False, {"oa": 0, "ob": 3})):
        outputs = open_runner(graph.serialize(list(seen))).run(samples(graph, 1, flag=flag)[0])
        assert {name: joined(output).size // 16 for name, output in zip(seen, outputs, strict=True)} == seen
    result = requant.quantize(proto.SerializeToString(), samples(graph, 32, flag=True), threads=1, rest="keep")
    assert dict(result.report.quantized)["MatMul"] == 2
    for feeds in samples(graph, 4, flag=True):
        assert sqnr(run(proto, feeds)[0], run(result.data, feeds)[0]) > 25


def test_what_stands_in_another_kind_of_body_says_so() -> None:
    inner = body([node("MatMul", "row a", "o")], [info("row", STATE)], [info("o", STATE)])
    nodes = [
        node("SequenceConstruct", "x x", "rows"),
        helper.make_node("SequenceMap", ["rows"], ["ys"], name="map", body=inner),
        node("ConcatFromSequence", "ys", "z", axis=0),
    ]
    proto = model(nodes, [info("x", STATE)], ["z"])
    plan = build_plan(Graph.load(proto.SerializeToString()), QuantConfig())
    assert {skip.reason for skip in plan.skipped if skip.op_type == "MatMul"} == {"it stands inside SequenceMap"}


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_a_scan_along_any_axis_from_either_end_can_be_seen(opset: int, axis: int, reverse: int) -> None:
    nodes = [
        node("Add", "left right", "both"),
        node("Add", "both s", "sum"),
        node("Sin", "sum", "u"),
        node("Identity", "right", "same"),
    ]
    inner = body(nodes, [info(name, [3]) for name in ("s", "left", "right")], [info("u", [3]), info("same", [3])])
    scan = helper.make_node(
        "Scan",
        ["x0", "first", "second"],
        ["last", "ys"],
        body=inner,
        num_scan_inputs=2,
        scan_input_axes=[axis, 0],
        scan_input_directions=[reverse, 1 - reverse],
        scan_output_axes=[axis],
        scan_output_directions=[reverse],
    )
    inputs = [info("x0", [3]), info("first", [4, 3] if axis == 0 else [3, 4]), info("second", [4, 3])]
    graph = helper.make_graph([scan], "g", inputs, [info("last", None), info("ys", None)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    found = Graph.load(proto.SerializeToString())
    feeds = samples(found, 1)[0]
    expected = open_runner(found.serialize()).run(feeds)
    seeing = found.serialize(["last", "ys", "left", "both"])
    rows = np.moveaxis(feeds["first"], axis, 0)[:: -1 if reverse else 1]
    for kind in (OrtRunner, ReferenceRunner)[: 2 - reverse]:  # the latter cannot put into the front of nothing
        *outputs, left, both = kind(seeing).run(feeds)
        for own, output in zip(expected, outputs, strict=True):
            np.testing.assert_allclose(own, output, rtol=0 if kind is OrtRunner else 1e-5)
        np.testing.assert_array_equal(held(left)[0], rows)
        np.testing.assert_array_equal(held(both)[0], rows + feeds["second"][:: 1 if reverse else -1])


def test_tensors_of_two_branches_may_have_one_name() -> None:
    branches = {
        f"{which}_branch": body(
            [node("MatMul", f"x {first}", "p"), node("Relu", "p", "r"), node("MatMul", f"r {second}", "o")],
            [],
            [info("o", ROWS)],
        )
        for which, first, second in (("then", "a", "b"), ("else", "c", "d"))
    }
    proto = model([node("If", "flag", "y", **branches)], [FLAG, info("x", ROWS)], ["y"])
    data = proto.SerializeToString()
    result = requant.quantize(data, samples(Graph.load(data), 32), threads=1, include=["MatMul"])
    assert dict(result.report.quantized)["MatMul"] == 4
    for feeds in samples(Graph.load(data), 4):
        assert sqnr(run(proto, feeds)[0], run(result.data, feeds)[0]) > 25


def test_constants_that_nothing_uses_leave_bodies_too() -> None:
    proto = branching()
    (call,) = (n for n in proto.graph.node if n.op_type == "If")
    inner = next(a.g for a in call.attribute if a.name == "then_branch")
    kept = len(inner.initializer)
    inner.initializer.append(numpy_helper.from_array(np.zeros(9, np.float32), "nobody_reads_it"))
    loaded = Graph.load(proto.SerializeToString())
    drop_unused(loaded.model)
    after = onnx.load_from_string(loaded.to_bytes()).graph
    (call,) = (n for n in after.node if n.op_type == "If")
    inner = next(a.g for a in call.attribute if a.name == "then_branch")
    assert len(inner.initializer) == kept

"""Preparation keeps the function of a model: onnxruntime gives the same before and after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, strategies as st
from tests.models import Net, conv_relu, run, samples
from tests.preparing import op_types, prepared_equals

from requant.onnx.graph import Graph
from requant.onnx.passes import cleanup, prepare, shapes
from requant.onnx.passes.affine import fold_affine

Build = Callable[[Net], list[str]]


# -- linear ops and what follows them --------------------------------------------------------------------------------


def conv(net: Net, *, group: int = 1, bias: bool = True) -> tuple[str, int, int]:
    x = net.input("x", ["n", 4, 6, 6])
    return net.conv(x, 4, 8, group=group, bias=bias), 8, 4


def conv_transpose(net: Net, *, group: int = 1, bias: bool = True) -> tuple[str, int, int]:
    x = net.input("x", ["n", 4, 5, 5])
    w = net.normal(4, 6 // group, 3, 3, scale=0.2)
    return net.op("ConvTranspose", x, w, *([net.normal(6)] if bias else []), group=group, strides=[2, 2]), 6, 4


def gemm(net: Net, *, trans_b: int = 0, bias: bool = True) -> tuple[str, int, int]:
    return net.gemm(net.input("x", ["n", 6]), 6, 5, trans_b=trans_b, bias=bias), 5, 2


def matmul(net: Net) -> tuple[str, int, int]:
    return net.op("MatMul", net.input("x", ["n", 6]), net.normal(6, 5)), 5, 2


LINEAR: dict[str, Callable[[Net], tuple[str, int, int]]] = {
    "conv": conv,
    "conv without bias": lambda net: conv(net, bias=False),
    "grouped conv": lambda net: conv(net, group=2),
    "depthwise conv": lambda net: conv(net, group=4),
    "conv transpose": conv_transpose,
    "grouped conv transpose": lambda net: conv_transpose(net, group=2),
    "conv transpose without bias": lambda net: conv_transpose(net, bias=False),
    "gemm": gemm,
    "gemm transB": lambda net: gemm(net, trans_b=1),
    "gemm without bias": lambda net: gemm(net, bias=False),
    "matmul": matmul,
}


def channel(rank: int, channels: int) -> tuple[int, ...]:
    return (channels,) + (1,) * (rank - 2)


def nonzero(net: Net, *shape: int) -> str:
    return net.const(net.rng.uniform(0.5, 2.0, shape) * net.rng.choice([-1, 1], shape))


#: Followers that fold away: (net, tensor, channels, rank) -> tensor.
AFFINE: dict[str, Callable[[Net, str, int, int], str]] = {
    "batch norm": lambda net, y, c, r: net.batch_norm(y, c),
    "batch norm with epsilon": lambda net, y, c, r: net.batch_norm(y, c, epsilon=0.1),
    "add channels": lambda net, y, c, r: net.op("Add", y, net.normal(*channel(r, c))),
    "add on the left": lambda net, y, c, r: net.op("Add", net.normal(*channel(r, c)), y),
    "add full rank": lambda net, y, c, r: net.op("Add", y, net.normal(1, *channel(r, c))),
    "add scalar": lambda net, y, c, r: net.op("Add", y, net.const(0.5)),
    "sub": lambda net, y, c, r: net.op("Sub", y, net.normal(*channel(r, c))),
    "sub from constant": lambda net, y, c, r: net.op("Sub", net.normal(*channel(r, c)), y),
    "mul channels": lambda net, y, c, r: net.op("Mul", y, nonzero(net, *channel(r, c))),
    "mul scalar on the left": lambda net, y, c, r: net.op("Mul", net.const([3.0]), y),
    "div channels": lambda net, y, c, r: net.op("Div", y, nonzero(net, *channel(r, c))),
    "div scalar": lambda net, y, c, r: net.op("Div", y, net.const(4.0)),
    "three in a row": lambda net, y, c, r: net.op(
        "Sub", net.const(1.0), net.batch_norm(net.op("Mul", y, nonzero(net, *channel(r, c))), c)
    ),
}


@pytest.mark.parametrize("follower", AFFINE)
@pytest.mark.parametrize("linear", LINEAR)
def test_affine_followers_fold_and_keep_the_function(linear: str, follower: str) -> None:
    net = Net(seed=len(linear) * 100 + len(follower))
    y, channels, rank = LINEAR[linear](net)
    out = AFFINE[follower](net, y, channels, rank)
    net.nodes[-1].output[0] = "the_output"
    assert out
    prepared = prepared_equals(net.model("the_output"))
    assert len(prepared.nodes) == 1, op_types(prepared)
    assert prepared.outputs[0].name == "the_output"


def per_pixel(net: Net) -> list[str]:
    y, _, _ = conv(net)
    return [net.op("Add", y, net.normal(1, 8, 6, 6))]


def last_axis(net: Net) -> list[str]:
    y, _, _ = conv(net)
    return [net.op("Mul", y, net.normal(6))]


def shared_output(net: Net) -> list[str]:
    y, _, _ = conv(net)
    return [net.op("Relu", net.op("Mul", y, net.const(2.0))), net.op("Sigmoid", y)]


def graph_output(net: Net) -> list[str]:
    y, _, _ = conv(net)
    return [net.op("Mul", y, net.const(2.0)), y]


def added_to_itself(net: Net) -> list[str]:
    y, _, _ = conv(net)
    return [net.op("Add", y, y)]


def computed(net: Net) -> list[str]:
    y, _, _ = conv(net)
    return [net.op("Mul", y, net.input("z", ["n", 8, 1, 1]))]


def divided_by_it(net: Net) -> list[str]:
    y, _, _ = conv(net)
    return [net.op("Div", net.const(2.0), y)]


def divided_by_zero(net: Net) -> list[str]:
    y, _, _ = conv(net)
    return [net.op("Mul", net.op("Div", y, net.const(np.array([0.0, *[1.0] * 7]).reshape(8, 1, 1))), net.const(0.0))]


def rows_of_gemm(net: Net) -> list[str]:
    return [net.op("Add", net.gemm(net.input("x", [3, 6]), 6, 5), net.normal(3, 1))]


def scaled_gemm(net: Net) -> list[str]:
    return [net.batch_norm(net.gemm(net.input("x", ["n", 6]), 6, 5, alpha=0.5, beta=2.0), 5)]


def batched_matmul(net: Net) -> list[str]:
    return [net.op("Add", net.op("MatMul", net.input("x", ["n", 3, 6]), net.normal(6, 5)), net.normal(5))]


def raised_rank(net: Net) -> list[str]:
    return [net.op("Add", net.gemm(net.input("x", ["n", 6]), 6, 5), net.normal(2, 1, 5))]


NOT_AFFINE: list[Build] = [
    per_pixel,
    last_axis,
    shared_output,
    graph_output,
    added_to_itself,
    computed,
    divided_by_it,
    divided_by_zero,
    rows_of_gemm,
    scaled_gemm,
    batched_matmul,
    raised_rank,
]


@pytest.mark.parametrize("build", NOT_AFFINE, ids=lambda b: b.__name__)
def test_what_is_not_affine_per_channel_stays(build: Build) -> None:
    net = Net()
    model = net.model(*build(net))
    graph = Graph.load(model)
    before = op_types(graph)
    assert fold_affine(graph.model) == 0
    assert op_types(graph) == before
    prepared_equals(model)


def test_batch_norm_in_training_mode_stays() -> None:
    net = Net()
    y, channels, _ = conv(net)
    c = [net.normal(channels) for _ in range(3)] + [net.const(np.ones(channels))]
    outputs = net.ops("BatchNormalization", y, *c, outputs=["y", "mean", "var"], training_mode=1)
    graph = Graph.load(net.model(*outputs))
    assert fold_affine(graph.model) == 0


def test_a_weight_that_two_convolutions_share_is_folded_into_one_of_them_only() -> None:
    net = Net()
    x = net.input("x", ["n", 3, 6, 6])
    w = net.normal(4, 3, 3, 3, name="w")
    a = net.op("Mul", net.op("Conv", x, w), net.const(3.0))
    b = net.op("Conv", net.op("Relu", x), w)
    prepared = prepared_equals(net.model(a, b))
    assert op_types(prepared) == {"Conv": 2, "Relu": 1}
    weights = [node.inputs[1] for node in prepared.nodes if node.op_type == "Conv"]
    assert {value.name for value in weights if value is not None} == {"w", "w_folded"}


@pytest.mark.parametrize("taken", ["w_folded", "w_bias"])
@pytest.mark.parametrize("kind", ["tensor", "initializer"])
def test_names_that_folding_would_choose_may_be_taken(taken: str, kind: str) -> None:
    net = Net()
    x = net.input("x", ["n", 3, 6, 6])
    if kind == "tensor":
        x = net.op("Relu", x, output=taken)
        other = net.op("Sigmoid", x)
    else:
        other = net.op("Mul", x, net.normal(3, 6, 6, name=taken))
    y = net.op("Mul", net.op("Conv", x, net.normal(4, 3, 3, 3, name="w")), net.const(3.0))
    prepared_equals(net.model(y, other))


def test_folding_that_would_overflow_is_left_alone() -> None:
    net = Net()
    small = net.op("Mul", net.input("x", ["n", 4]), net.const(1e-30))
    y = net.op("Mul", net.op("Gemm", small, net.const(np.full((4, 3), 1e30))), net.const(1e20))
    prepared_equals(net.model(y))


# -- cleanup ---------------------------------------------------------------------------------------------------------


def test_every_node_and_tensor_has_a_name_of_its_own() -> None:
    net = Net()
    x = net.input("x", ["n", 3, 6, 6])
    for i in range(3):
        x = net.op("Relu", net.conv(x, 3, 3, name="twice"), name="" if i else "twice")
    prepared, _ = prepare(Graph.load(net.model(x)))  # onnxruntime refuses the model as it is
    onnx.checker.check_model(onnx.load_from_string(prepared.to_bytes()))
    assert run(prepared.to_bytes(), {"x": np.zeros((1, 3, 6, 6), np.float32)})
    names = [node.name for node in prepared.nodes]
    assert all(names)
    assert len(set(names)) == len(names)
    tensors = [out.name for node in prepared.nodes for out in node.outputs] + list(prepared.model.graph.initializers)
    assert len(set(tensors)) == len(tensors)


def test_identities_dead_nodes_and_overridable_initializers_go() -> None:
    net = Net()
    x = net.input("x", ["n", 3, 6, 6])
    y = net.op("Identity", net.conv(net.op("Identity", x), 3, 4), output="y")
    net.op("Sigmoid", x)
    model = net.model(y)
    weight = model.graph.initializer[0]
    model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, 1, list(weight.dims)))
    graph = Graph.load(model)
    prepared, _ = prepare(graph)
    assert op_types(prepared) == {"Conv": 1}
    assert [i.name for i in prepared.inputs] == ["x"]
    assert [o.name for o in prepared.outputs] == ["y"]


def test_constants_in_every_form_become_initializers() -> None:
    """A weight may come from a Constant node's list of floats, or be computed from constants."""
    net = Net()
    x = net.input("x", ["n", 4])
    bias = net.op("Constant", value_floats=[1.0, 2.0, 3.0])
    weight = net.op("Transpose", net.op("Constant", value=onnx.numpy_helper.from_array(np.ones((3, 4), np.float32))))
    prepared = prepared_equals(net.model(net.op("Gemm", x, weight, bias)))
    node = next(n for n in prepared.nodes if n.op_type == "Gemm")
    assert all(value.name in prepared.model.graph.initializers for value in node.inputs[1:] if value is not None)


def test_a_constant_joined_with_itself_may_grow_and_is_left_to_the_optimizer() -> None:
    net = Net()
    blocks = [net.normal(4, 4), net.normal(4, 4)]
    joined = [net.op("Concat", *inputs, axis=0) for inputs in (blocks, blocks * 2)]
    first, second = Graph.load(net.model(*joined)).nodes
    assert cleanup._should_fold(first) is True
    assert cleanup._should_fold(second) is None


def claim(model: onnx.ModelProto, name: str, shape: list[int | str]) -> None:
    """Let the file say that an inner tensor has that shape."""
    model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))


def flattened(net: Net) -> str:
    """Rows of a Reshape whose shape the model computes."""
    x = net.input("x", ["n", 4, 3, 3])
    rows = net.op("Gather", net.op("Shape", x), net.const(np.array([0])), axis=0)
    return net.op("Reshape", x, net.op("Concat", rows, net.const(np.array([36])), axis=0), output="flat")


def test_a_computed_reshape_becomes_constant_without_attributes_that_opset_13_lacks() -> None:
    net = Net(13)
    model = net.model(net.gemm(flattened(net), 36, 5))
    claim(model, "flat", ["n", 36])
    graph = prepared_equals(model)
    reshape = next(node for node in graph.nodes if node.op_type == "Reshape")
    assert reshape.inputs[1] is not None
    assert reshape.inputs[1].const_value is not None, "the shape is still computed: the test does not meet the case"
    assert "allowzero" not in reshape.attributes


@pytest.mark.parametrize("shape", [[36], [1, 36, 1]])
def test_a_claimed_rank_that_cannot_be_is_not_believed(shape: list[int | str]) -> None:
    net = Net()
    model = net.model(net.op("Relu", flattened(net)))
    claim(model, "flat", shape)
    prepared_equals(model)


@pytest.mark.parametrize(("size", "believed"), [(1, False), ("n", True), ("m", True)])
def test_a_size_of_what_the_inputs_leave_free_is_not_believed(size: int | str, *, believed: bool) -> None:
    net = Net()
    doubled = net.op("Add", net.input("x", ["n", 4]), net.const(1.0), output="doubled")
    model = net.model(net.op("Reshape", doubled, net.op("Shape", doubled)))
    claim(model, "doubled", [size, 4])
    prepared_equals(model)
    graph = Graph.load(model)
    assert (shapes.doubt(graph.model) == 0) is believed


def test_inputs_and_outputs_keep_their_order() -> None:
    net = Net()
    b, a = net.input("b", ["n", 3]), net.input("a", ["n", 3])
    outs = [net.op("Identity", a, output="z"), net.op("Add", a, b, output="y"), net.op("Identity", b, output="x")]
    prepared = prepared_equals(net.model(*outs))
    assert [i.name for i in prepared.inputs] == ["b", "a"]
    assert [o.name for o in prepared.outputs] == ["z", "y", "x"]


def test_preparing_again_changes_nothing(any_model: onnx.ModelProto) -> None:
    once, changes = prepare(Graph.load(any_model))
    twice, more = prepare(once)
    assert not more
    assert twice.to_bytes() == once.to_bytes()
    assert all(change.count > 0 and change.what for change in changes)


def test_models_keep_their_function(any_model: onnx.ModelProto) -> None:
    prepared_equals(any_model)


def test_control_flow_that_reads_outer_tensors_survives() -> None:
    net = Net()
    x, flag = net.input("x", ["n", 3, 6, 6]), net.input("flag", [], onnx.TensorProto.BOOL)
    y = net.op("Mul", net.conv(x, 3, 4), net.const(2.0), output="outer")
    bodies = {}
    for branch, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        node = onnx.helper.make_node(op, [y], [branch], name="twice")
        info = onnx.helper.make_tensor_value_info(branch, 1, ["n", 4, 6, 6])
        bodies[branch] = onnx.helper.make_graph([node], branch, [], [info])
    model = net.model(net.op("If", flag, **bodies))
    prepared, _ = prepare(Graph.load(model))
    names = [node.name for node in prepared.all_nodes()]
    assert all(names)
    assert len(set(names)) == len(names) == 4
    for value in (True, False):
        feeds = {"x": samples(conv_input())["x"], "flag": np.array(value)}
        np.testing.assert_allclose(run(prepared.to_bytes(), feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-5)


def conv_input() -> onnx.ModelProto:
    net = Net()
    return net.model(net.op("Identity", net.input("x", [2, 3, 6, 6])))


# -- random graphs ---------------------------------------------------------------------------------------------------


@st.composite
def random_models(draw: st.DrawFn) -> onnx.ModelProto:
    """A chain of linear and affine steps with branches that forbid some of the folds."""
    net = Net(seed=draw(st.integers(0, 999)))
    y, channels, rank = LINEAR[draw(st.sampled_from(sorted(LINEAR)))](net)
    seen = [y]
    for name in draw(st.lists(st.sampled_from([*sorted(AFFINE), "relu", "branch"]), max_size=6)):
        if name == "relu":
            y = net.op("Relu", y)
        elif name == "branch":
            y = net.op("Add", y, draw(st.sampled_from(seen)))
        else:
            y = AFFINE[name](net, y, channels, rank)
        seen.append(y)
    extra = draw(st.lists(st.sampled_from(seen), max_size=1))
    return net.model(*dict.fromkeys([y, *extra]))


@given(random_models())
def test_random_graphs_keep_their_function(model: onnx.ModelProto) -> None:
    prepared_equals(model, rtol=1e-4)


def test_notes_of_exporters_go_and_what_is_said_of_the_interface_stays() -> None:
    model = conv_relu()
    for node in model.graph.node:
        node.doc_string = "file.py(7): forward"
        for key in ("pkg.torch.onnx.stack_trace", "namespace", "of the user"):
            node.metadata_props.add(key=key, value="note")
    model.graph.input[0].doc_string, model.doc_string = "an image", "a model"
    prepared, changes = prepare(Graph.load(model))
    written = onnx.load_from_string(prepared.to_bytes())
    assert any("notes" in change.what for change in changes)
    assert (written.graph.input[0].doc_string, written.doc_string) == ("an image", "a model")
    assert not any(node.doc_string for node in written.graph.node)
    assert {entry.key for node in written.graph.node for entry in node.metadata_props} == {"of the user"}


@pytest.mark.parametrize("axes", [(1, 1), (1, 2), (2, 1, 2)])
def test_flattening_a_tensor_twice_is_simplified(axes: tuple[int, ...]) -> None:
    """The optimizer's rule calls both shapes alike, and gives the model one of them."""
    net = Net()
    x = net.op("Relu", net.input("x", [3, 4, 8]))
    flat = [net.op("Flatten", net.op("Identity", x), axis=axis) for axis in axes]
    sums = [net.op("ReduceSum", net.op("Abs" if i else "Sqrt", each), keepdims=0) for i, each in enumerate(flat)]
    model = net.model(net.op("Sum", *sums))
    graph, _ = prepare(Graph.load(model))
    assert not {"Flatten", "Identity"} & {node.op_type for node in graph.nodes}
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)}
    np.testing.assert_allclose(run(graph.to_bytes(), feeds)[0], run(model, feeds)[0], rtol=1e-6)

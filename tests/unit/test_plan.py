"""Which nodes and tensors become integer, decided from the graph alone, and why the rest does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tests import models
from tests.models import Net

from requant.config import QuantConfig
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.planning.build import build_plan
from requant.types import Range

if TYPE_CHECKING:
    from collections.abc import Callable

    from requant.planning.plan import QuantPlan


def plan_of(model: onnx.ModelProto, **options: object) -> QuantPlan:
    graph = prepare(Graph.load(model))[0]
    before = graph.to_bytes()
    plan = build_plan(graph, QuantConfig().with_options(**options))
    assert graph.to_bytes() == before, "planning has changed the graph"
    _is_consistent(graph, plan)
    return plan


def _is_consistent(graph: Graph, plan: QuantPlan) -> None:
    """What holds of any plan: its names are the graph's, each node is in it once, and all it reads is planned."""
    nodes = {node.name: node for node in graph.nodes}
    tensors = {i.name for i in graph.inputs} | {out.name for node in graph.nodes for out in node.outputs}
    planned = [node.name for node in plan.nodes]
    skipped = [skip.node for skip in plan.skipped]
    assert len({*planned, *skipped}) == len(planned) + len(skipped)
    assert {*planned, *skipped} <= set(nodes)
    assert set(plan.tensors) <= tensors
    assert all(skip.reason and nodes[skip.node].op_type == skip.op_type for skip in plan.skipped)
    for node in plan.nodes:
        inputs = [value.name if value is not None else None for value in nodes[node.name].inputs]
        assert all(inputs[index] == name and name in plan.tensors for index, name in node.activations)
        for name in (node.weight, node.bias):
            assert name is None or (name in inputs and name in graph.model.graph.initializers)
        assert (node.weight is None) == (node.weight_axis is None)
    for name, tensor in plan.tensors.items():
        assert tensor.name == name
        assert tensor.source is None or plan.tensors[tensor.source].source is None, "a tie leads to the end"
    untied = [name for name, t in plan.tensors.items() if t.is_calibrated or _is_joined(name, plan)]
    assert list(plan.calibrated) == untied


def _is_joined(name: str, plan: QuantPlan) -> bool:
    return any(name in tensor.joined for tensor in plan.tensors.values())


@dataclass(frozen=True)
class Case:
    """What to expect of a plan: nodes by name, tensors to calibrate, tied tensors, reasons by op type."""

    build: Callable[[], onnx.ModelProto]
    nodes: set[str]
    calibrated: set[str]
    ties: dict[str, str]
    reasons: dict[str, str]
    fixed: frozenset[str] = frozenset()


def weights_shared() -> onnx.ModelProto:
    net = Net()
    x, w = net.input("x", ["n", 4]), net.normal(4, 4)
    return net.model(net.op("MatMul", net.op("MatMul", x, w, name="a", output="h"), w, name="b", output="y"))


def attention() -> onnx.ModelProto:
    """The product of two activations stays float, and so does the Softmax between."""
    net = Net()
    x = net.input("x", ["n", 5, 8])
    q, k, v = (net.op("MatMul", x, net.normal(8, 8), name=name) for name in "qkv")
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]), name="scores")
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), v, name="mix", output="mixed")
    return net.model(net.op("MatMul", mixed, net.normal(8, 8), name="out", output="y"))


def inner_output() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    a = net.conv(x, 3, 4, name="a", output="inner")
    return net.model(net.conv(net.op("Relu", a, output="h"), 4, 2, name="b", output="y"), a)


def clamp_of_two_readers() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    a = net.op("Relu", net.conv(x, 3, 4, name="a"), output="h")
    return net.model(net.conv(a, 4, 2, name="b", output="y"), net.op("Exp", a, name="exp", output="z"))


def result_of_two_readers() -> onnx.ModelProto:
    """Relu and another op read the convolution: Relu cannot vanish into it."""
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    a = net.conv(x, 3, 4, name="a", output="inner")
    b = net.conv(net.op("Relu", a, output="h", name="relu"), 4, 2, name="b", output="y")
    return net.model(b, net.op("Exp", a, name="exp", output="z"))


def loose_chain() -> onnx.ModelProto:
    """Reshape, Transpose and Concat behind the convolution that no integer op reads."""
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    a = net.conv(x, 3, 4, name="a", output="h")
    joined = net.op("Concat", net.op("MaxPool", a, kernel_shape=[1, 1]), a, axis=1)
    return net.model(net.op("Exp", net.op("Transpose", joined, perm=[0, 2, 3, 1]), output="y"))


def clamp_alone() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    return net.model(net.conv(net.op("Relu", x, output="h"), 3, 4, name="a", output="y"))


def dynamic_clip() -> onnx.ModelProto:
    net = Net()
    x, high = net.input("x", ["n", 3, 8, 8]), net.input("high", [])
    a = net.op("Clip", net.conv(x, 3, 4, name="a", output="inner"), "", high, output="h")
    return net.model(net.conv(a, 4, 2, name="b", output="y"))


def indices_of_pooling() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    a = net.conv(x, 3, 4, name="a", output="h")
    pooled, where = net.ops("MaxPool", a, outputs=["pooled", "where"], kernel_shape=[2, 2], name="pool")
    return net.model(net.conv(pooled, 4, 2, name="b", output="y"), where)


def tied_moves() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    a = net.conv(x, 3, 4, name="a", output="h")
    b = net.op(
        "MaxPool", net.op("DepthToSpace", a, blocksize=2, name="d2s", output="m1"), kernel_shape=[2, 2], name="p"
    )
    return net.model(net.conv(b, 1, 2, name="b", output="y"))


CASES: dict[str, Case] = {
    "conv relu": Case(models.conv_relu, {"n0"}, {"x", "y"}, {}, {}),
    "gemm gives float at the end": Case(models.two_gemm, {"first", "second"}, {"x", "t1"}, {}, {}),
    "residual add": Case(
        models.residual, {"stem", "branch", "join", "last"}, {"x", "stem_out", "t2", "joined", "y"}, {}, {}
    ),
    "concat": Case(models.concat, {"left", "right", "both", "last"}, {"x", "t0", "t1", "t2", "y"}, {}, {}),
    "pooling": Case(
        models.pool_chain,
        {"n0", "n3", "n6", "pool", "gap", "node_Reshape_0"},  # the Flatten of before
        {"x", "t1", "t3", "t4"},
        {"t2": "t1", "t5": "t4"},
        {},
    ),
    "a fixed range": Case(
        models.silu, {"n0", "gate", "scale", "n3"}, {"x", "t0", "t2", "y"}, {}, {}, frozenset({"t1"})
    ),
    "depthwise with clip": Case(models.depthwise, {"depthwise", "pointwise"}, {"x", "t1", "y"}, {}, {}),
    "nhwc": Case(
        models.nhwc,
        {"n1"},
        {"t0", "t1"},
        {},
        {"in": "its input is float", "out": "no integer op reads its output"},
    ),
    "split": Case(models.split, {"n0", "split", "n2", "n3"}, {"x", "t0", "y0", "y1"}, {"s0": "t0", "s1": "t0"}, {}),
    "rank 3 product": Case(
        models.mlp,
        {"n0", "n3"},
        {"x", "t2"},
        {},
        {"n1": "its input is float", "n2": "a clamp of its own: no integer op stands before it"},
    ),
    "shared weights": Case(weights_shared, {"a", "b"}, {"x", "h"}, {}, {}),
    "attention": Case(
        attention,
        {"q", "k", "v", "out"},
        {"x", "mixed"},
        {},
        {"scores": "its weight is computed at run time", "mix": "its weight is computed at run time"},
    ),
    "a tensor that is an output": Case(inner_output, {"a", "b"}, {"x", "inner", "h", "y"}, {}, {}),
    "clamp with two readers": Case(
        clamp_of_two_readers, {"a", "b"}, {"x", "h", "y"}, {}, {"exp": "Exp has no integer form here"}
    ),
    "clamp beside another reader": Case(
        result_of_two_readers,
        {"a", "b"},
        {"x", "inner", "h", "y"},
        {},
        {"relu": "a clamp of its own: no integer op stands before it"},
    ),
    "a chain that nothing reads": Case(loose_chain, {"a"}, {"x", "h"}, {}, {"n1": "no integer op reads its output"}),
    "a clamp of its own": Case(
        clamp_alone, {"a"}, {"h", "y"}, {}, {"n0": "a clamp of its own: no integer op stands before it"}
    ),
    "clip with a computed bound": Case(dynamic_clip, {"a", "b"}, {"x", "inner", "h", "y"}, {}, {}),
    "moves": Case(tied_moves, {"a", "d2s", "p", "b"}, {"x", "h", "y"}, {"m1": "h", "t2": "h"}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_plans(name: str) -> None:
    case = CASES[name]
    plan = plan_of(case.build())
    assert {node.name for node in plan.nodes} == case.nodes, plan.skipped
    assert set(plan.calibrated) == case.calibrated
    assert {t.name: t.source for t in plan.tensors.values() if t.source is not None} == case.ties
    assert {t.name for t in plan.tensors.values() if t.fixed is not None} == case.fixed
    reasons = {skip.node: skip.reason for skip in plan.skipped}
    assert case.reasons.items() <= reasons.items()


def test_only_values_become_integer_not_the_indices_of_a_pooling() -> None:
    plan = plan_of(indices_of_pooling())
    assert "where" not in plan.tensors
    assert {"a", "b"} <= {node.name for node in plan.nodes}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
def test_every_model_has_a_consistent_plan(
    any_model: onnx.ModelProto, symmetric: bool, activations: str, target: str
) -> None:
    plan = plan_of(any_model, symmetric=symmetric, activations=activations, target=target)
    assert plan.nodes
    schemes = {tensor.scheme for tensor in plan.tensors.values()}
    assert schemes == {QuantConfig(symmetric=symmetric, activations=activations).activation_scheme}


def test_planning_twice_gives_equal_plans(any_model: onnx.ModelProto) -> None:
    assert plan_of(any_model) == plan_of(any_model)


# -- nodes that cannot be quantized ----------------------------------------------------------------------------------


def refused(build: Callable[[Net], str]) -> dict[str, str]:
    net = Net()
    plan = plan_of(net.model(build(net)))
    assert not plan.nodes
    assert not plan.tensors
    return {skip.op_type: skip.reason for skip in plan.skipped}


def f32(net: Net, *dims: models.Dim) -> str:
    return net.input("x", dims or ("n", 4))


REFUSED: dict[str, tuple[Callable[[Net], str], str, str]] = {
    "unknown to the table": (lambda net: net.op("Erf", f32(net)), "Erf", "no integer form"),
    "unknown to the target": (
        lambda net: net.op("ConvTranspose", f32(net, "n", 3, 4, 4), net.normal(3, 2, 3, 3)),
        "ConvTranspose",
        "ort-cpu has no integer kernel for ConvTranspose",
    ),
    "weight is an input": (
        lambda net: net.op("MatMul", f32(net), net.input("w", [4, 4])),
        "MatMul",
        "its weight is computed at run time",
    ),
    "bias is an input": (
        lambda net: net.op("Gemm", f32(net), net.normal(4, 3), net.input("b", [3])),
        "Gemm",
        "its bias is computed at run time",
    ),
    "bias of rows": (
        lambda net: net.op("Gemm", f32(net, 2, 4), net.normal(4, 3), net.normal(2, 3)),
        "Gemm",
        "its bias differs between rows",
    ),
    "constant on the left": (
        lambda net: net.op("MatMul", net.normal(2, 5), f32(net, 5, 4)),
        "MatMul",
        "is a constant",
    ),
    "factors": (lambda net: net.op("Gemm", f32(net), net.const(np.full((4, 3), 3e38)), alpha=2.0), "Gemm", "alpha"),
    "transA": (lambda net: net.gemm(f32(net, 4, 2), 4, 3, transA=1), "Gemm", "transA"),
    "float64": (  # float32 would make infinity of its weights
        lambda net: net.op(
            "MatMul",
            net.input("x", ["n", 4], onnx.TensorProto.DOUBLE),
            net.op("Constant", value=onnx.numpy_helper.from_array(np.full((4, 4), 1e300))),
        ),
        "MatMul",
        "its input is double, not float32",
    ),
    "empty weight": (lambda net: net.op("MatMul", f32(net), net.normal(4, 0)), "MatMul", "its weight is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_stays_float_has_its_reason(case: str) -> None:
    build, op_type, reason = REFUSED[case]
    assert reason in refused(build)[op_type]


def test_nodes_without_floats_are_not_spoken_of() -> None:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    y = net.conv(x, 3, 4, name="a")
    size = net.op("Shape", y)
    plan = plan_of(net.model(net.op("Gather", size, net.const(np.array(0)), output="z"), y))
    assert {skip.op_type for skip in plan.skipped} <= {"Shape"}


def test_a_fixed_range_is_that_of_the_op() -> None:
    assert plan_of(models.silu()).tensors["t1"].fixed == Range(0.0, 1.0)


def test_generic_quantizes_all_that_has_a_row() -> None:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    y = net.op("ConvTranspose", x, net.normal(3, 2, 3, 3), name="up")
    plan = plan_of(net.model(y), target="generic")
    assert [(node.name, node.weight_axis) for node in plan.nodes] == [("up", 1)]

"""The graph that is written: valid, of the simulated values, and in integer kernels where it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.models import MODELS, Net, run, session
from tests.quantized import Quantized, sqnr

from requant.arrays import affine
from requant.targets import get_target

if TYPE_CHECKING:
    from pathlib import Path


CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "symmetric int8": {"symmetric": True, "activations": "int8"},
    "uint8 weights": {"weights": "uint8"},
    "per tensor": {"per_channel": False},
    "full range": {"saturation": "full"},
    "generic": {"target": "generic"},
}


@pytest.mark.parametrize("options", CONFIGS)
@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_valid_and_simulated_alike(name: str, options: str) -> None:
    """The reference evaluator and the runtime, with and without its optimizer, agree to one step of the output."""
    q = Quantized(MODELS[name](), **CONFIGS[options])
    onnx.checker.check_model(q.proto, full_check=True)
    assert [o.name for o in q.proto.graph.output] == [o.name for o in q.model.graph.output]
    assert [i.name for i in q.proto.graph.input] == [i.name for i in q.model.graph.input]
    newer = onnx.version_converter.convert_version(q.proto, 21)  # the evaluator has the ops from opset 19 on
    expected = ReferenceEvaluator(newer).run(None, q.feeds)
    reals = run(q.model, q.feeds)
    # Without pairs that fit 16 bits, the runtime's kernels saturate on CPUs before VNNI.
    exact = q.config.weights == "uint8" or (q.config.saturation == "safe" and get_target(q.config.target).pair_products)
    for optimize in (False, True) if exact else (False,):
        for real, want, got, step in zip(
            reals, expected, run(q.data, q.feeds, optimize=optimize), q.steps(), strict=True
        ):
            difference = np.abs(got - want)
            assert difference.max() <= 1.01 * step, f"optimize={optimize}: {difference.max() / step:.2f} steps"
            assert np.mean(difference > 0.01 * step) < 0.05, f"optimize={optimize}"
            assert sqnr(real, got) > 18


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_written_are_those_resolved(name: str) -> None:
    q = Quantized(MODELS[name]())
    written = {i.name: numpy_helper.to_array(i) for i in q.proto.graph.initializer}
    producers = {out: node for node in q.proto.graph.node for out in node.output}
    nodes = {node.name: node for node in q.proto.graph.node}
    for plan in q.plan.nodes:
        for index, tensors in ((1, q.resolved.weights), (2, q.resolved.biases)):
            if plan.name in tensors:
                dequantize = producers[nodes[plan.name].input[index]]
                assert dequantize.op_type == "DequantizeLinear"
                data, scale, *zero_point = (written[name] for name in dequantize.input)
                tensor = tensors[plan.name]
                np.testing.assert_array_equal(data, tensor.data, strict=True)
                np.testing.assert_array_equal(scale, tensor.params.scale, strict=True)
                if zero_point or tensor.params.zero_point.any():
                    np.testing.assert_array_equal(zero_point[0], tensor.params.zero_point, strict=True)


@pytest.mark.parametrize("name", MODELS)
def test_no_float_weight_is_left_and_names_are_unique(name: str) -> None:
    q = Quantized(MODELS[name]())
    planned = {n.weight for n in q.plan.nodes} | {n.bias for n in q.plan.nodes}
    assert not planned & {i.name for i in q.proto.graph.initializer}
    assert all(np.size(numpy_helper.to_array(i)) <= 32 for i in q.proto.graph.initializer if i.data_type == 1)
    produced = [out for node in q.proto.graph.node for out in node.output]
    names = produced + [i.name for i in q.proto.graph.initializer] + [i.name for i in q.proto.graph.input]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [name for name, count in Counter(n.name for n in q.proto.graph.node).items() if count > 1] == []
    used = {i for node in q.proto.graph.node for i in node.input}
    assert {i.name for i in q.proto.graph.initializer} <= used


def test_a_layer_of_numpy() -> None:
    """Gemm, written out in integers."""
    net = Net()
    model = net.model(net.op("Relu", net.gemm(net.input("x", ["n", 6]), 6, 4, name="fc"), output="h"))
    q = Quantized(model)
    x = q.resolved.activations["x"]
    integers = affine.quantize_array(q.feeds["x"], x).data.astype(np.int64) - int(x.zero_point)
    w, b = q.resolved.weights["fc"], q.resolved.biases["fc"]
    sums = integers @ w.data.astype(np.int64) + b.data
    reals = np.maximum(sums * (np.float64(x.scale) * w.params.scale.astype(np.float64)), 0)
    np.testing.assert_allclose(run(q.data, q.feeds)[0], reals, atol=1e-5)


# -- what the runtime makes of it ------------------------------------------------------------------------------------

Build = Callable[[Net, str], str]


def framed(net: Net, build: Build) -> onnx.ModelProto:
    """``build`` between two convolutions, which are integer."""
    x = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 8, 1)
    y = build(net, x)
    return net.model(net.conv(y, 8, 4, 1))


def rank_2(net: Net, x: str) -> str:
    return net.op("Flatten", net.op("GlobalAveragePool", x))


def gemm_chain(net: Net) -> onnx.ModelProto:
    a = net.gemm(net.input("x", ["n", 8]), 8, 16)
    return net.model(net.gemm(net.op("Relu", a), 16, 4))


def matmul_chain(net: Net) -> onnx.ModelProto:
    a = net.op("MatMul", net.input("x", ["n", 5, 8]), net.normal(8, 16))
    return net.model(net.op("MatMul", net.op("Relu", a), net.normal(16, 4)))


def gate(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def choice(net: Net, x: str) -> str:
    return net.op(
        "Where", net.input("mask", ["n", 8, 8, 8], onnx.TensorProto.BOOL), x, net.op("Relu", net.conv(x, 8, 8))
    )


#: The kernel that each op of the target must become, and a model that shows it.
KERNELS: dict[str, tuple[str, Callable[[Net], onnx.ModelProto]]] = {
    "Conv": ("QLinearConv", lambda net: framed(net, lambda n, x: n.op("Relu", n.conv(x, 8, 8)))),
    "Gemm": ("QGemm", gemm_chain),
    "MatMul": ("QLinearMatMul", matmul_chain),
    "Add": ("QLinearAdd", lambda net: framed(net, lambda n, x: n.op("Add", x, n.conv(x, 8, 8)))),
    "Mul": ("QLinearMul", lambda net: framed(net, gate)),
    "Sigmoid": ("QLinearSigmoid", lambda net: framed(net, gate)),
    "Concat": (
        "QLinearConcat",
        lambda net: framed(net, lambda n, x: n.op("Concat", n.conv(x, 8, 4), n.conv(x, 8, 4, 1), axis=1)),
    ),
    "Where": ("QLinearWhere", lambda net: framed(net, choice)),
    "Softmax": ("QLinearSoftmax", lambda net: framed(net, lambda n, x: n.op("Softmax", x, axis=1))),
    "LeakyRelu": ("QLinearLeakyRelu", lambda net: framed(net, lambda n, x: n.op("LeakyRelu", x, alpha=0.1))),
    "AveragePool": (
        "QLinearAveragePool",
        lambda net: framed(net, lambda n, x: n.op("AveragePool", x, kernel_shape=[2, 2])),
    ),
    "GlobalAveragePool": (
        "QLinearGlobalAveragePool",
        lambda net: framed(net, lambda n, x: n.op("GlobalAveragePool", x)),
    ),
}

#: Models in which an op only moves integers; what becomes of it is the op itself, on integers.
MOVES: dict[str, Build] = {
    "MaxPool": lambda n, x: n.op("MaxPool", x, kernel_shape=[2, 2]),
    "Reshape": lambda n, x: n.op("Reshape", x, n.const(np.array([-1, 8, 16, 4]))),
    "Transpose": lambda n, x: n.op("Transpose", x, perm=[0, 1, 3, 2]),
    "Slice": lambda n, x: n.op("Slice", x, n.const(np.array([1])), n.const(np.array([5])), n.const(np.array([2]))),
    "Gather": lambda n, x: n.op("Gather", x, n.const(np.array([0, 2, 4])), axis=2),
    "GatherElements": lambda n, x: n.op("GatherElements", x, n.const(np.zeros((8, 8, 8, 8), np.int64)), axis=2),
    "ReduceMax": lambda n, x: n.op("ReduceMax", x, axes=[2, 3]),
    "ReduceMin": lambda n, x: n.op("ReduceMin", x, axes=[2, 3]),
    "Expand": lambda n, x: n.op("Expand", x, n.const(np.array([2, 1, 1, 1, 1]))),
    "Tile": lambda n, x: n.op("Tile", x, n.const(np.array([1, 1, 2, 1]))),
    "DepthToSpace": lambda n, x: n.op("DepthToSpace", n.conv(x, 8, 32), blocksize=2),
    "Resize": lambda n, x: n.op("Resize", x, "", n.const([1.0, 1.0, 2.0, 2.0]), mode="nearest"),
    "Split": lambda n, x: n.op(
        "Concat", *(n.op("Relu", n.conv(h, 4, 4)) for h in n.ops("Split", x, outputs=["s0", "s1"], axis=1)), axis=1
    ),
    "Flatten": lambda n, x: n.op("Flatten", x),
    "Squeeze": lambda n, x: n.op("Squeeze", n.op("GlobalAveragePool", x), n.const(np.array([2, 3]))),
    "Unsqueeze": lambda n, x: n.op("Unsqueeze", x, n.const(np.array([0]))),
}


def optimized(data: bytes, folder: Path) -> Counter[str]:
    path = folder / "optimized.onnx"
    session(data, save_to=str(path))
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_every_op_of_the_target_is_tried() -> None:
    target = get_target("ort-cpu")
    assert set(KERNELS) == target.fused
    assert set(MOVES) == target.moves


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("op_type", KERNELS)
def test_the_runtime_computes_on_integers(op_type: str, symmetric: bool, tmp_path: Path) -> None:
    kernel, build = KERNELS[op_type]
    q = Quantized(build(Net(opset=17)), symmetric=symmetric)
    counts = optimized(q.data, tmp_path)
    planned = sum(node.op_type == op_type for node in q.plan.nodes)
    assert counts[kernel] == planned - (op_type in ("Gemm", "MatMul") and kernel != "QGemm"), counts
    assert counts[op_type] == 0, counts
    assert counts["QuantizeLinear"] == 1, counts


@pytest.mark.parametrize("op_type", MOVES)
def test_the_runtime_moves_integers(op_type: str, tmp_path: Path) -> None:
    net = Net(opset=17)
    x = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 8, 1)
    y = MOVES[op_type](net, x)
    if op_type in ("Flatten", "Squeeze"):
        y = net.gemm(y, 512 if op_type == "Flatten" else 8, 4)
    elif op_type in ("Unsqueeze", "Expand"):
        y = net.op("MatMul", y, net.normal(8, 4))
    else:
        y = net.conv(y, 8, 4, 1)
    q = Quantized(net.model(y))
    kinds = {node.op_type for node in q.plan.nodes}
    assert kinds & ({op_type, "Reshape"} if op_type in ("Flatten", "Squeeze", "Unsqueeze") else {op_type}), (
        q.plan.skipped
    )
    counts = optimized(q.data, tmp_path)
    assert counts["QuantizeLinear"] == 1, counts
    assert counts["Conv"] == 0, counts


def products(*shapes: tuple[int, ...], x: tuple[Any, ...]) -> onnx.ModelProto:
    """MatMul by a weight of each shape in turn."""
    net = Net()
    y = net.input("x", x)
    for shape in shapes:
        y = net.op("MatMul", y, net.normal(*shape))
    return net.model(y)


def convolutions(*dims: int) -> onnx.ModelProto:
    net = Net()
    kernel = [3] * len(dims)
    a = net.op("Conv", net.input("x", ["n", 3, *dims]), net.normal(8, 3, *kernel, scale=0.2), net.normal(8))
    return net.model(net.op("Conv", net.op("Relu", a), net.normal(4, 8, *kernel, scale=0.2)))


def small_biases() -> onnx.ModelProto:
    net = Net()
    a = net.op("Gemm", net.input("x", ["n", 6]), net.normal(6, 4), net.const(0.5))
    return net.model(net.op("Gemm", net.op("Relu", a), net.normal(4, 4), net.normal(1)))


UNUSUAL: dict[str, Callable[[], onnx.ModelProto]] = {
    "a weight for each matrix of a batch": lambda: products((3, 5, 4), (3, 4, 6), x=(3, 2, 5)),
    "a weight that is a vector": lambda: products((6, 6), (6,), x=("n", 2, 6)),
    "an input that is a vector": lambda: products((6, 8), (8, 4), x=(6,)),
    "convolutions of 1 dimension": lambda: convolutions(16),
    "convolutions of 3 dimensions": lambda: convolutions(5, 5, 5),
    "biases that broadcast": small_biases,
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_shapes_run_and_stay_close(name: str, per_channel: bool) -> None:
    q = Quantized(UNUSUAL[name](), per_channel=per_channel)
    for optimize in (False, True):
        assert sqnr(run(q.model, q.feeds)[0], run(q.data, q.feeds, optimize=optimize)[0]) > 28, f"optimize={optimize}"


# -- clamps ----------------------------------------------------------------------------------------------------------


def test_a_clamp_behind_an_op_that_moves_values_leaves_it_integer(tmp_path: Path) -> None:
    """conv -> maxpool -> relu -> conv, as exporters write it."""
    net = Net()
    a = net.op("MaxPool", net.conv(net.input("x", ["n", 3, 8, 8]), 3, 8), kernel_shape=[2, 2])
    q = Quantized(net.model(net.conv(net.op("Relu", a), 8, 4)))
    counts = optimized(q.data, tmp_path)
    assert counts["QuantizeLinear"] == 1, counts


def clamped(clamp: Callable[[Net, str], str]) -> onnx.ModelProto:
    net = Net()
    a = clamp(net, net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4))
    return net.model(net.conv(a, 4, 2, output="y"))


def test_a_clamp_that_saturation_does_is_dropped() -> None:
    for clamp in (
        lambda n, x: n.op("Relu", x),
        lambda n, x: n.op("Clip", x, n.const(0.0), n.const(0.5)),
        lambda n, x: n.op("Clip", x, n.const(0.0)),
        lambda n, x: n.op("Clip", x, n.const([0.0]), n.const([0.5])),  # no scalars, but the runtime takes them
        lambda n, x: n.op("Clip", x, n.const(-0.5), n.const(0.5)),
        lambda n, x: n.op("Clip", n.op("Relu", x), n.const(-0.5), n.const(0.5)),
    ):
        q = Quantized(clamped(clamp))
        assert q.count("Relu") + q.count("Clip") == 0
        assert q.count("Conv") == 2


def test_a_clamp_that_saturation_does_not_do_stays() -> None:
    """In the symmetric range [-0.5, 0.5] the bound -0.1 is not the smallest integer."""
    model = clamped(lambda n, x: n.op("Clip", x, n.const(-0.1), n.const(0.5)))
    q = Quantized(model, symmetric=True, activations="int8")
    assert q.count("Clip") == 1
    assert sqnr(run(q.model, q.feeds)[0], run(q.data, q.feeds)[0]) > 20


def test_a_clamp_that_another_node_reads_stays_for_it() -> None:
    net = Net()
    a = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)
    b = net.op("Relu", a)
    q = Quantized(net.model(net.conv(b, 4, 2, output="y"), net.op("Exp", a, output="z")))
    assert q.count("Relu") == 1
    for real, got in zip(run(q.model, q.feeds), run(q.data, q.feeds), strict=True):
        assert sqnr(real, got) > 20


# -- what stays float --------------------------------------------------------------------------------------------------


FLOAT_LAYERS: dict[str, Build] = {
    "Conv": lambda n, x: n.conv(x, 8, 8, name="mid"),
    "Conv behind MaxPool": lambda n, x: n.conv(n.op("MaxPool", x, kernel_shape=[2, 2]), 8, 8, name="mid"),
    "ConvTranspose": lambda n, x: n.op("ConvTranspose", x, n.normal(8, 8, 2, 2, scale=0.3), n.normal(8), name="mid"),
    "Gemm": lambda n, x: n.op(
        "Unsqueeze", n.gemm(rank_2(n, x), 8, 8, trans_b=1, name="mid"), n.const(np.array([2, 3]))
    ),
}


@pytest.mark.parametrize("layer", FLOAT_LAYERS)
def test_the_runtime_does_not_quantize_what_shall_stay_float(layer: str) -> None:
    """Its optimizer would, with one scale for all weights, where Q and DQ surround the layer."""
    q = Quantized(framed(Net(), FLOAT_LAYERS[layer]), exclude=["mid"])
    assert "mid" in q.plan.guarded
    (exact,), (got,) = run(q.data, q.feeds, optimize=False), run(q.data, q.feeds)
    (step,) = q.steps()
    assert np.max(np.abs(exact - got)) <= 1.01 * step
    assert np.mean(np.abs(exact - got) > 0.01 * step) < 0.02

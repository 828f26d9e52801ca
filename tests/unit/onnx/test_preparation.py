"""What exporters write around linear ops: the function stays, the right op is quantized, no range is stretched."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tests.models import Net, run

import requant
from requant.config import QuantConfig
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.planning.build import build_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

TOKENS: list[int | str] = ["n", 5, 8]


def feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        spec.name: np.tril(np.ones((5, 5), bool))
        if spec.dtype == bool
        else rng.standard_normal([d if isinstance(d, int) else 2 for d in spec.shape]).astype(spec.dtype)
        for spec in Graph.load(model).inputs
    }


def product(net: Net, x: str, *shape: int) -> str:
    return net.op("MatMul", x, net.normal(*(shape or (8, 8)), scale=0.35))


def between_products(build: Callable[[Net, str], str]) -> onnx.ModelProto:
    """``build`` with a product before and behind it."""
    net = Net()
    return net.model(product(net, build(net, product(net, net.input("x", TOKENS)))))


def padded_conv() -> onnx.ModelProto:
    net = Net()
    pads = net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    padded = net.op("Pad", net.input("x", ["n", 3, 8, 8]), pads, net.const(0.0))
    return net.model(net.op("Conv", padded, net.normal(4, 3, 3, 3)))


def scaled_conv() -> onnx.ModelProto:
    net = Net()
    conv = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)
    return net.model(net.op("Add", net.op("Mul", conv, net.normal(1, 4, 1, 1)), net.normal(1, 4, 1, 1)))


def normed(build: Callable[[Net], str]) -> Callable[[], onnx.ModelProto]:
    def model() -> onnx.ModelProto:
        net = Net()
        return net.model(net.batch_norm(build(net), 4))

    return model


def squeezed_conv(*axes: int, constant: tuple[int, ...] = (4, 1), shared: bool = False) -> onnx.ModelProto:
    """A convolution in one dimension as TensorFlow's exporter writes it, in two."""
    net = Net()
    conv = net.op("Conv", net.input("x", ["n", 3, 1, 8]), net.normal(4, 3, 1, 3))
    squeezed = net.op("Squeeze", conv, net.const(np.array(axes)))
    result = net.op("Relu", net.op("Add", net.batch_norm(squeezed, 4), net.normal(*constant)))
    return net.model(result, squeezed) if shared else net.model(result)


#: Models, and the ops that preparation leaves of them.
FOLDED: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, int]]] = {
    "Pad, Conv": (padded_conv, {"Conv": 1}),
    "Conv, Mul, Add": (scaled_conv, {"Conv": 1}),
    "Conv, Squeeze, BatchNormalization, Add": (lambda: squeezed_conv(2), {"Conv": 1, "Relu": 1, "Squeeze": 1}),
    "the same with a negative axis": (lambda: squeezed_conv(-2), {"Conv": 1, "Relu": 1, "Squeeze": 1}),
    "the same, added to each position": (
        lambda: squeezed_conv(2, constant=(1, 6)),
        {"Conv": 1, "Squeeze": 1, "Add": 1, "Relu": 1},
    ),
    "the same, read by others too": (
        lambda: squeezed_conv(2, shared=True),
        {"Conv": 1, "Squeeze": 1, "BatchNormalization": 1, "Add": 1, "Relu": 1},
    ),
    "ConvTranspose, BatchNormalization": (
        normed(lambda net: net.op("ConvTranspose", net.input("x", ["n", 3, 4, 4]), net.normal(3, 4, 2, 2))),
        {"ConvTranspose": 1},
    ),
    "Gemm, BatchNormalization": (normed(lambda net: net.gemm(net.input("x", ["n", 8]), 8, 4)), {"Gemm": 1}),
    "MatMul, BatchNormalization": (normed(lambda net: product(net, net.input("x", ["n", 8]), 8, 4)), {"Gemm": 1}),
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_is_affine_goes_into_the_linear_op(name: str) -> None:
    build, left = FOLDED[name]
    model = build()
    prepared, _ = prepare(Graph.load(model))
    assert Counter(node.op_type for node in prepared.nodes) == left
    for real, got in zip(run(model, feeds(model)), run(prepared.to_bytes(), feeds(model)), strict=True):
        np.testing.assert_allclose(got, real, rtol=1e-4, atol=1e-5)


# -- weights, wherever they stand --------------------------------------------------------------------------------------


def stacked(*shape: int, x: list[int | str]) -> onnx.ModelProto:
    net = Net()
    return net.model(product(net, net.input("x", x), *shape))


def shared(*, transposed: bool) -> onnx.ModelProto:
    net = Net()
    weight = net.normal(8, 8, scale=0.35)
    inner = net.op("Relu", net.op("MatMul", net.input("x", ["n", 8]), weight))
    return net.model(net.op("MatMul", inner, net.op("Transpose", weight, perm=[1, 0]) if transposed else weight))


def behind(*ops: str) -> onnx.ModelProto:
    """A weight behind a Constant and ``ops``."""
    net = Net()
    weight = net.op("Constant", value=onnx.numpy_helper.from_array(net.rng.standard_normal((8, 8)).astype(np.float32)))
    for op in ops:
        rest = [net.const(np.array([8, 8]))] if op == "Reshape" else []
        weight = net.op(op, weight, *rest)
    return net.model(net.op("MatMul", net.input("x", ["n", 8]), weight))


WEIGHTS: dict[str, tuple[onnx.ModelProto, int]] = {
    "a stack": (stacked(5, 8, 6, x=[5, 4, 8]), 1),
    "a stack of one": (stacked(1, 8, 6, x=["n", 4, 8]), 1),
    "for rank 3": (stacked(8, 6, x=TOKENS), 1),
    "shared": (shared(transposed=False), 1),
    "tied": (shared(transposed=True), 2),
    "Constant": (behind(), 1),
    "Constant, Reshape, Transpose, Identity": (behind("Reshape", "Transpose", "Identity"), 1),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_found_and_stored_once(name: str) -> None:
    model, stored = WEIGHTS[name]
    data = [feeds(model, seed) for seed in range(8)]
    result = requant.quantize(model, data, threads=1)
    products = sum(node.op_type == "MatMul" for node in model.graph.node)
    assert dict(result.report.quantized)["MatMul"] == products
    tensors = onnx.load_from_string(result.data).graph.initializer
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in tensors) == stored
    assert not any(t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1 for t in tensors)
    (real,), (got,) = run(model, data[0]), run(result.data, data[0])
    assert np.abs(got - real).max() < 0.05 * np.abs(real).max()


# -- patterns ----------------------------------------------------------------------------------------------------------


def layer_norm(net: Net, x: str) -> str:
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    variance = net.op("ReduceMean", net.op("Pow", centred, net.const(2.0)), axes=[-1])
    unit = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.const(1e-5))))
    return net.op("Add", net.op("Mul", unit, net.normal(8)), net.normal(8))


def erf_gelu(net: Net, x: str) -> str:
    erf = net.op("Erf", net.op("Div", x, net.const(2.0**0.5)))
    return net.op("Mul", net.op("Mul", x, net.op("Add", erf, net.const(1.0))), net.const(0.5))


def tanh_gelu(net: Net, x: str) -> str:
    cubic = net.op("Add", x, net.op("Mul", net.const(0.044715), net.op("Pow", x, net.const(3.0))))
    tanh = net.op("Tanh", net.op("Mul", net.const(0.7978845608), cubic))
    return net.op("Mul", net.op("Mul", net.const(0.5), x), net.op("Add", net.const(1.0), tanh))


@pytest.mark.parametrize("build", [layer_norm, erf_gelu, tanh_gelu], ids=lambda build: build.__name__)
def test_nothing_inside_a_pattern_is_quantized(build: Callable[[Net, str], str]) -> None:
    model = between_products(build)
    prepared, _ = prepare(Graph.load(model))
    plan = build_plan(prepared, QuantConfig())
    assert [node.op_type for node in plan.nodes] == ["MatMul", "MatMul"]
    assert len(plan.tensors) == 2  # what the two products read
    for real, got in zip(run(model, feeds(model)), run(prepared.to_bytes(), feeds(model)), strict=True):
        np.testing.assert_allclose(got, real, rtol=1e-4, atol=1e-5)


def attention(mask: Callable[[Net, str], str]) -> onnx.ModelProto:
    """Attention of one head over five tokens; ``mask`` puts the mask on the scores."""
    net = Net()
    x = net.input("x", TOKENS)
    q, k, v = (product(net, x) for _ in range(3))
    scores = mask(net, net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])))
    return net.model(product(net, net.op("MatMul", net.op("Softmax", scores, axis=-1), v)))


def chosen(large: float) -> Callable[[Net, str], str]:
    def mask(net: Net, scores: str) -> str:
        return net.op("Where", net.input("mask", [5, 5], onnx.TensorProto.BOOL), scores, net.const(large))

    return mask


def added(large: float) -> Callable[[Net, str], str]:
    def mask(net: Net, scores: str) -> str:
        return net.op("Add", scores, net.const(np.triu(np.full((5, 5), large, np.float32), 1)))

    return mask


def computed(large: float) -> Callable[[Net, str], str]:
    def mask(net: Net, scores: str) -> str:
        keep = net.op("Cast", net.input("mask", [5, 5], onnx.TensorProto.BOOL), to=onnx.TensorProto.FLOAT)
        return net.op("Add", scores, net.op("Mul", net.op("Sub", net.const(1.0), keep), net.const(large)))

    return mask


@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
@pytest.mark.parametrize("large", [-1e4, -1e9, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("mask", [chosen, added, computed], ids=lambda mask: mask.__name__)
def test_masks_stretch_no_range(mask: Callable[[float], Callable[[Net, str], str]], large: float, target: str) -> None:
    model = attention(mask(large))
    data = [feeds(model, seed) for seed in range(8)]
    result = requant.quantize(model, data, threads=1, target=target)
    activations = [tensor for tensor in result.report.tensors if tensor.kind == "activation"]
    assert activations
    assert all(tensor.lo > -100 and tensor.hi < 100 for tensor in activations)
    (real,), (got,) = run(model, data[0]), run(result.data, data[0], optimize=False)  # kernels may saturate
    assert np.abs(got - real).max() < 0.1 * np.abs(real).max()


def test_an_infinite_mask_is_left_alone() -> None:
    model = attention(chosen(-np.inf))
    data = [feeds(model, seed) for seed in range(8)]
    result = requant.quantize(model, data, threads=1)
    assert dict(result.report.quantized)["MatMul"] == 4
    (real,), (got,) = run(model, data[0]), run(result.data, data[0])
    assert np.abs(got - real).max() < 0.1 * np.abs(real).max()


def test_the_arithmetic_of_shapes_stays_as_it_is() -> None:
    net = Net()
    x = product(net, net.input("x", TOKENS))
    rows = net.op("Gather", net.op("Shape", x), net.const(np.array(0)))
    doubled = net.op("Mul", net.op("Cast", rows, to=onnx.TensorProto.FLOAT), net.const(2.0))
    half = net.op("Cast", net.op("Div", doubled, net.const(2.0)), to=onnx.TensorProto.INT64)
    shape = net.op("Concat", net.op("Unsqueeze", half, net.const(np.array([0]))), net.const(np.array([-1])), axis=0)
    model = net.model(product(net, net.op("Reshape", x, shape), 40, 3))
    plan = build_plan(prepare(Graph.load(model))[0], QuantConfig())
    assert {node.op_type for node in plan.nodes} <= {"MatMul", "Reshape"}
    result = requant.quantize(model, [feeds(model, seed) for seed in range(8)], threads=1)
    (real,), (got,) = run(model, feeds(model)), run(result.data, feeds(model))
    assert np.abs(got - real).max() < 0.1 * np.abs(real).max()


def test_functions_of_the_model_are_inlined() -> None:
    opset = onnx.helper.make_opsetid("", 17)
    body = [onnx.helper.make_node("MatMul", ["a", "b"], ["c"]), onnx.helper.make_node("Relu", ["c"], ["d"])]
    function = onnx.helper.make_function("com.example", "Layer", ["a", "b"], ["d"], body, [opset])
    net = Net()
    x = net.input("x", ["n", 8])
    for _ in range(2):
        x = net.op("Layer", x, net.normal(8, 8, scale=0.35), domain="com.example")
    y = onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, ["n", 8])
    graph = onnx.helper.make_graph(net.nodes, "g", net.inputs, [y], net.initializers)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    model.functions.append(function)
    result = requant.quantize(model, [feeds(model, seed) for seed in range(8)], threads=1)
    assert dict(result.report.quantized)["MatMul"] == 2
    quantized = onnx.load_from_string(result.data)
    assert not quantized.functions
    assert {node.domain for node in quantized.graph.node} == {""}
    (real,), (got,) = run(model, feeds(model)), run(result.data, feeds(model))
    assert np.abs(got - real).max() < 0.1 * np.abs(real).max()


def test_nothing_is_said_of_constants_that_are_outputs(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    fixed = net.const(np.arange(3, dtype=np.float32))
    model = net.model(net.op("MatMul", x, net.normal(4, 3)), net.op("Neg", fixed), fixed)
    prepared = prepare(Graph.load(model))[0]
    assert not caplog.records
    for wanted, got in zip(run(model, feeds(model)), run(prepared.serialize().proto, feeds(model)), strict=True):
        np.testing.assert_array_equal(wanted, got)

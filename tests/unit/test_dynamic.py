"""Which nodes are quantized at run time or have their weights stored as integers, why the rest is not, and to what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import MODELS, Net

from requant.building.dynamic import IntegerWeight, plan_dynamic, plan_whole, resolve_dynamic
from requant.config import QuantConfig
from requant.errors import ModelError
from requant.onnx.graph import Graph
from requant.onnx.nodes import constant
from requant.onnx.passes import prepare
from requant.planning.plan import Form, QuantPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WIDE = 128  # 128 x 128 weights are enough for integers to pay, 16 x 16 only to be stored


def planned(model: onnx.ModelProto, **options: Any) -> tuple[Graph, QuantPlan, QuantConfig]:
    graph = prepare(Graph.load(model))[0]
    config = QuantConfig().with_options(dynamic=True, **options)
    before = graph.to_bytes()
    plan = plan_dynamic(graph, config)
    assert graph.to_bytes() == before, "planning has changed the graph"
    return graph, plan, config


def form_and_reason(model: onnx.ModelProto, name: str = "n", **options: Any) -> tuple[str, str]:
    _, plan, _ = planned(model, **options)
    forms = {node.name: node.form.value for node in plan.dynamic}
    return forms.get(name, "float"), next((skip.reason for skip in plan.skipped if skip.node == name), "")


def product(shape: tuple[int, ...], op_type: str = "MatMul", **attrs: Any) -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", shape[-2 if not attrs.get("transB") else -1]])
    return net.model(net.op(op_type, x, net.normal(*shape), name="n", **attrs))


def recurrent(op_type: str, gates: int, hidden: int = WIDE, **attrs: Any) -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["t", 1, hidden])
    weights = [net.normal(1, gates * hidden, hidden), net.normal(1, gates * hidden, hidden)]
    return net.model(net.op(op_type, x, *weights, name="n", hidden_size=hidden, **attrs))


def run_time_weight() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", [4, WIDE, WIDE])
    return net.model(net.op("MatMul", x, x, name="n"))


def convolution() -> onnx.ModelProto:
    net = Net()
    return net.model(net.conv(net.input("x", [1, 32, 8, 8]), 32, 32, name="n"))


def embedding() -> onnx.ModelProto:
    net = Net()
    ids = net.input("ids", ["n"], onnx.TensorProto.INT64)
    return net.model(net.op("Gather", net.normal(500, 32), ids, name="n"))


def experts() -> onnx.ModelProto:
    net = Net()
    chosen = net.input("chosen", ["n", 1], onnx.TensorProto.INT64)
    weights = net.const(net.rng.normal(size=(3, 32, 48)) * np.geomspace(0.01, 1.0, 3 * 48).reshape(3, 1, 48))
    return net.model(net.op("GatherND", weights, chosen, name="n"))


def read_in_float() -> onnx.ModelProto:
    net = Net()
    w = net.normal(32, 32, 3, 3, name="w")
    y = net.op("Conv", net.input("x", [1, 32, 8, 8]), w, name="n")
    return net.model(y, net.op("Exp", w))


def given_out() -> onnx.ModelProto:
    net = Net()
    model = net.model(net.op("MatMul", net.input("x", ["n", WIDE]), net.normal(WIDE, WIDE, name="w"), name="n"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [WIDE, WIDE]))
    return model


def scaled_bias() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", [4, WIDE])
    return net.model(net.op("Gemm", x, net.normal(WIDE, WIDE), net.op("Relu", x), name="n", beta=0.5))


@pytest.mark.parametrize(
    ("model", "form", "reason"),
    [
        (product((WIDE, WIDE)), "integer", ""),
        (product((WIDE, WIDE), "Gemm", transB=1, alpha=0.5), "integer", ""),
        (recurrent("LSTM", 4), "integer", ""),
        (product((32, 32)), "stored", "1,024 weights are too few for integers to be faster (from 8,192)"),
        (product((4, 4)), "float", "(from 8,192), and too few to be stored as int8"),
        (product((2, WIDE, WIDE)), "stored", "a stack of matrices"),
        (product((WIDE, WIDE), "Gemm", transA=1), "stored", "transA"),
        (recurrent("LSTM", 4, 32), "stored", "too few for integers to be faster (from 65,536)"),
        (recurrent("LSTM", 4, layout=1), "stored", "batch-major"),
        (recurrent("GRU", 3), "stored", "no fast integer kernel for GRU"),
        (convolution(), "stored", "no fast integer kernel for Conv"),
        (embedding(), "stored", "it only looks up; its weights are int8 in the file"),
        (experts(), "stored", "it only looks up; its weights are int8 in the file"),
        (scaled_bias(), "stored", "computed at run time and scaled"),
        (read_in_float(), "float", "another op reads them"),
        (given_out(), "float", "its weight is an output of the model"),
        (run_time_weight(), "float", "its weight is computed at run time"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_each_node_has_its_form_and_reason(model: onnx.ModelProto, form: str, reason: str) -> None:
    got, why = form_and_reason(model)
    assert got == form
    assert reason in why
    assert bool(why) == (form != "integer")


@pytest.mark.parametrize("options", [{}, {"dynamic": True}, {"weight_only": "int8"}])
def test_a_weight_that_is_an_output_does_not_become_integers(options: dict[str, Any]) -> None:
    plan = plan_whole(prepare(Graph.load(given_out()))[0], QuantConfig(**options))
    assert not plan.op_types


def test_a_target_without_a_least_size_runs_more_on_integers() -> None:
    assert form_and_reason(convolution(), target="generic") == ("integer", "")
    assert form_and_reason(product((4, 4)), target="generic") == ("integer", "")
    assert "generic has no fast integer kernel for LSTM" in form_and_reason(recurrent("LSTM", 4), target="generic")[1]


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_names_each_node_once_or_says_why(name: str) -> None:
    graph, plan, _ = planned(MODELS[name]())
    nodes = {node.name for node in graph.all_nodes()}
    integer = {node.name for node in plan.dynamic if node.form is Form.INTEGER}
    skipped = {skip.node for skip in plan.skipped}
    assert not integer & skipped
    assert integer | skipped == nodes
    assert {node.name for node in plan.dynamic} - integer <= skipped
    assert not plan.nodes
    assert not plan.tensors
    assert plan.op_types == tuple(node.op_type for node in plan.dynamic if node.form is Form.INTEGER)


# -- integers ----------------------------------------------------------------------------------------------------------


def resolved(model: onnx.ModelProto, **options: Any) -> tuple[dict[int, NDArray[Any]], dict[int, IntegerWeight]]:
    """Weights of the node ``n`` and their integers by input index."""
    graph, plan, config = planned(model, **options)
    weights = resolve_dynamic(graph, plan, config)
    node = next(node for node in graph.all_nodes() if node.name == "n")
    found = {index: weight for (name, index), weight in weights.items() if name == "n"}
    arrays = {index: constant(node.inputs[index]) for index in found}
    assert all(array is not None for array in arrays.values())
    return {index: array for index, array in arrays.items() if array is not None}, found


LAYOUTS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[int, tuple[int, ...]]]] = {
    "matmul": (lambda: product((WIDE, 96)), {1: (1, 96)}),
    "gemm": (lambda: product((WIDE, 96), "Gemm"), {1: (1, 96)}),
    "gemm transposed": (lambda: product((96, WIDE), "Gemm", transB=1), {1: (96, 1)}),
    "stack": (lambda: product((3, WIDE, 96)), {1: (3, 1, 96)}),
    "convolution": (convolution, {1: (32, 1, 1, 1)}),
    "embedding": (embedding, {0: (500, 1)}),
    "experts": (experts, {0: (3, 1, 48)}),
    "lstm": (lambda: recurrent("LSTM", 4), {1: (1, 4 * WIDE, 1), 2: (1, 1, 1)}),
    "gru": (lambda: recurrent("GRU", 3), {1: (1, 3 * WIDE, 1), 2: (1, 3 * WIDE, 1)}),
}


@pytest.mark.parametrize("options", [{}, {"weights": "uint8"}, {"saturation": "full"}, {"per_channel": False}], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_are_near_their_integers(name: str, options: dict[str, Any]) -> None:
    build, scales = LAYOUTS[name]
    arrays, weights = resolved(build(), **options)
    assert set(weights) == set(scales)
    for index, weight in weights.items():
        assert weight.data.shape == arrays[index].shape
        if options != {"per_channel": False}:
            assert weight.scale.shape == scales[index]
        steps = (
            np.abs((weight.data.astype(np.float32) - weight.zero_point) * weight.scale - arrays[index]) / weight.scale
        )
        summed = name in ("stack", "convolution", "gru")  # stored, where integers may move to keep sums
        assert np.all(steps <= (1.0 if summed else 0.5) + 1e-3)
        assert int(np.abs(weight.data.astype(int) - weight.zero_point).max()) <= 127


def test_one_scale_in_all_is_one_scale() -> None:
    for name in ("matmul", "gemm", "convolution", "embedding", "lstm"):
        _, weights = resolved(LAYOUTS[name][0](), per_channel=False)
        assert all(weight.scale.size == 1 for weight in weights.values())


@pytest.mark.parametrize("name", ["matmul", "gemm", "gemm transposed", "lstm"])
def test_pairs_along_the_sum_stay_inside_16_bits(name: str) -> None:
    """255 (w[2i] + w[2i+1]), the terms of a sum counted from its beginning; without the rule some pair leaves."""
    terms = {"matmul": 0, "gemm": 0, "gemm transposed": 1, "lstm": 2}[name]

    def worst(**options: Any) -> int:
        _, weights = resolved(LAYOUTS[name][0](), **options)
        rows = np.concatenate(
            [np.moveaxis(w.data, terms, -1).reshape(-1, w.data.shape[terms]).astype(int) for w in weights.values()]
        )
        return int(np.abs(255 * (rows[:, 0::2] + rows[:, 1::2])).max())

    assert worst() <= 32767 < worst(saturation="full")


def test_weights_that_are_only_stored_use_all_eight_bits() -> None:
    _, weights = resolved(convolution())
    assert np.all(np.abs(weights[1].data.astype(int)).max(axis=(1, 2, 3)) == 127)


@pytest.mark.parametrize("name", ["stack", "convolution", "gru"])
def test_stored_weights_keep_the_sum_of_each_row(name: str) -> None:
    """To half a step, where rounding alone would drift by the root of their number."""
    arrays, weights = resolved(LAYOUTS[name][0]())
    for index, weight in weights.items():
        terms = tuple(axis for axis, size in enumerate(weight.scale.shape) if size == 1 < weight.data.shape[axis])
        error = weight.data - arrays[index] / weight.scale.astype(float)
        assert np.abs(error.sum(axis=terms)).max() <= 0.5 + 1e-6
        rounding = np.rint(arrays[index] / weight.scale) - arrays[index] / weight.scale.astype(float)
        assert np.abs(rounding.sum(axis=terms)).max() > 2


def test_zero_rows_and_tiny_weights_have_normal_scales() -> None:
    net = Net()
    w = net.rng.standard_normal((WIDE, WIDE)).astype(np.float32)
    w[:, 0], w[:, 1] = 0, 1e-44
    _, weights = resolved(net.model(net.op("MatMul", net.input("x", ["n", WIDE]), net.const(w), name="n")))
    assert np.all(weights[1].scale >= np.finfo(np.float32).tiny)
    assert not weights[1].data[:, :2].any()


def test_a_weight_that_is_not_finite_is_refused() -> None:
    net = Net()
    w = net.rng.standard_normal((WIDE, WIDE)).astype(np.float32)
    w[3, 5] = np.inf
    graph, plan, config = planned(net.model(net.op("MatMul", net.input("x", ["n", WIDE]), net.const(w, "w"), name="n")))
    with pytest.raises(
        ModelError, match=r"weight 'w' \(128, 128\) holds 1 NaN or infinite value, the first at \(3, 5\)"
    ):
        resolve_dynamic(graph, plan, config)


def test_a_shared_weight_is_quantized_once() -> None:
    net = Net()
    w = net.normal(WIDE, WIDE)
    a = net.op("MatMul", net.input("x", ["n", WIDE]), w, name="a")
    graph, plan, config = planned(net.model(net.op("MatMul", net.op("Tanh", a), w, name="b")))
    weights = resolve_dynamic(graph, plan, config)
    assert weights["a", 1] is weights["b", 1]

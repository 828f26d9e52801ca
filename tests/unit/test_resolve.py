"""Ranges to integers: bounds that may not be broken, whatever the weights are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tests.models import Array, Net

from requant.building.resolve import Resolved, resolve
from requant.config import QuantConfig
from requant.errors import ModelError
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.planning.build import build_plan
from requant.types import PerChannel, PerTensor, QuantizedTensor, Range

if TYPE_CHECKING:
    import onnx

    from requant.planning.plan import QuantPlan

UNIT = Range(-1.0, 1.0)


def resolved(model: onnx.ModelProto, *, span: Range = UNIT, **options: Any) -> tuple[Graph, QuantPlan, Resolved]:
    """``model`` resolved with ``span`` as the range of every activation."""
    graph = prepare(Graph.load(model))[0]
    config = QuantConfig().with_options(**options)
    plan = build_plan(graph, config)
    return graph, plan, resolve(graph, plan, dict.fromkeys(plan.calibrated, span), config)


def linear(weight: Array, bias: Array | None = None, *, op: str = "Gemm", **attrs: Any) -> onnx.ModelProto:
    """One op with this weight; the names of its constants are w and b."""
    net = Net()
    dims: list[int | str]
    match op:
        case "Conv":
            dims = ["n", weight.shape[1] * attrs.get("group", 1), 6, 6]
        case "Gemm":
            dims = ["n", weight.shape[1] if attrs.get("transB") else weight.shape[0]]
        case _:
            dims = [*(weight.shape[:-2] or ("n",)), 2, weight.shape[-2:][0]]
    rest = [] if bias is None else [net.const(bias, "b")]
    return net.model(net.op(op, net.input("x", dims), net.const(weight, "w"), *rest, name="op", output="y", **attrs))


def weight_of(model: onnx.ModelProto, **options: Any) -> QuantizedTensor:
    return resolved(model, **options)[2].weights["op"]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


OPS: list[tuple[str, tuple[int, ...], dict[str, Any], int]] = [
    ("Conv", (5, 3, 3, 3), {}, 0),
    ("Conv", (6, 2, 3, 3), {"group": 2}, 0),
    ("Conv", (4, 1, 3, 3), {"group": 4}, 0),
    ("Gemm", (7, 5), {}, 1),
    ("Gemm", (5, 7), {"transB": 1}, 0),
    ("MatMul", (7, 5), {}, 1),
]


@pytest.mark.parametrize(("op", "shape", "attrs", "axis"), OPS)
@pytest.mark.parametrize("saturation", ["safe", "full"])
@pytest.mark.parametrize("weights", ["int8", "uint8"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_close_symmetric_and_narrow(
    *,
    op: str,
    shape: tuple[int, ...],
    attrs: dict[str, Any],
    axis: int,
    saturation: str,
    weights: str,
    per_channel: bool,
) -> None:
    w = normal(*shape)
    q = weight_of(linear(w, op=op, **attrs), saturation=saturation, weights=weights, per_channel=per_channel)
    centre = 0 if weights == "int8" else 128
    integers = q.data.astype(int) - centre
    assert q.data.dtype == np.dtype(weights)
    assert np.abs(integers).max() <= 127
    assert np.all(q.params.zero_point == centre)
    assert q.params.scheme.granularity == (PerChannel(axis) if per_channel else PerTensor())
    assert q.params.scale.shape == ((shape[axis],) if per_channel else ())
    step = (
        q.params.scale.reshape([-1 if i == axis else 1 for i in range(len(shape))]) if per_channel else q.params.scale
    )
    assert np.all(np.abs(q.dequantize() - w) <= step * 0.5001)
    if saturation == "full":
        others = tuple(i for i in range(len(shape)) if i != axis)
        assert np.all(np.abs(integers).max(axis=others if per_channel else None) == 127)


# -- saturation ------------------------------------------------------------------------------------------------------


def kernel_order(op: str, q: Array, **attrs: Any) -> Array:
    """[columns, depth] as the kernels read it: for convolutions the input channel runs fastest."""
    q = q.astype(np.int64)
    if op == "Conv":
        return q.transpose(0, 2, 3, 1).reshape(len(q), -1)
    if q.ndim == 1:
        return q[np.newaxis]
    if q.ndim == 3:
        return q.transpose(0, 2, 1).reshape(-1, q.shape[1])
    return q if attrs.get("transB") else q.T


def worst_pair(op: str, q: Array, **attrs: Any) -> int:
    """Largest 16-bit sum that two uint8 activations times neighbouring weights can reach, in magnitude."""
    rows = kernel_order(op, q, **attrs)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    first, second = rows[:, 0::2], rows[:, 1::2]
    above = 255 * (np.maximum(first, 0) + np.maximum(second, 0)).max()
    below = 255 * (np.minimum(first, 0) + np.minimum(second, 0)).min()
    return int(max(above, -below - 1))


PAIRED = [
    ("Conv", (5, 3, 3, 3), {}),
    ("Conv", (5, 1, 3, 3), {}),
    ("Conv", (6, 2, 3, 3), {"group": 2}),
    ("Conv", (6, 1, 3, 3), {"group": 3}),
    ("Gemm", (7, 5), {}),
    ("Gemm", (5, 8), {"transB": 1}),
    ("MatMul", (7, 5), {}),
    ("MatMul", (3, 5, 4), {}),
    ("MatMul", (6,), {}),
]


@pytest.mark.parametrize(("op", "shape", "attrs"), PAIRED)
@pytest.mark.parametrize("per_channel", [True, False])
@settings(max_examples=10)
@given(data=st.data())
def test_pairs_of_products_stay_inside_16_bits(
    op: str, shape: tuple[int, ...], attrs: dict[str, Any], per_channel: bool, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.sampled_from([1.0, -1.0, 0.999, 0.5, 0.01, 0.0, -0.7]), min_size=1, max_size=9))
    w = np.resize(np.array(values, np.float32), shape) * normal(*shape, seed=data.draw(st.integers(0, 9)))
    model = linear(w, op=op, **attrs)
    q = weight_of(model, per_channel=per_channel).data
    assert worst_pair(op, q, **attrs) <= 32767


@pytest.mark.parametrize(("op", "shape", "attrs"), PAIRED)
def test_the_worst_weights_would_saturate_if_nothing_were_done(
    op: str, shape: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    model = linear(np.ones(shape), op=op, **attrs)
    assert worst_pair(op, weight_of(model, saturation="full").data, **attrs) > 32767
    assert worst_pair(op, weight_of(model).data, **attrs) <= 32767


def test_weights_without_a_bad_pair_keep_all_8_bits() -> None:
    w = np.zeros((4, 6), np.float32)
    w[:, ::2] = [1.0, -1.0, 0.5]
    assert np.abs(weight_of(linear(w, transB=1)).data).max() == 127


@pytest.mark.parametrize("options", [{"weights": "uint8"}, {"saturation": "full"}, {"target": "generic"}])
def test_only_what_can_saturate_is_narrowed(options: dict[str, str]) -> None:
    q = weight_of(linear(np.ones((4, 6))), **options)
    assert int(q.data.flat[0]) - int(q.params.zero_point.flat[0]) == 127


def test_depthwise_weights_keep_all_8_bits() -> None:
    assert np.all(weight_of(linear(np.ones((4, 1, 3, 3)), op="Conv", group=4)).data == 127)


# -- degenerate weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("saturation", ["safe", "full"])
@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_scales_are_finite_and_normal(value: float, per_channel: bool, saturation: str, op: str) -> None:
    shape = (4, 3, 3, 3) if op == "Conv" else (4, 4)
    w = np.full(shape, value, np.float32)
    w[0] = 0
    q = weight_of(linear(w, np.full(4, 1e-9), op=op), per_channel=per_channel, saturation=saturation)
    assert np.all(np.isfinite(q.params.scale))
    assert np.all(q.params.scale >= np.finfo(np.float32).tiny)
    assert np.all(q.data[0] == 0)
    assert np.all(np.isfinite(q.dequantize()))


@pytest.mark.parametrize("span", [Range(0, 0), Range(-1e-40, 1e-40), Range(-1e-30, 1e-30), Range(-1e30, 1e30)])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e8])
@pytest.mark.parametrize("peak", [1e-30, 1.0])
def test_a_bias_has_a_finite_scale_and_is_close(span: Range, size: float, peak: float) -> None:
    """The scale of a bias is a product, which float32 can neither always hold nor tell from zero."""
    bias = np.array([0.0, peak, 0.0, -peak], np.float32)
    _, _, result = resolved(linear(normal(6, 4) * size, bias), span=span)
    b = result.biases["op"]
    assert np.all(np.isfinite(b.params.scale))
    assert np.all(b.params.scale > 0)
    assert np.all(np.isfinite(result.weights["op"].params.scale))
    got = b.data * b.params.scale.astype(np.float64)
    step = b.params.scale.astype(np.float64)
    assert np.all(np.abs(got - bias) <= np.maximum(0.5001 * step, 1e-6 * np.abs(bias)))


def test_a_bias_is_int32_at_the_product_of_the_scales() -> None:
    _, _, result = resolved(linear(normal(6, 4), normal(4)), span=Range(-2.0, 2.0))
    b, w = result.biases["op"], result.weights["op"]
    assert b.data.dtype == np.int32
    assert np.all(b.params.zero_point == 0)
    np.testing.assert_array_equal(b.params.scale, result.activations["x"].scale * w.params.scale)
    np.testing.assert_allclose(b.data * b.params.scale.astype(float), normal(4), atol=float(b.params.scale.max()))
    assert result.widened == ()


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_that_leaves_int32_widens_the_weight_scale(per_channel: bool) -> None:
    w = np.full((6, 3), 1e-6, np.float32)
    bias = np.array([1000.0, 1.0, -3000.0], np.float32)
    _, _, result = resolved(linear(w, bias), span=Range(0, 1e-3), per_channel=per_channel)
    assert result.widened == ("op",)
    b = result.biases["op"]
    assert np.abs(b.data.astype(np.int64)).max() < 2**31
    np.testing.assert_allclose(b.data * b.params.scale.astype(np.float64), bias, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (), (1, 4), (1, 1)])
def test_every_shape_of_a_bias_is_one_to_a_channel(shape: tuple[int, ...]) -> None:
    b = resolved(linear(normal(6, 4), normal(*shape)))[2].biases["op"]
    expected = np.broadcast_to(normal(*shape).reshape(-1), 4)
    np.testing.assert_allclose(b.data * b.params.scale, expected, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_what_is_not_finite_is_named(bad: float, which: str) -> None:
    w, b = normal(6, 4), normal(4)
    if which == "weight":
        w[2, 1] = bad
    else:
        b[3] = bad
    name, where = ("w", r"\(2, 1\)") if which == "weight" else ("b", r"\(3,\)")
    with pytest.raises(ModelError, match=rf"'{name}'.*holds 1 NaN or infinite value, the first at {where}"):
        resolved(linear(w, b))


def test_a_weight_that_two_ops_share_is_quantized_for_each() -> None:
    net = Net()
    x, w = net.input("x", ["n", 4]), net.normal(4, 4, name="w")
    small, big = net.const(np.ones(4)), net.const(np.full(4, 1e12))
    a = net.op("Gemm", x, w, small, name="a")
    model = net.model(net.op("Gemm", a, w, big, name="b"))
    _, _, result = resolved(model)
    assert result.widened == ("b",)
    assert np.all(result.weights["a"].params.scale < result.weights["b"].params.scale)


def test_a_bias_that_is_a_list_of_floats_is_resolved() -> None:
    net = Net()
    b = net.op("Constant", value_floats=[1.0, 2.0, 3.0])
    model = net.model(net.op("Gemm", net.input("x", ["n", 4]), net.normal(4, 3), b, name="op"))
    _, _, result = resolved(model)
    np.testing.assert_allclose(result.biases["op"].data * result.biases["op"].params.scale, [1, 2, 3], rtol=1e-3)


@pytest.mark.parametrize("size", [1.0, 1e7])
def test_groups_of_transposed_convolutions_share_scales(size: float) -> None:
    weight, bias = normal(6, 4, 3, 3), size * normal(12, seed=1)
    net = Net()
    y = net.op("ConvTranspose", net.input("x", ["n", 6, 5, 5]), net.const(weight), net.const(bias), name="op", group=3)
    found = resolved(net.model(y), target="generic")[2]
    scale = found.weights["op"].params.scale
    stored = found.biases["op"]
    assert (scale.shape, stored.params.scale.shape, stored.data.shape) == ((4,), (12,), (12,))
    reals = stored.data * stored.params.scale.astype(np.float64)
    np.testing.assert_allclose(reals, bias, atol=float(stored.params.scale.max()) / 2)
    np.testing.assert_array_equal(stored.params.scale.reshape(3, 4), np.tile(stored.params.scale[:4], (3, 1)))

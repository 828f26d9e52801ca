"""Magnitude moves between constants, and the float outputs stay the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings, strategies as st
from onnx import helper
from tests.models import Array, Net, run, samples

from requant.onnx.graph import Graph
from requant.onnx.nodes import constant
from requant.onnx.passes import prepare
from requant.onnx.rescale import input_peaks, output_peaks, powers_of_two, rescale, scale_inputs
from requant.onnx.sites import find_sites

Build = Callable[[Net], tuple[str, ...]]


def layer_norm(net: Net, x: str, width: int) -> str:
    return net.op("LayerNormalization", x, net.normal(width), net.normal(width))


def rms_norm(net: Net, x: str, width: int) -> str:
    """RMSNorm as exporters write it."""
    mean = net.op("ReduceMean", net.op("Mul", x, x), axes=[-1], keepdims=1)
    root = net.op("Sqrt", net.op("Add", mean, net.const(1e-5)))
    return net.op("Mul", net.normal(width), net.op("Div", x, root))


def decomposed_layer_norm(net: Net, x: str, width: int) -> str:
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1], keepdims=1))
    return net.op("Add", rms_norm(net, centred, width), net.normal(width))


def linear(net: Net, x: str, width: int, out: int) -> str:
    return net.op("Add", net.op("MatMul", x, net.normal(width, out)), net.normal(out))


def tokens(net: Net, width: int = 8) -> str:
    return net.input("x", ["n", 5, width])


def qkv(norm: Callable[[Net, str, int], str]) -> Build:
    def build(net: Net) -> tuple[str, ...]:
        x = norm(net, tokens(net), 8)
        return tuple(linear(net, x, 8, out) for out in (8, 4, 4))

    return build


def norm_of_rows(net: Net) -> tuple[str, ...]:
    x = layer_norm(net, net.input("x", ["n", 8]), 8)
    return net.gemm(x, 8, 6), net.gemm(x, 8, 3, trans_b=1, bias=False)


def swiglu(net: Net) -> tuple[str, ...]:
    x = tokens(net)
    gate = linear(net, x, 8, 12)
    silu = net.op("Mul", gate, net.op("Sigmoid", gate))
    return (linear(net, net.op("Mul", silu, linear(net, x, 8, 12)), 12, 8),)


def relu_mlp(net: Net) -> tuple[str, ...]:
    x = net.op("LeakyRelu", linear(net, tokens(net), 8, 16))
    scaled = net.op("Div", net.op("Mul", x, net.const(0.7)), net.const(3.0))
    return (linear(net, net.op("Sub", net.const(1.0), scaled), 16, 4),)


def convs(net: Net) -> tuple[str, ...]:
    """Grouped, depthwise and transposed convolutions, pooling, and a classifier behind Flatten."""
    x = net.op("Relu", net.conv(net.input("x", ["n", 4, 8, 8]), 4, 8, group=2))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.conv(x, 8, 16, group=8))
    x = net.op("Relu", net.conv(x, 16, 6, group=2))
    x = net.op("ConvTranspose", x, net.normal(6, 3, 2, 2), net.normal(6), group=2, strides=[2, 2])
    return (net.gemm(net.op("Flatten", net.op("AveragePool", x, kernel_shape=[3, 3])), 6 * 36, 5),)


def two_readers(net: Net) -> tuple[str, ...]:
    """One reads before the ReLU, one behind it."""
    x = net.conv(net.input("x", ["n", 3, 6, 6]), 3, 4)
    return net.conv(x, 4, 2), net.conv(net.op("Relu", x), 4, 2, 1)


SPELLINGS: dict[str, tuple[Build, int, int]] = {
    "layer norm": (qkv(layer_norm), 1, 3),
    "rms norm, decomposed": (qkv(rms_norm), 1, 3),
    "layer norm, decomposed": (qkv(decomposed_layer_norm), 1, 3),
    "gemm": (norm_of_rows, 1, 2),
    "swiglu": (swiglu, 1, 1),
    "relu mlp": (relu_mlp, 1, 1),
    "convolutions": (convs, 4, 4),
    "two readers": (two_readers, 1, 2),
}


def prepared(build: Build, *, opset: int = 17, seed: int = 0) -> Graph:
    net = Net(opset, seed=seed)
    outputs = build(net)
    return prepare(Graph.load(net.model(*outputs)))[0]


def any_factors(graph: Graph, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {site.tensor: powers_of_two(np.exp2(rng.integers(-8, 8, site.channels))) for site in find_sites(graph)[0]}


def stays(graph: Graph, factors: dict[str, Array]) -> Graph:
    """``graph`` rescaled, once it is seen to give the same bits and its tensors to be divided."""
    before = graph.to_bytes()
    after = rescale(graph, factors)
    assert graph.to_bytes() == before, "the graph it was given has changed"
    data = after.to_bytes()
    onnx.checker.check_model(onnx.load_from_string(data))
    feeds = samples(onnx.load_from_string(before), 3)
    for expected, got in zip(run(before, feeds, optimize=False), run(data, feeds, optimize=False), strict=True):
        np.testing.assert_array_equal(got, expected)
    for tensor, each in factors.items():
        expected, got = (run(g.to_bytes([tensor]), feeds, optimize=False)[0] for g in (graph, after))
        axis = 1 if any(n.op_type.startswith("Conv") and n.outputs[0].name == tensor for n in graph.nodes) else -1
        np.testing.assert_array_equal(np.moveaxis(got, axis, -1), np.moveaxis(expected, axis, -1) / each)
    return after


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=8)
@given(seed=st.integers(0, 999))
def test_every_spelling_keeps_its_bits(spelling: str, seed: int) -> None:
    build, sites, sinks = SPELLINGS[spelling]
    graph = prepared(build, seed=seed)
    found, _ = find_sites(graph)
    assert (len(found), sum(len(site.sinks) for site in found)) == (sites, sinks)
    stays(graph, any_factors(graph, seed))


def test_rms_normalization_of_opset_23() -> None:
    def build(net: Net) -> tuple[str, ...]:
        return (linear(net, net.op("RMSNormalization", tokens(net), net.normal(8)), 8, 4),)

    net = Net(23, ir_version=11)
    graph = prepare(Graph.load(net.model(*build(net))))[0]
    assert [site.op_type for site in find_sites(graph)[0]] == ["RMSNormalization"]
    stays(graph, any_factors(graph, 1))


def test_the_fused_norms_of_onnxruntime_are_sources() -> None:
    net = Net()
    x = tokens(net)
    normed = net.op("SkipLayerNormalization", x, x, net.normal(8), net.normal(8), domain="com.microsoft", output="norm")
    net.op("MatMul", normed, net.normal(8, 4), output="y")
    ends = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5, 4])]
    body = helper.make_graph(net.nodes, "g", net.inputs, ends, net.initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = prepare(Graph.load(helper.make_model(body, opset_imports=opsets, ir_version=8)))[0]
    assert [site.op_type for site in find_sites(graph)[0]] == ["SkipLayerNormalization"]
    stays(graph, any_factors(graph, 1))


def test_constants_that_others_use_are_not_touched() -> None:
    """Gain, bias and weight are shared with ops outside the site, and a weight with another sink."""
    net = Net()
    x = tokens(net)
    gain, beta, tied = net.normal(8, name="gain"), net.normal(8, name="beta"), net.normal(8, 8, name="tied")
    normed = net.op("LayerNormalization", x, gain, beta)
    both = net.op("MatMul", normed, tied, name="a"), net.op("MatMul", net.op("Relu", normed), tied, name="b")
    rows = net.op("Gather", tied, net.const(np.array([0, 3], np.int64)))
    aside = net.op("Tanh", net.op("Add", net.op("Mul", x, gain), beta))
    graph = prepare(Graph.load(net.model(*both, rows, aside, net.op("MatMul", x, tied, name="c"))))[0]
    (site,) = (site for site in find_sites(graph)[0] if site.op_type == "LayerNormalization")
    assert {sink.node for sink in site.sinks} == {"a", "b"}
    after = stays(graph, {site.tensor: powers_of_two(np.exp2(np.arange(8)))})
    for name in ("gain", "beta", "tied"):
        values = after.model.graph.initializers
        np.testing.assert_array_equal(constant(values[name]), constant(graph.model.graph.initializers[name]))


# -- what stays ------------------------------------------------------------------------------------------------------


def behind_norm(follow: Callable[[Net, str], tuple[str, ...]]) -> Build:
    return lambda net: follow(net, layer_norm(net, tokens(net), 8))


BLOCKED: dict[str, tuple[Build, str]] = {
    "an output": (behind_norm(lambda n, x: (linear(n, x, 8, 4), x)), "an output of the model"),
    "gelu": (behind_norm(lambda n, x: (linear(n, n.op("Erf", x), 8, 4),)), "Erf before it"),
    "rows mixed": (
        lambda n: (
            n.gemm(n.op("Reshape", n.conv(n.input("x", [2, 3, 4, 4]), 3, 4), n.const(np.array([4, 32]))), 32, 4),
        ),
        "Reshape before it",
    ),
    "also tanh": (behind_norm(lambda n, x: (linear(n, x, 8, 4), n.op("Tanh", x))), "Tanh does not scale"),
    "residual": (behind_norm(lambda n, x: (linear(n, n.op("Add", x, "x"), 8, 4),)), "Add before it"),
    "square": (behind_norm(lambda n, x: (linear(n, n.op("Mul", x, x), 8, 4),)), "multiplied with itself"),
    "gate": (
        behind_norm(lambda n, x: (linear(n, n.op("Mul", x, n.op("Relu", x)), 8, 4),)),
        "multiplied with itself",
    ),
    "divisor": (behind_norm(lambda n, x: (linear(n, n.op("Div", n.const(1.0), x), 8, 4),)), "Div before it"),
    "clip": (
        lambda n: (n.conv(n.op("Clip", n.conv(n.input("x", ["n", 3, 6, 6]), 3, 4), n.const(0.0), n.const(6.0)), 4, 2),),
        "Clip before it",
    ),
    "input": (lambda n: (linear(n, tokens(n), 8, 4),), "reads an input of the model"),
    "weight at run time": (
        behind_norm(lambda n, x: (linear(n, x, 8, 4), n.op("MatMul", x, n.input("w", [8, 2])))),
        "MatMul does not scale",
    ),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_what_cannot_be_scaled_says_so(case: str) -> None:
    build, reason = BLOCKED[case]
    sites, reasons = find_sites(prepared(build))
    assert not sites
    assert reasons
    assert any(reason in text for text in reasons.values()), reasons


def test_another_axis_than_the_last_is_no_source() -> None:
    net = Net()
    x = net.op("LayerNormalization", tokens(net), net.normal(5, 8), net.normal(5, 8), axis=1)
    assert not find_sites(prepare(Graph.load(net.model(linear(net, x, 8, 4))))[0])[0]


def test_factors_of_another_graph_are_refused() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        rescale(prepared(qkv(layer_norm)), {"nowhere": np.ones(8, np.float32)})


# -- arithmetic ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_factors_become_the_nearest_powers_of_two(values: list[float]) -> None:
    powers = powers_of_two(np.array(values))
    mantissas, _ = np.frexp(powers)
    assert np.all(mantissas == 0.5)
    relative = np.log2(values) - np.log2(values).mean()
    assert np.all(np.abs(np.log2(powers) - np.clip(relative, -20, 20)) <= 0.5 + 1e-9)


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(1, 4, 6), (2, 4, 6), (4, 4, 8)])
def test_peaks_of_a_convolution_are_those_of_its_definition(groups: int, inputs: int, outputs: int) -> None:
    net = Net()
    net.conv(net.input("x", ["n", inputs, 5, 5]), inputs, outputs, group=groups)
    graph = Graph.load(net.model("t0"))
    node = graph.nodes[0]
    weight = constant(node.inputs[1])
    assert weight is not None
    dense = np.zeros((outputs, inputs, 3, 3))  # every output reads every input, most with weight 0
    for o in range(outputs):
        first = o // (outputs // groups) * (inputs // groups)
        dense[o, first : first + inputs // groups] = weight[o]
    np.testing.assert_array_equal(input_peaks(node, weight), np.abs(dense).max(axis=(0, 2, 3)))
    np.testing.assert_array_equal(output_peaks(node, weight), np.abs(dense).max(axis=(1, 2, 3)))
    factors = 2.0 ** np.arange(inputs)
    grown = input_peaks(node, scale_inputs(node, weight, factors))
    np.testing.assert_array_equal(grown, np.abs(dense).max(axis=(0, 2, 3)) * factors)

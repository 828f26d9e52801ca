"""Integer inputs and outputs: the graph computes what it did, to the bit, and says what its integers stand for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import MODELS, Array, Net, run, samples

import requant
from requant.onnx.boundary import Wanted
from requant.onnx.editing import integer_input, integer_output
from requant.onnx.graph import Graph
from requant.types import QuantType, Range

if TYPE_CHECKING:
    from requant.onnx.boundary import Boundary

pytestmark = pytest.mark.usefixtures("quick_latency")

#: Models whose last product may give float for free.
ENDS_IN_FLOAT = {"two_gemm", "pool_chain", "mlp"}

UINT8, INT8, INT16 = QuantType.UINT8, QuantType.INT8, QuantType.INT16


def quantized(model: onnx.ModelProto) -> Graph:
    return Graph.load(requant.quantize(model, samples(model, 16), threads=1).data)


def integers(boundary: Boundary, shape: tuple[int, ...]) -> Array:
    dtype = boundary.dtype
    return np.random.default_rng(3).integers(dtype.min, dtype.max, shape, dtype.numpy, endpoint=True)


def op_types(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


def element_types(graph: Graph) -> list[int]:
    proto = onnx.load_from_string(graph.to_bytes())
    return [v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)]


def qdq(net: Net, x: str, scale: float, zero_point: int, *, output: str | None = None, dtype: Any = np.uint8) -> str:
    """``x`` quantized and dequantized."""
    params = net.const(scale), net.const(np.array(zero_point, dtype))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *params), *params, output=output)


# -- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("dtype", [UINT8, INT8])
@pytest.mark.parametrize("name", MODELS)
def test_integers_in_and_out_give_the_very_same(name: str, dtype: QuantType, optimize: bool) -> None:
    """The outputs, dequantized, are those of the model as it was on the dequantized inputs, bit for bit."""
    graph = quantized(MODELS[name]())
    before = graph.to_bytes()
    edited, x = integer_input(graph, "x", Wanted(dtype))
    assert x.exact
    found: dict[str, Boundary] = {}
    for output in () if name in ENDS_IN_FLOAT else graph.outputs:
        edited, found[output.name] = integer_output(edited, output.name, Wanted(dtype))
        assert found[output.name].exact
    assert graph.to_bytes() == before, "editing has changed the graph it was given"
    dims = [d if isinstance(d, int) else 4 for d in graph.inputs[0].shape]
    q = integers(x, tuple(dims))
    expected = run(before, {"x": x.dequantize(q)}, optimize=optimize)
    got = run(edited.to_bytes(), {"x": q}, optimize=optimize)
    for output, real, value in zip(graph.outputs, expected, got, strict=True):
        boundary = found.get(output.name)
        assert value.dtype == (np.float32 if boundary is None else dtype.numpy)
        np.testing.assert_array_equal(value if boundary is None else boundary.dequantize(value), real)
    assert [i.name for i in edited.inputs] == [i.name for i in graph.inputs]
    assert [o.name for o in edited.outputs] == [o.name for o in graph.outputs]
    assert [o.shape for o in edited.outputs] == [o.shape for o in graph.outputs]
    onnx.checker.check_model(onnx.load_from_string(edited.to_bytes()), full_check=True)


@pytest.mark.parametrize("name", MODELS)
def test_the_boundary_is_free_of_float(name: str) -> None:
    graph = quantized(MODELS[name]())
    edited, x = integer_input(graph, "x", Wanted(UINT8))
    assert (x.removed, x.added) == (("QuantizeLinear",), ())
    assert len(edited.nodes) == len(graph.nodes) - 1
    for output in graph.outputs:
        if name not in ENDS_IN_FLOAT:
            edited, y = integer_output(edited, output.name, Wanted(UINT8))
            assert (y.removed, y.added) == (("DequantizeLinear",), ())


# -- inputs ----------------------------------------------------------------------------------------------------------


def test_float_readers_get_the_reals() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    model = net.model(net.op("Add", qdq(net, x, 0.1, 7), net.op("Sin", x), output="y"))
    edited, boundary = integer_input(Graph.load(model), "x", Wanted(UINT8))
    assert not boundary.exact
    assert (boundary.removed, boundary.added) == (("QuantizeLinear",), ("DequantizeLinear",))
    q = np.arange(256, dtype=np.uint8).reshape(64, 4)
    reals = boundary.dequantize(q)
    np.testing.assert_array_equal(reals, (q.astype(np.float32) - 7) * np.float32(0.1))
    np.testing.assert_array_equal(run(edited.to_bytes(), {"x": q})[0], run(model, {"x": reals})[0])


def test_one_meaning_serves_several_quantizers_and_two_are_refused() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    same = net.model(net.op("Add", qdq(net, x, 0.1, 7), qdq(net, x, 0.1, 7)))
    edited, boundary = integer_input(Graph.load(same), "x", Wanted(UINT8))
    assert boundary.removed == ("QuantizeLinear",) * 2
    assert "QuantizeLinear" not in op_types(edited)

    net = Net()
    x = net.input("x", ["n", 4])
    model = net.model(net.op("Add", qdq(net, x, 0.1, 7), qdq(net, x, 0.2, 7)))
    with pytest.raises(requant.ConfigError, match=r"2 ways .*scale 0\.1.*scale 0\.2"):
        integer_input(Graph.load(model), "x", Wanted(UINT8))
    edited, boundary = integer_input(Graph.load(model), "x", Wanted(UINT8, 0.2, 7))
    assert (boundary.removed, boundary.added) == (("QuantizeLinear",), ("DequantizeLinear",))
    q = np.arange(256, dtype=np.uint8).reshape(64, 4)
    np.testing.assert_array_equal(run(edited.to_bytes(), {"x": q})[0], run(model, {"x": boundary.dequantize(q)})[0])


def test_layout_ops_hand_integers_on_only_where_all_behind_take_them() -> None:
    net = Net()
    x = net.input("x", ["n", 2, 4])
    moved = net.op("Transpose", x, perm=[0, 2, 1])
    model = net.model(qdq(net, moved, 0.1, 7, output="y"))
    edited, boundary = integer_input(Graph.load(model), "x", Wanted(UINT8))
    assert op_types(edited) == ["Transpose", "DequantizeLinear"]
    assert boundary.exact

    branched = net.model("y", net.op("Sin", moved))
    edited, boundary = integer_input(Graph.load(branched), "x", Wanted(UINT8))
    assert not boundary.exact
    assert boundary.added == ("DequantizeLinear",)
    q = integers(boundary, (3, 2, 4))
    for got, expected in zip(
        run(edited.to_bytes(), {"x": q}), run(branched, {"x": boundary.dequantize(q)}), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_what_reads_the_shape_alone_needs_no_reals() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    model = net.model(qdq(net, x, 0.1, 7, output="y"), net.op("Shape", x, output="s"), net.op("Size", x, output="z"))
    edited, boundary = integer_input(Graph.load(model), "x", Wanted(UINT8))
    assert boundary.exact
    assert sorted(op_types(edited)) == ["DequantizeLinear", "Shape", "Size"]
    _, shape, size = run(edited.to_bytes(), {"x": np.zeros((3, 4), np.uint8)})
    assert [*shape, int(size)] == [3, 4, 12]


def test_bodies_that_read_an_input_take_its_integers_too() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    scale, zero = net.const(0.1), net.const(np.uint8(7))
    branches = {}
    for name, op_type in (("then_branch", "Sin"), ("else_branch", "Cos")):
        inner = [
            helper.make_node("QuantizeLinear", [x, scale, zero], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_d"]),
            helper.make_node(op_type, [f"{name}_d"], [f"{name}_y"]),
        ]
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 4])
        branches[name] = helper.make_graph(inner, name, [], [out])
    condition = net.op("Greater", net.op("Size", x), net.const(np.int64(3)))
    model = net.model(net.op("If", condition, **branches))
    edited, boundary = integer_input(Graph.load(model), "x", Wanted(UINT8))
    assert (boundary.removed, boundary.added, boundary.exact) == (("QuantizeLinear",) * 2, (), True)
    q = integers(boundary, (3, 4))
    np.testing.assert_array_equal(run(edited.to_bytes(), {"x": q})[0], run(model, {"x": boundary.dequantize(q)})[0])


def test_integers_that_are_an_output_too_keep_both_names() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    scale, zero = net.const(0.1), net.const(np.uint8(7))
    model = net.model(net.op("QuantizeLinear", x, scale, zero, output="q"))
    edited, boundary = integer_input(Graph.load(model), "x", Wanted(UINT8))
    assert op_types(edited) == ["DequantizeLinear", "QuantizeLinear"]
    q = integers(boundary, (3, 4))
    np.testing.assert_array_equal(run(edited.to_bytes(), {"x": q})[0], q)


MEANS = {
    "one for all": ((0.25,), (2.0,)),
    "one a channel": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "std alone": ((), (0.5, 0.25, 0.125)),
}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("case", MEANS)
def test_pixels_are_normalised_as_outside(case: str, layout: str) -> None:
    mean, std = MEANS[case]
    graph = quantized(MODELS["conv_relu" if layout == "nchw" else "nhwc"]())
    edited, boundary = integer_input(graph, "x", Wanted(UINT8, mean=mean, std=std))
    assert boundary.exact
    assert boundary.axis == (None if case == "one for all" else 1 if layout == "nchw" else 3)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8) if layout == "nchw" else (2, 8, 8, 3), np.uint8)
    shape = (-1, 1, 1) if layout == "nchw" else (-1,)
    x: Array = pixels.astype(np.float32) * np.float32(1 / 255)
    x = (x - np.reshape(np.array(mean or 0, np.float32), shape)) / np.reshape(np.array(std, np.float32), shape)
    np.testing.assert_array_equal(boundary.dequantize(pixels), x)
    for optimize in (True, False):
        got, expected = (
            run(g.to_bytes(), {"x": feed}, optimize=optimize)[0] for g, feed in ((edited, pixels), (graph, x))
        )
        np.testing.assert_array_equal(got, expected)


def test_a_normalisation_that_the_quantizer_undoes_goes_with_it() -> None:
    net = Net()
    x = net.input("x", ["n", 3])
    graph = Graph.load(net.model(qdq(net, x, 1 / 255, 0, output="y")))
    for wanted in (Wanted(UINT8, std=(1.0,)), Wanted(UINT8, 1 / 255), Wanted(UINT8, mean=(0.0, 0.0, 0.0))):
        edited, boundary = integer_input(graph, "x", wanted)
        assert op_types(edited) == ["DequantizeLinear"]
        assert boundary.removed == ("QuantizeLinear",)
    # One step in the middle of the range is off: the quantizer must stay.
    edited, boundary = integer_input(graph, "x", Wanted(UINT8, 1 / 254))
    assert op_types(edited) == ["DequantizeLinear", "QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize("shape", [["n", 5, 7], ["n", 3, 3], ["n", "c", "w"], ["n"]])
def test_channels_that_cannot_be_told_are_refused(shape: list[int | str]) -> None:
    net = Net()
    graph = Graph.load(net.model(qdq(net, net.input("x", shape), 0.1, 0)))
    with pytest.raises(requant.ConfigError, match="mean and std have 3 values"):
        integer_input(graph, "x", Wanted(UINT8, mean=(0.1, 0.2, 0.3), std=(1.0,)))


# -- outputs ---------------------------------------------------------------------------------------------------------


def test_readers_of_a_converted_output_keep_the_reals() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    y = qdq(net, x, 0.1, 7, output="y")
    model = net.model(y, net.op("Sin", y, output="z"))
    edited, boundary = integer_output(Graph.load(model), "y", Wanted(UINT8))
    assert (boundary.removed, boundary.added) == ((), ())
    feeds = samples(model)
    (y_before, z_before), (y_after, z_after) = run(model, feeds), run(edited.to_bytes(), feeds)
    np.testing.assert_array_equal(boundary.dequantize(y_after), y_before)
    np.testing.assert_array_equal(z_after, z_before)


def test_an_output_that_is_dequantized_from_an_input() -> None:
    net = Net()
    q = net.input("q", ["n", 4], TensorProto.UINT8)
    params = net.const(0.1), net.const(np.uint8(7))
    model = net.model(net.op("DequantizeLinear", q, *params, output="y"))
    edited, boundary = integer_output(Graph.load(model), "y", Wanted(UINT8))
    assert op_types(edited) == ["Identity"]
    values = integers(boundary, (3, 4))
    np.testing.assert_array_equal(run(edited.to_bytes(), {"q": values})[0], values)


def test_a_float_output_is_quantized_to_the_range_or_scale() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    graph = Graph.load(net.model(net.op("Sin", qdq(net, x, 0.1, 7), output="y")))
    with pytest.raises(requant.ConfigError, match="no scale follows"):
        integer_output(graph, "y", Wanted(INT8))
    for wanted in (Wanted(INT8, range=Range(-1, 1)), Wanted(INT8, 0.01, 5)):
        edited, boundary = integer_output(graph, "y", wanted)
        assert not boundary.exact
        feeds = {"x": np.linspace(-2, 2, 32, dtype=np.float32).reshape(8, 4)}
        expected = requant.quantize_array(run(graph.to_bytes(), feeds)[0], boundary.params).data
        np.testing.assert_array_equal(run(edited.to_bytes(), feeds)[0], expected)


@pytest.mark.parametrize(("op_type", "lo"), [("Softmax", 0.0), ("Sigmoid", 0.0), ("Tanh", -1.0)])
def test_ops_of_fixed_range_need_none(op_type: str, lo: float) -> None:
    net = Net()
    graph = Graph.load(net.model(net.op(op_type, qdq(net, net.input("x", ["n", 4]), 0.1, 7), output="y")))
    boundary = integer_output(graph, "y", Wanted(UINT8))[1]
    params = requant.compute_params(lo, 1.0, requant.QuantScheme(UINT8))
    assert (boundary.scale, boundary.zero_point) == (float(params.scale), int(params.zero_point))


def test_another_range_than_the_models_requantizes_and_says_so() -> None:
    graph = quantized(MODELS["conv_relu"]())
    edited, boundary = integer_output(graph, "y", Wanted(UINT8, range=Range(0, 1)))
    assert not boundary.exact
    assert boundary.added == ("QuantizeLinear",)
    feeds = samples(MODELS["conv_relu"]())
    expected = requant.quantize_array(run(graph.to_bytes(), feeds)[0], boundary.params).data
    np.testing.assert_array_equal(run(edited.to_bytes(), feeds)[0], expected)


# -- types -----------------------------------------------------------------------------------------------------------


def test_sixteen_bits_need_an_opset_that_has_them() -> None:
    def graph(opset: int) -> Graph:
        net = Net(opset, ir_version=10)
        return Graph.load(net.model(qdq(net, net.input("x", ["n", 4]), 0.1, 7, output="y")))

    with pytest.raises(requant.ConfigError, match="quantized to uint8, whose integers int16 cannot take over"):
        integer_input(graph(21), "x", Wanted(INT16))
    with pytest.raises(requant.ModelError, match="needs opset 21"):
        integer_input(graph(17), "x", Wanted(INT16, 0.01))
    edited, boundary = integer_input(graph(21), "x", Wanted(INT16, 0.01))
    q = np.arange(-32768, 32768, dtype=np.int16).reshape(-1, 4)
    expected = run(graph(21).to_bytes(), {"x": boundary.dequantize(q)})[0]
    np.testing.assert_array_equal(run(edited.to_bytes(), {"x": q})[0], expected)


def test_sixteen_bit_models_give_and_take_sixteen_bits() -> None:
    net = Net(21, ir_version=10)
    graph = Graph.load(net.model(qdq(net, net.input("x", ["n", 4]), 0.001, -9, output="y", dtype=np.int16)))
    edited, x = integer_input(graph, "x", Wanted(QuantType.UINT16))
    edited, y = integer_output(edited, "y", Wanted(INT16))
    assert (x.zero_point, y.zero_point) == (32768 - 9, -9)
    q = np.arange(65536, dtype=np.uint16).reshape(-1, 4)
    np.testing.assert_array_equal(run(edited.to_bytes(), {"x": q})[0], (q.astype(np.int32) - 32768).astype(np.int16))


def test_a_missing_zero_point_is_uint8_zero() -> None:
    net = Net()
    scale = net.const(0.1)
    q = net.op("QuantizeLinear", net.input("x", ["n", 4]), scale)
    graph = Graph.load(net.model(net.op("DequantizeLinear", q, scale, output="y")))
    edited, x = integer_input(graph, "x", Wanted(UINT8))
    edited, y = integer_output(edited, "y", Wanted(UINT8))
    assert x.zero_point == y.zero_point == 0
    assert op_types(edited) == ["Identity"]


# -- metadata and refusals -------------------------------------------------------------------------------------------


def test_the_model_says_what_its_integers_stand_for() -> None:
    graph = quantized(MODELS["conv_relu"]())
    edited, x = integer_input(graph, "x", Wanted(UINT8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    edited, y = integer_output(edited, "y", Wanted(UINT8))
    said = {p.key: json.loads(p.value) for p in onnx.load_from_string(edited.to_bytes()).metadata_props}
    assert said["requant.output.y"] == {"dtype": "uint8", "scale": y.scale, "zero_point": y.zero_point}
    assert said["requant.input.x"] == {
        "dtype": "uint8",
        "scale": x.scale,
        "zero_point": 0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "axis": 1,
    }
    proto = onnx.load_from_string(graph.to_bytes()).graph
    (dequantize,) = (node for node in proto.node if node.output[0] == "y")
    (scale,) = (numpy_helper.to_array(i) for i in proto.initializer if i.name == dequantize.input[1])
    assert np.float32(said["requant.output.y"]["scale"]) == scale


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("input", "xx", "no input 'xx'; did you mean 'x'"),
        ("input", "y", "it is an output"),
        ("output", "x", "it is an input"),
        ("input", "ids", "is int64, expected float32"),
        ("input", "bytes", "is uint8 already"),
        ("input", "through", "handed through"),
        ("input", "plain", "no scale follows"),
        ("output", "plain_out", "no scale follows"),
    ],
)
def test_what_cannot_be_converted_is_refused(kind: str, name: str, words: str) -> None:
    net = Net()
    y = qdq(net, net.input("x", ["n", 4]), 0.1, 7, output="y")
    outputs = [
        net.op("Cast", net.input("ids", ["n"], TensorProto.INT64), to=TensorProto.INT32),
        net.op("Cast", net.input("bytes", ["n"], TensorProto.UINT8), to=TensorProto.INT32),
        net.input("through", ["n"]),
        net.op("Sin", net.input("plain", ["n"]), output="plain_out"),
    ]
    graph = Graph.load(net.model(y, *outputs))
    with pytest.raises(requant.ConfigError) as refusal:
        (integer_input if kind == "input" else integer_output)(graph, name, Wanted(UINT8))
    assert words in str(refusal.value)

"""Reading models: what is wrong is told, nothing outside the model's folder is read, and nothing crashes."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import Net, conv_relu, info, run, samples, save, two_gemm

from requant.errors import MissingFileError, ModelError
from requant.onnx.graph import Graph
from requant.onnx.nodes import constant
from requant.onnx.passes import prepare
from requant.onnx.reading import MAX_IR_VERSION, MAX_OPSET, MIN_OPSET

if TYPE_CHECKING:
    from pathlib import Path

VALID = conv_relu().SerializeToString()


# -- files that are no models ----------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "truncated": (VALID[: len(VALID) // 2], "not an ONNX model, or it is truncated"),
    "garbage": (bytes(range(256)) * 8, "not an ONNX model"),
    "text": (b"<html><body>404 not found</body></html>", "not an ONNX model"),
    "a git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not an ONNX model"),
    "no graph": (onnx.ModelProto(ir_version=8, producer_name="nobody").SerializeToString(), "has no graph"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_a_model_is_refused(case: str, tmp_path: Path) -> None:
    data, message = BROKEN[case]
    path = save(tmp_path, data)
    for source in (path, str(path), data):
        with pytest.raises(ModelError, match=message) as caught:
            Graph.load(source)
        assert len(str(caught.value).splitlines()) <= 5


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.onnx does not exist"):
        Graph.load(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        Graph.load(tmp_path)


def test_a_path_bytes_and_a_proto_give_the_same_graph(tmp_path: Path) -> None:
    path = save(tmp_path, VALID)
    graphs = [Graph.load(source) for source in (path, str(path), VALID, onnx.load_from_string(VALID))]
    assert len({graph.digest for graph in graphs}) == 1
    assert len({graph.to_bytes() for graph in graphs}) == 1
    assert {graph.size for graph in graphs} == {len(VALID)}
    assert Graph.load(ir.load(path)).to_bytes() == graphs[0].to_bytes()


@pytest.mark.parametrize("change", ["opset 11", "new IR", "nothing"])
def test_a_proto_is_not_changed_by_loading_it(change: str) -> None:
    model = conv_relu()
    if change == "opset 11":
        model.opset_import[0].version = 11
    if change == "new IR":
        model.ir_version = 14
    before = model.SerializeToString(deterministic=True)
    prepare(Graph.load(model))
    assert model.SerializeToString(deterministic=True) == before


# -- versions --------------------------------------------------------------------------------------------------------


def test_an_opset_that_no_runtime_knows_is_refused() -> None:
    model = conv_relu()
    model.opset_import[0].version = MAX_OPSET + 1
    with pytest.raises(ModelError, match=f"opset {MAX_OPSET + 1}.*at most {MAX_OPSET}"):
        Graph.load(model)


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_an_old_opset_is_raised_and_keeps_the_function(opset: int) -> None:
    net = Net(opset)
    x = net.input("x", ["n", 3, 8, 8])
    y = net.op("MaxPool", net.batch_norm(net.conv(x, 3, 4), 4), kernel_shape=[2, 2])
    model = net.model(net.op("Softmax", net.op("Flatten", y), axis=1))
    graph = Graph.load(model)
    assert graph.opset == MIN_OPSET
    feeds = samples(model)
    np.testing.assert_allclose(run(graph.to_bytes(), feeds)[0], run(model, feeds)[0], rtol=1e-5)


def test_a_newer_opset_is_kept() -> None:
    model = conv_relu()
    model.opset_import[0].version = 21
    assert Graph.load(model).opset == 21


@pytest.mark.parametrize(("given", "kept"), [(3, 7), (8, 8), (14, MAX_IR_VERSION)])
def test_the_file_format_is_brought_into_the_range_of_runtimes(given: int, kept: int) -> None:
    model = conv_relu()
    model.ir_version = given
    assert onnx.load_from_string(Graph.load(model).to_bytes()).ir_version == kept


def test_a_model_without_standard_operators_is_refused() -> None:
    model = conv_relu()
    model.opset_import[0].domain = "com.example"
    with pytest.raises(ModelError, match="no version of the standard operators"):
        Graph.load(model)


# -- invalid graphs --------------------------------------------------------------------------------------------------


def graph_of(nodes: list[onnx.NodeProto], *, opset: int = 17, untyped: bool = False, **rest: Any) -> bytes:
    inputs = [onnx.ValueInfoProto(name="x")] if untyped else [info("x")]
    outputs = [onnx.ValueInfoProto(name="y")] if untyped else [info("y")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, **rest)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


RELU = helper.make_node("Relu", ["x"], ["y"])
INVALID: dict[str, bytes] = {
    "unknown op": graph_of([helper.make_node("Frobnicate", ["x"], ["y"])]),
    "unknown input": graph_of([helper.make_node("Relu", ["z"], ["y"])]),
    "not sorted": graph_of([helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]),
    "cycle": graph_of([helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["y"], ["a"])]),
    "two producers": graph_of([RELU, RELU]),
    "missing attribute": graph_of([helper.make_node("Concat", ["x", "x"], ["y"])]),
    "output from nowhere": graph_of([helper.make_node("Relu", ["x"], ["z"])]),
    "initializer of the wrong size": graph_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        initializer=[TensorProto(name="w", data_type=1, dims=[2, 2], raw_data=b"\0" * 12)],
    ),
    "initializer of negative size": graph_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        initializer=[TensorProto(name="w", data_type=1, dims=[-1], raw_data=b"")],
    ),
    "initializer of huge size": graph_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        initializer=[TensorProto(name="w", data_type=1, dims=[2**40, 2**40], raw_data=b"\0" * 16)],
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_graphs_are_refused(case: str) -> None:
    with pytest.raises(ModelError) as caught:
        Graph.load(INVALID[case])
    assert len(str(caught.value).splitlines()) <= 5


# -- models that kill onnx.shape_inference ---------------------------------------------------------------------------

LIKE = ("EyeLike", "RandomNormalLike", "Shape", "NonMaxSuppression", "ConstantOfShape")
UNTYPED = helper.make_node("Unknown", ["x"], ["u"], domain="com.example")
CRASHERS: dict[str, bytes] = {
    **{f"{op}, untyped input": graph_of([helper.make_node(op, ["x"], ["y"])], untyped=True) for op in LIKE},
    **{f"{op} of an unknown op": graph_of([UNTYPED, helper.make_node(op, ["u"], ["y"])]) for op in LIKE[:3]},
    "EyeLike, opset 9": graph_of([helper.make_node("EyeLike", ["x"], ["y"])], untyped=True, opset=9),
    "OneHot, untyped input": graph_of([helper.make_node("OneHot", ["x", "x", "x"], ["y"])], untyped=True),
    "OneHot without depth": graph_of([helper.make_node("OneHot", ["x"], ["y"])]),
    "OneHot of an unknown op": graph_of([UNTYPED, helper.make_node("OneHot", ["u", "u", "u"], ["y"])]),
    "OneHot, values of rank 0": graph_of(
        [helper.make_node("OneHot", ["x", "d", "v"], ["y"], axis=-9)],
        initializer=[
            numpy_helper.from_array(np.array(-5, np.int64), "d"),
            numpy_helper.from_array(np.array(1, np.float32), "v"),
        ],
    ),
}

_CHILD = """
import sys
from requant import inspect
from requant.errors import RequantError
for path in sys.argv[1:]:
    try:
        inspect(path)
    except RequantError:
        pass
    print(path, flush=True)
"""


def survives(paths: list[Path]) -> None:
    """Inspect the models in one child process, which must outlive all of them without any other error."""
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, *map(str, paths)], capture_output=True, text=True, timeout=100, check=False
    )
    done = child.stdout.splitlines()
    assert child.returncode == 0, f"{paths[len(done)].name}: exit {child.returncode}\n{child.stderr[-2000:]}"
    assert done == [str(path) for path in paths]


def test_models_that_kill_shape_inference_do_not_kill_us(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in CRASHERS]
    for path, data in zip(paths, CRASHERS.values(), strict=True):
        path.write_bytes(data)
    survives(paths)


@pytest.mark.parametrize("case", [name for name in CRASHERS if "untyped" in name or "without" in name])
def test_untyped_inputs_are_refused(case: str) -> None:
    with pytest.raises(ModelError):
        Graph.load(CRASHERS[case])


def test_mutants_of_a_model_do_not_kill_us(tmp_path: Path) -> None:
    """Bytes flipped, cut out and doubled at random: an error of ours, or a model."""
    rng = random.Random(0)
    seeds = [two_gemm().SerializeToString(), next(iter(CRASHERS.values())), graph_of([RELU])]
    paths = []
    for i in range(150):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[start] = rng.randrange(256)
                case 1:
                    del data[start : start + rng.randint(1, 8)]
                case _:
                    data[start:start] = data[start : start + rng.randint(1, 8)]
            data = data or bytearray(b"\0")
        path = tmp_path / f"{i}.onnx"
        path.write_bytes(data)
        paths.append(path)
    survives(paths)


def test_folding_constants_does_not_fill_the_memory(tmp_path: Path) -> None:
    """40 bytes can ask for any number of bytes; here for 512 MiB."""
    net = Net()
    huge = net.op("Expand", net.const(np.ones(1)), net.const(np.array([2**27])))
    first = net.op("Slice", huge, net.const(np.array([0])), net.const(np.array([4])))
    model = net.model(net.gemm(net.op("Add", net.input("x", ["n", 4]), first), 4, 3))
    path = save(tmp_path, model.SerializeToString())
    code = "import pathlib, requant, sys; requant.inspect(sys.argv[1]);" + (
        "print(next(s.split()[1] for s in pathlib.Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in s))"
    )
    command = [sys.executable, "-c", code, str(path)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert int(child.stdout) < 500 * 1024, f"peak memory {child.stdout.strip()} KiB"
    assert child.stderr == ""


# -- looking and writing ---------------------------------------------------------------------------------------------


def test_inputs_and_outputs_are_described() -> None:
    graph = Graph.load(conv_relu())
    (x,), (y,) = graph.inputs, graph.outputs
    assert (x.name, x.dtype, x.shape) == ("x", np.dtype(np.float32), ("n", 3, 8, 8))
    assert (y.name, y.dtype, y.shape) == ("y", np.dtype(np.float32), ("n", 4, 8, 8))


def test_inner_tensors_can_be_fetched() -> None:
    model = two_gemm()
    graph = Graph.load(model)
    (hidden,) = run(graph.to_bytes(["t1"]), samples(model))
    assert hidden.shape == (8, 16)
    assert hidden.min() == 0
    with pytest.raises(ModelError, match="'t9' is not in the graph"):
        graph.to_bytes(["t9"])


def test_a_constant_that_a_caller_may_override_is_none() -> None:
    model = two_gemm()
    weight = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(weight.name, 1, list(weight.dims)))
    graph = Graph.load(model)
    values = [graph.model.graph.initializers[i.name] for i in model.graph.initializer]
    assert constant(values[0]) is None
    np.testing.assert_array_equal(constant(values[1]), numpy_helper.to_array(model.graph.initializer[1]))


@pytest.mark.parametrize("op", ["QuantizeLinear", "DynamicQuantizeLinear"])
@pytest.mark.parametrize("place", ["graph", "branch"])
def test_integers_that_are_there_already_are_found(op: str, place: str) -> None:
    scale = [
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.uint8), "z"),
    ]
    nodes = (
        [helper.make_node(op, ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["b"])]
        if op == "QuantizeLinear"
        else [
            helper.make_node(op, ["x"], ["q", "s2", "z2"]),
            helper.make_node("DequantizeLinear", ["q", "s2", "z2"], ["b"]),
        ]
    )
    if place == "branch":
        body = helper.make_graph(nodes, "body", [], [info("b")])
        const = helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True)))
        nodes = [const, helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)]
    else:
        nodes.append(helper.make_node("Relu", ["b"], ["y"]))
    assert Graph.load(graph_of(nodes, initializer=scale)).quantized_ops() == sorted({op, "DequantizeLinear"})
    assert Graph.load(conv_relu()).quantized_ops() == []

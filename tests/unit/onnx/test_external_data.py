"""External data: read from regular files below the model's folder, and from nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import info, run, save

from requant.errors import MissingFileError, ModelError, RequantError
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def external(location: str, *, offset: object = None, length: object = None, dims: tuple[int, ...] = (4, 3)) -> bytes:
    """A Gemm whose weight lies in the file ``location``."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            weight.external_data.add(key=key, value=str(value))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [info("x", [2, 4])], [info("y", [2, 3])], [weight])
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with weights below it, and a secret beside it."""
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "w.bin").write_bytes(b"\0" * 16 + WEIGHT.tobytes())
    (inside / "sub" / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inside / "loop").symlink_to("loop")
    (inside / "linked").symlink_to(tmp_path)
    return inside


GOOD: dict[str, dict[str, Any]] = {
    "offset": {"location": "w.bin", "offset": 16, "length": 48},
    "to the end": {"location": "w.bin", "offset": 16},
    "a folder below": {"location": "sub/w.bin", "offset": 0, "length": 48},
}


@pytest.mark.parametrize("case", GOOD)
def test_external_data_is_read_and_written_into_the_model(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(folder, external(**GOOD[case]))
    monkeypatch.chdir(folder.parent)
    graph = Graph.load(path)
    assert graph.size == path.stat().st_size + 48
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(graph.to_bytes(), {"x": x})[0], x @ WEIGHT)
    prepared, _ = prepare(graph)
    np.testing.assert_array_equal(run(prepared.to_bytes(), {"x": x})[0], x @ WEIGHT)
    monkeypatch.chdir(folder)
    assert Graph.load("model.onnx").to_bytes() == graph.to_bytes()


def test_a_model_of_onnx_ir_has_its_weights_where_it_was_read_from(folder: Path) -> None:
    path = save(folder, external(**GOOD["a folder below"]))
    (other := folder.parent / "other").mkdir()
    (other / "w.bin").write_bytes(WEIGHT.tobytes())
    model = ir.load(path)
    assert Graph.load(model).to_bytes() == Graph.load(path).to_bytes()
    model.graph.initializers["v"] = ir.Value(
        name="v",
        const_value=ir.ExternalTensor(
            "w.bin", 0, 48, ir.DataType.FLOAT, shape=ir.Shape([4, 3]), name="v", base_dir=other
        ),
    )
    with pytest.raises(ModelError, match="more than one folder"):
        Graph.load(model)


BAD: dict[str, dict[str, Any]] = {
    "absolute": {"location": "/etc/hostname"},
    "parent": {"location": "../secret.bin", "length": 48},
    "parent in the middle": {"location": "sub/../../secret.bin", "length": 48},
    "link out": {"location": "link.bin", "length": 48},
    "through a linked folder": {"location": "linked/secret.bin", "length": 48},
    "loop of links": {"location": "loop", "length": 48},
    "no location": {"location": ""},
    "missing": {"location": "nowhere.bin", "length": 48},
    "a folder": {"location": "sub", "length": 48},
    "the folder itself": {"location": ".", "length": 48},
    "below a file": {"location": "w.bin/x", "length": 48},
    "null byte": {"location": "w\0.bin", "length": 48},
    "file too short": {"location": "w.bin", "offset": 32, "length": 48},
    "length too short for the shape": {"location": "w.bin", "offset": 16, "length": 8},
    "no length, file too short": {"location": "w.bin", "offset": 32},
    "negative offset": {"location": "w.bin", "offset": -16, "length": 48},
    "negative length": {"location": "w.bin", "offset": 0, "length": -1},
    "offset of text": {"location": "w.bin", "offset": "many", "length": 48},
    "huge shape": {"location": "w.bin", "offset": 0, "length": 48, "dims": (2**31, 2**31)},
}


@pytest.mark.parametrize("case", BAD)
def test_external_data_that_is_not_below_the_model_is_refused(case: str, folder: Path) -> None:
    path = save(folder, external(**BAD[case]))
    with pytest.raises(RequantError) as caught:
        Graph.load(path)
    assert isinstance(caught.value, ModelError | MissingFileError)


def test_a_model_of_bytes_or_a_proto_may_not_name_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    data = external("w.bin", offset=16, length=48)
    for source in (data, onnx.load_from_string(data)):
        with pytest.raises(ModelError, match="not given as one"):
            Graph.load(source)


def secret_tensor() -> TensorProto:
    weight: TensorProto = onnx.load_from_string(external("../secret.bin", length=48)).graph.initializer[0]
    return weight


def in_constant() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=secret_tensor()),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [info("x", [2, 4])], [info("y", [2, 3])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_function() -> onnx.ModelProto:
    body = [
        helper.make_node("Constant", [], ["w"], value=secret_tensor()),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
    ]
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("com.example", "F", ["a"], ["b"], body, [opset])
    call = helper.make_node("F", ["x"], ["y"], domain="com.example")
    graph = helper.make_graph([call], "g", [info("x", [2, 4])], [info("y", [2, 3])])
    opsets = [opset, helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)


def in_branch() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["b"])
    body = helper.make_graph([node], "body", [], [info("b", [2, 3])], [secret_tensor()])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    call = helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
    graph = helper.make_graph([call], "g", [info("x", [2, 4]), flag], [info("y", [2, 3])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_sparse() -> onnx.ModelProto:
    indices = numpy_helper.from_array(np.arange(12), "i")
    sparse = onnx.SparseTensorProto(values=secret_tensor(), indices=indices, dims=[4, 3])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [info("x", [2, 4])],
        [info("y", [2, 3])],
        sparse_initializer=[sparse],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("build", [in_constant, in_function, in_branch, in_sparse], ids=lambda b: b.__name__)
def test_external_data_is_refused_wherever_it_hides(build: Callable[[], onnx.ModelProto], folder: Path) -> None:
    path = save(folder, build().SerializeToString())
    with pytest.raises(ModelError, match=r"outside the model's folder|not a valid ONNX model"):
        Graph.load(path)


def test_external_data_in_a_branch_is_written_into_the_model(folder: Path) -> None:
    model = in_branch()
    for attribute in model.graph.node[0].attribute:
        attribute.g.initializer[0].external_data[0].value = "sub/w.bin"
    graph = Graph.load(save(folder, model.SerializeToString()))
    feeds = {"x": np.ones((2, 4), np.float32), "flag": np.array(True)}
    np.testing.assert_array_equal(run(graph.to_bytes(), feeds)[0], feeds["x"] @ WEIGHT)


def test_the_digest_tells_models_of_other_weights_apart(folder: Path) -> None:
    path = save(folder, external("w.bin", offset=16, length=48))
    first = Graph.load(path).digest
    (folder / "w.bin").write_bytes(b"\1" * 64)
    assert Graph.load(path).digest != first

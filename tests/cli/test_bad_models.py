"""Models that cannot be quantized, or only in part: what the command says of each, in a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import run

from requant.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGHT = np.random.default_rng(0).standard_normal((96, 96)).astype(np.float32)


def linear(opset: int = 17, dtype: Any = np.float32, shape: tuple[Any, ...] = ("n", 96)) -> onnx.ModelProto:
    """A product, and a Relu behind it."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"),
        helper.make_node("Relu", ["h"], ["y"], name="relu"),
    ]
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(WEIGHT.astype(dtype), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def changed(change: Callable[[onnx.ModelProto], object], **options: Any) -> onnx.ModelProto:
    model = linear(**options)
    change(model)
    return model


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def unsorted(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def without_weight(model: onnx.ModelProto) -> None:
    del model.graph.initializer[:]


def unknown_op(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Frob"


def foreign_op(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type, model.graph.node[1].domain = "Frob", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def two_producers(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "h"


def outside(model: onnx.ModelProto, location: str = "../secret.bin") -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)


def gone(model: onnx.ModelProto) -> None:
    outside(model, "gone.bin")


def broken_weight(model: onnx.ModelProto) -> None:
    weight = WEIGHT.copy()
    weight[1, 2] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))


def removed_op(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Crop"


BAD: dict[str, tuple[onnx.ModelProto, str]] = {
    "cycle": (changed(cycle), "node 'mm' (MatMul) reads 'y', which depends on it: the graph has a cycle"),
    "unsorted": (changed(unsorted), "node 'relu' (Relu) reads 'h', which comes later: the nodes are not sorted"),
    "missing initializer": (
        changed(without_weight),
        "node 'mm' (MatMul) reads 'w', which no node gives and no initializer holds",
    ),
    "unknown op": (changed(unknown_op), "No Op registered for Frob"),
    "foreign op": (changed(foreign_op), "onnxruntime does not know com.example:Frob"),
    "two producers": (changed(two_producers), "single static assignment"),
    "external data outside": (changed(outside), "points outside the model's folder"),
    "int32": (linear(dtype=np.int32), "wrong dtype"),
    "no rows": (linear(shape=(0, 96)), "has no elements"),
    "weight that is not finite": (
        changed(broken_weight),
        "weight 'w' (96, 96) holds 1 NaN or infinite value, the first at (1, 2)",
    ),
    "external data gone": (changed(gone), "its external data 'gone.bin' is missing"),
    "opset of the future": (linear(opset=99), "uses opset 99"),
    "old op without a successor": (changed(removed_op, opset=9), "uses opset 9"),
}


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((8, 96)).astype(np.float32))
    return str(path)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_model_is_refused_in_a_few_lines(
    case: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, message = BAD[case]
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(model.SerializeToString())
    assert main(["quantize", str(path), "--data", data, "-o", str(output)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in " ".join(lines)
    assert lines[0].startswith("error[RQ")
    assert len(lines) <= 6
    assert not output.exists()


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_an_old_opset_is_raised(opset: int, data: str, tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(linear(opset).SerializeToString())
    assert main(["quantize", str(path), "--data", data, "-o", str(output), "-q"]) == 0
    assert onnx.load(output).opset_import[0].version == 13


@pytest.mark.parametrize("shape", [("n", 96), ("n", "m"), (None, None), (1, 96)])
def test_symbolic_and_unknown_dimensions_are_fine(shape: tuple[Any, ...], data: str, tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(linear(shape=shape).SerializeToString())
    assert main(["quantize", str(path), "--data", data, "-o", str(output), "-q"]) == 0
    x = np.random.default_rng(1).standard_normal((1, 96)).astype(np.float32)
    np.testing.assert_allclose(run(output.read_bytes(), {"x": x})[0], np.maximum(x @ WEIGHT, 0), atol=1.0)


def test_foreign_ops_are_left_alone_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(changed(foreign_op).SerializeToString())
    assert main(["quantize", str(path), "--dynamic", "-o", str(output)]) == 0
    assert "com.example:Frob: unknown to onnxruntime" in " ".join(capsys.readouterr().out.split())
    op_types = [node.op_type for node in onnx.load(output).graph.node]
    assert "MatMulInteger" in op_types
    assert "Frob" in op_types


def test_mutants_end_with_an_error_of_ours_or_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes of the part that says what the weights mean, flipped at random."""
    rng, whole = np.random.default_rng(0), linear().SerializeToString()
    place = whole.find(WEIGHT.tobytes())
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.choice([*range(place), *range(place + WEIGHT.nbytes, len(whole))], rng.integers(1, 4)):
            data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        status = main(["quantize", str(path), "--dynamic", "-o", str(output), "-q"])
        assert status in (0, 1, 2), bytes(data[:place])
        assert "Traceback" not in capsys.readouterr().err

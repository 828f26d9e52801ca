"""ONNX tensor files and the folders they come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from requant.data import InputSpec, open_data
from requant.errors import DataError, MissingFileError
from requant.onnx.tensors import load_tensor_proto

if TYPE_CHECKING:
    from pathlib import Path

X = InputSpec("x", np.dtype(np.float32), ("n", 2))


def write(path: Path, tensor: onnx.TensorProto) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tensor.SerializeToString())
    return path


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "bool"])
def test_round_trip(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    x = np.array(np.arange(6)[: int(np.prod(shape))].reshape(shape), dtype)
    loaded = load_tensor_proto(write(tmp_path / "t" / "x.pb", onnx.numpy_helper.from_array(x)))
    assert loaded.dtype == x.dtype
    np.testing.assert_array_equal(loaded, x)


def damaged(**fields: Any) -> onnx.TensorProto:
    tensor = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32))
    dims = fields.pop("dims", None)
    if dims is not None:
        del tensor.dims[:]
        tensor.dims.extend(dims)
    for name, value in fields.items():
        setattr(tensor, name, value)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (onnx.numpy_helper.from_array(np.array(["a"], dtype=object)), "t/x.pb holds a tensor of type string"),
        (onnx.TensorProto(), "t/x.pb holds a tensor of type undefined"),
        (damaged(data_type=99), "t/x.pb is damaged: 99"),
        (damaged(dims=[7]), "t/x.pb is damaged"),
        (damaged(dims=[-1]), r"t/x.pb declares shape \(-1,\) and holds 6 values"),
        (damaged(dims=[2**62, 2**62]), "t/x.pb is damaged"),
        (damaged(raw_data=b"123"), "t/x.pb is damaged"),
        (damaged(data_location=onnx.TensorProto.EXTERNAL), "t/x.pb keeps its values in another file"),
    ],
)
def test_refused(tmp_path: Path, tensor: onnx.TensorProto, message: str) -> None:
    path = write(tmp_path / "t" / "x.pb", tensor)
    with pytest.raises(DataError, match=message):
        load_tensor_proto(path)


def test_not_a_tensor_and_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.pb").write_bytes(b"\xff" * 20)
    with pytest.raises(DataError, match=r"x\.pb is not an ONNX tensor"):
        load_tensor_proto(tmp_path / "x.pb")
    with pytest.raises(MissingFileError, match=r"no file .*/y.pb"):
        load_tensor_proto(tmp_path / "y.pb")


def test_one_folder_or_the_folder_of_folders(tmp_path: Path) -> None:
    for i in (0, 2, 10):
        x = np.full((1, 2), i, np.float32)
        write(tmp_path / f"test_data_set_{i}" / "input_0.pb", onnx.numpy_helper.from_array(x))
        write(tmp_path / f"test_data_set_{i}" / "output_0.pb", onnx.numpy_helper.from_array(x))
    (tmp_path / "model.onnx").write_bytes(b"not read")
    x = next(open_data(tmp_path, [X]).batches()).feeds["x"]
    assert x[:, 0].tolist() == [0, 2, 10]
    data = open_data(tmp_path / "test_data_set_2", [X])
    assert data.description == "test_data_set_2, 1 sample"
    assert next(data.batches()).feeds["x"].tolist() == [[2, 2]]

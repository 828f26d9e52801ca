"""Tensors that ONNX stores in files of their own, as in the ``test_data_set_*`` folders beside a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import DataError, MissingFileError

if TYPE_CHECKING:
    from pathlib import Path


def load_tensor_proto(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """The array of a serialised ``TensorProto``, in its own dtype and shape.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is not a dense numeric tensor, or does not hold what its dims declare.
    """
    import onnx
    from google.protobuf.message import DecodeError

    where = f"{path.parent.name}/{path.name}"
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"no file {where}") from None
    except (OSError, DecodeError) as error:
        raise DataError(f"{where} is not an ONNX tensor: {error}") from error
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(f"{where} keeps its values in another file", hint="store the tensor inline")
    if tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        raise DataError(f"{where} holds a tensor of type {kind}", hint="only numeric tensors can be fed")
    dims = tuple(tensor.dims)
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, MemoryError) as error:
        raise DataError(f"{where} is damaged: {error}") from error
    if array.shape != dims:
        raise DataError(f"{where} declares shape {dims} and holds {math.prod(array.shape)} values")
    return np.asarray(array)

"""Writing a model to files: one, or a model and its data, together the old ones or the new.

The data file is complete under a name made of its content before the model that names it replaces the old one, and the
old data goes last. Whatever happens in between, the model at its path and the data it names belong together.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from requant.errors import ModelError, OutputError
from requant.files import explained, is_special, temporary_file, write_atomically
from requant.onnx.checking import initializers
from requant.onnx.encoding import encode, mapped
from requant.onnx.mapped import LEAST, MappedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from requant.serialized import SerializedModel

#: The largest model that is saved in one file: a protobuf message has less than 2 GiB.
ONE_FILE = 2**31 - 2**20
_ALIGNMENT = 4096  # so that readers can map tensors
_DIGITS = 16
_VALUES = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def save_model(model: SerializedModel, path: str | Path, *, external_data: bool = False) -> None:
    """Write a model to ``path``; tensors go to a file beside it where it would pass 2 GiB, or ``external_data`` is set.

    Model and data are replaced together or not at all. The data file is called as the model, with a part of its
    SHA-256 and ``.data`` behind; that of a model which is replaced is removed.

    Raises:
        OutputError: ``path`` cannot be written; what was there is as it was.
    """
    target = Path(path).resolve()
    old = _data_files(target)
    if external_data or model.size >= ONE_FILE:
        old -= _save_beside(model, path, target)
    else:
        write_atomically(path, encode(model))
    for unused in old:
        with suppress(OSError):
            unused.unlink()


def _save_beside(model: SerializedModel, path: str | Path, target: Path) -> set[Path]:
    """Write the model with its data in a file of its own, which is returned."""
    if is_special(Path(path)):
        raise OutputError(f"{path} is no file: external data has no place beside it", hint="give the path of a file")
    proto = onnx.ModelProto.FromString(model.proto)
    with explained(path), temporary_file(target.parent) as (file, move):
        digest = hashlib.sha256()
        outside = [(tensor, *_append(file, digest, data)) for tensor, data in _outside(proto, model)]
        location = f"{target.name}.{digest.hexdigest()[:_DIGITS]}.data"
        for tensor, offset, length in outside:
            for values in _VALUES:
                tensor.ClearField(values)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            del tensor.external_data[:]
            for key, value in (("location", location), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
        data_file = target.with_name(location)
        fresh = not data_file.exists()
        if outside:
            move(data_file)
        try:
            write_atomically(path, proto.SerializeToString(deterministic=True))
        except BaseException:
            if fresh:
                data_file.unlink(missing_ok=True)
            raise
    return {data_file}


def _append(file: BinaryIO, digest: hashlib._Hash, data: MappedTensor | bytes) -> tuple[int, int]:
    """Write ``data`` at the next aligned place; returns where that is and how long it is."""
    start, length = file.tell(), 0
    padding = b"\0" * (-start % _ALIGNMENT)
    chunks: Iterator[memoryview | bytes] = data.chunks() if isinstance(data, MappedTensor) else iter([data])
    for chunk in itertools.chain([padding], chunks):
        file.write(chunk)
        digest.update(chunk)
        length += len(chunk)
    return start + len(padding), length - len(padding)


def _data_files(target: Path) -> set[Path]:
    """The data files of the model at ``target``, if there is one that this module saved."""
    name = re.compile(re.escape(target.name) + rf"\.[0-9a-f]{{{_DIGITS}}}\.data")
    if not target.is_file() or not any(name.fullmatch(beside.name) for beside in target.parent.iterdir()):
        return set()
    try:
        tensors = list(initializers(onnx.ModelProto.FromString(target.read_bytes()).graph))
    except (OSError, DecodeError):
        return set()
    locations = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return {target.with_name(location) for location in locations if name.fullmatch(location)}


def self_contained(model: SerializedModel) -> bytes:
    """The bytes of one file that holds everything.

    Raises:
        ModelError: They would pass 2 GiB.
    """
    if model.external_bytes and model.size >= ONE_FILE:
        raise ModelError(
            f"a model of {model.size:,} bytes does not fit into one 2 GiB file",
            hint="save it to a path: its data goes to a file beside it",
        )
    return b"".join(encode(model))


def _outside(proto: onnx.ModelProto, model: SerializedModel) -> Iterator[tuple[onnx.TensorProto, MappedTensor | bytes]]:
    """The tensors that go to the data file, each with its bytes."""
    for tensor in initializers(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            assert model.folder is not None  # or nothing would be external
            yield tensor, mapped(tensor, model.folder)
        elif tensor.data_type != onnx.TensorProto.STRING and tensor.ByteSize() >= LEAST:
            yield tensor, tensor.raw_data or ir.TensorProtoTensor(tensor).tobytes()

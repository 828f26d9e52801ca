"""The bytes of a model in one file, piece by piece: each tensor's data comes straight from where it lies.

A protobuf message is the sequence of its fields in the order of their numbers; one that is nested, or bytes, is a key,
a length, and its content. The pieces are what ``SerializeToString`` gives of the model with its data inside; that would
take the memory of all of it, several times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from requant.onnx.checking import bodies, initializers
from requant.onnx.mapped import MappedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

    from requant.serialized import SerializedModel

    Piece = bytes | MappedTensor

_DELIMITED = 2  # the wire type of what has a length


def encode(model: SerializedModel) -> Iterator[bytes | memoryview]:
    """The bytes of the file that holds everything of ``model``."""
    if model.folder is None:
        yield model.proto
        return
    proto = onnx.ModelProto.FromString(model.proto)
    tensors = [_tensor(tensor, model.folder) for tensor in proto.graph.initializer]
    for body in bodies(proto.graph.node):
        for tensor in initializers(body):
            tensor.ParseFromString(b"".join(_bytes(_tensor(tensor, model.folder))))
    yield from _bytes(_with(proto, "graph", [_with(proto.graph, "initializer", tensors)]))


def mapped(tensor: onnx.TensorProto, folder: Path) -> MappedTensor:
    """An external tensor of a model that this package serialized."""
    entry = {e.key: e.value for e in tensor.external_data}
    dtype, path = ir.DataType(tensor.data_type), folder / entry["location"]
    return MappedTensor(path, int(entry["offset"]), dtype, tuple(tensor.dims), tensor.name)


def _tensor(tensor: onnx.TensorProto, folder: Path) -> list[Piece]:
    """A tensor with its data inside."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return [tensor.SerializeToString(deterministic=True)]
    data = mapped(tensor, folder)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    return _with(tensor, "raw_data", [[data]])


def _with(message: Message, field: str, contents: Sequence[Sequence[Piece]]) -> list[Piece]:
    """A message, ``field`` of which has these contents."""
    message.ClearField(field)  # what follows would copy it
    number = message.DESCRIPTOR.fields_by_name[field].number
    before, behind = type(message)(), type(message)()
    before.CopyFrom(message)
    behind.CopyFrom(message)
    for other, _ in message.ListFields():
        if other.number >= number:
            before.ClearField(other.name)
        if other.number <= number:
            behind.ClearField(other.name)
    pieces: list[Piece] = [before.SerializeToString(deterministic=True)]
    for content in contents:
        length = sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in content)
        pieces += [_varint(number << 3 | _DELIMITED) + _varint(length), *content]
    return [*pieces, behind.SerializeToString(deterministic=True)]


def _varint(value: int) -> bytes:
    """An integer in groups of seven bits, the least first; all but the last have the eighth bit set."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _bytes(pieces: Sequence[Piece]) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            yield from piece.chunks()

"""Reading an ONNX file with care.

The order matters, because a 50-byte model can kill ``onnx.shape_inference`` and a 243-byte one onnxruntime: parse,
our own checks, ``onnx.checker``, and only then anything else. External data comes from regular files below the model's
folder and nowhere else. Large initializers stay in their files; the rest is taken into the model here.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from requant.errors import MissingFileError, ModelError, first_line
from requant.files import missing_file
from requant.onnx.checking import bodies, check, initializers, opset_of
from requant.onnx.mapped import LEAST, MappedTensor
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    #: Location, offset, type and shape of an external tensor.
    Key = tuple[str, int, int, tuple[int, ...]]
    #: What a model may be given as.
    Model = str | Path | bytes | onnx.ModelProto | ir.Model | SerializedModel

#: Newest operator set and file format that onnxruntime 1.31 loads.
MAX_OPSET = 26
MAX_IR_VERSION = 13
#: Per-axis QuantizeLinear and DequantizeLinear came with opset 13.
MIN_OPSET = 13
_IR_OF_MIN_OPSET = 7
_PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class ModelFile:
    """A checked model: its proto, what to call it, the files it lies in, and their bytes.

    ``mapped`` holds the initializers that stayed in their files; ``proto`` gives their locations from the root of the
    file system.
    """

    proto: onnx.ModelProto
    origin: str
    files: tuple[Path, ...]
    size: int
    proto_digest: str
    mapped: Mapping[Key, MappedTensor] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model with its external data."""
        if not self.mapped:
            return self.proto_digest
        digest = hashlib.sha256(self.proto_digest.encode())
        for tensor in self.mapped.values():
            for chunk in tensor.chunks():
                digest.update(chunk)
        return digest.hexdigest()


def read_model(source: Model) -> ModelFile:
    """Read and check a model.

    Raises:
        MissingFileError: the file or its external data does not exist.
        ModelError: it is empty, not ONNX, invalid, newer than the runtime accepts, or reaches outside its folder.
        TypeError: ``source`` is none of the things a model may be given as.
    """
    proto, path, folder, origin, size = _parse(source)
    external = _External(proto, folder, origin)
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    external.locate()
    proto = _with_usable_versions(proto, origin)
    check(proto, origin)
    _densify(proto.graph, origin)
    files = (() if path is None else (path,)) + tuple(external.files)
    return ModelFile(proto, origin, files, size + sum(external.files.values()), digest, external.mapped)


def _parse(source: Model) -> tuple[onnx.ModelProto, Path | None, Path | None, str, int]:
    """The model, its path if it has one, the folder of its external data, what to call it, and its bytes."""
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return copy, None, None, "model", source.ByteSize()
    if isinstance(source, ir.Model):
        return _written(source)
    path, folder, origin = None, None, "model"
    if isinstance(source, str | Path):
        path, origin = Path(source).absolute(), str(source)
        data, folder = _read_bytes(path, origin), path.parent
    elif isinstance(source, SerializedModel):
        data, folder = source.proto, source.folder
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    else:
        holds = {"data": bytes, "model_proto": onnx.ModelProto}
        inside = next(
            (f"; give its .{n}" for n, kind in holds.items() if isinstance(getattr(source, n, None), kind)), ""
        )
        raise TypeError(
            f"expected a model as a path, bytes, ModelProto or onnx_ir.Model, got {type(source).__name__}{inside}"
        )
    if not data:
        raise ModelError(f"{origin} is empty, expected an ONNX model")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{origin} is not an ONNX model, or it is truncated ({len(data):,} bytes)",
            hint="export it again, or check the download",
        ) from None
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{origin} has no graph: it is not an ONNX model ({len(data):,} bytes)")
    return proto, path, folder, origin, len(data)


def _written(model: ir.Model) -> tuple[onnx.ModelProto, None, Path | None, str, int]:
    """``model`` as ``_parse`` gives models; its external data may lie in one folder."""
    constants = [v.const_value for g in (model.graph, *model.graph.subgraphs()) for v in g.initializers.values()]
    folders = {Path(each.base_dir).absolute() for each in constants if isinstance(each, ir.ExternalTensor)}
    if len(folders) > 1:
        raise ModelError("the model has external data in more than one folder", hint="save it, and give its path")
    try:
        proto = ir.to_proto(model)
    except Exception as problem:
        raise ModelError(f"the model cannot be written as ONNX: {first_line(problem)}") from problem
    return proto, None, next(iter(folders), None), "model", proto.ByteSize()


def _read_bytes(path: Path, origin: str) -> bytes:
    if path.is_dir():
        raise ModelError(f"{origin} is a directory, expected an .onnx file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise missing_file("model", origin) from None
    except OSError as problem:
        raise ModelError(f"{origin} cannot be read: {problem.strerror}") from problem


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """The tensors in attributes of ``nodes``, and of those in their bodies."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
    for body in bodies(nodes):
        yield from _constants(body.node)


class _External:
    """The external data of a model, checked: large initializers are left in their files, all else is taken in."""

    def __init__(self, proto: onnx.ModelProto, folder: Path | None, origin: str) -> None:
        self.folder, self.origin = folder, origin
        self.files: dict[Path, int] = {}
        self.mapped: dict[Key, MappedTensor] = {}
        self._left: list[tuple[onnx.TensorProto, MappedTensor]] = []
        self._taken_in = 0
        stay = opset_of(proto) >= MIN_OPSET  # the converter takes no external data along
        for tensor in initializers(proto.graph):
            self._visit(tensor, stay=stay)
        for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
            for tensor in _constants(nodes):
                self._visit(tensor, stay=False)
        for function in proto.functions:
            for body in bodies(function.node):
                for tensor in initializers(body):
                    self._visit(tensor, stay=False)

    def _visit(self, tensor: onnx.TensorProto, *, stay: bool) -> None:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return
        path, offset, length = self._find(tensor)
        self.files[path] = self.files.get(path, 0) + length
        dtype = ir.DataType(tensor.data_type)
        if stay and length >= LEAST and offset % max(dtype.bitwidth // 8, 1) == 0:
            mapped = MappedTensor(path, offset, dtype, tuple(tensor.dims), tensor.name)
            self._left.append((tensor, mapped))
            self.mapped[key_of(mapped)] = mapped
            return
        self._taken_in += length
        if self._taken_in > _PROTOBUF_LIMIT:
            raise ModelError(
                f"{self.origin} exceeds 2 GiB in tensors that have to be read into memory",
                hint=f"export it with opset {MIN_OPSET} or newer, its weights as initializers",
            )
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")

    def locate(self) -> None:
        """Let tensors that stay in their files say where these are from the root of the file system."""
        for tensor, mapped in self._left:
            tensor.ClearField("external_data")
            for key, value in (("location", mapped.location), ("offset", mapped.offset), ("length", mapped.nbytes)):
                tensor.external_data.add(key=key, value=str(value))

    def _find(self, tensor: onnx.TensorProto) -> tuple[Path, int, int]:
        """The file of an external tensor, and its range in there."""
        entry = {e.key: e.value for e in tensor.external_data}
        location = entry.get("location", "")
        what = f"{self.origin}: tensor {tensor.name!r}"
        if self.folder is None:
            raise ModelError(
                f"{what} lies in a file, {location!r}, but the model was not given as one", hint="pass the model's path"
            )
        path = _contained(self.folder, location, what)
        needed = _needed_bytes(tensor, what)
        try:
            offset, length = int(entry.get("offset", 0)), int(entry.get("length", needed))
        except ValueError:
            raise ModelError(f"{what} has a damaged offset or length") from None
        available = path.stat().st_size
        if offset < 0 or length != needed or offset + needed > available:
            raise ModelError(
                f"{what} of shape {list(tensor.dims)} needs {needed} bytes, the model says {length} at {offset} of "
                f"{location!r}, which has {available}"
            )
        return path, offset, needed


def key_of(tensor: ir.ExternalTensor) -> Key:
    """What tells external tensors apart."""
    return str(tensor.location), tensor.offset or 0, tensor.dtype.value, tuple(tensor.shape.numpy())


def _contained(folder: Path, location: str, what: str) -> Path:
    """The regular file at ``location`` below ``folder``, reached without any link."""
    outside = ModelError(
        f"{what} points outside the model's folder, or to no regular file: {location!r}",
        hint="external data must be a regular file below the model's folder, not a link",
    )
    try:
        root = folder.resolve()
        path = root / location
        if not location or Path(location).is_absolute() or ".." in Path(location).parts or path.resolve() != path:
            raise outside
        if not path.exists():
            raise MissingFileError(
                f"{what}: its external data {location!r} is missing", hint="keep the model and its data in one folder"
            )
        if not path.is_file():
            raise outside
    except (OSError, RuntimeError, ValueError) as problem:  # a NUL byte, a loop of links, a file taken for a folder
        if isinstance(problem, MissingFileError | ModelError):
            raise
        raise outside from None
    return path


def _needed_bytes(tensor: onnx.TensorProto, what: str) -> int:
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (TypeError, ValueError):
        raise ModelError(f"{what} has external data of a type that cannot have any") from None
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{what} has the negative shape {list(tensor.dims)}")
    return int(-(-math.prod(tensor.dims) * bits // 8))


def _with_usable_versions(proto: onnx.ModelProto, origin: str) -> onnx.ModelProto:
    """The model at an opset that has per-axis quantization and a file version that onnxruntime reads."""
    opset = opset_of(proto)
    if not opset:
        others = ", ".join(sorted({entry.domain for entry in proto.opset_import if entry.domain}))
        raise ModelError(
            f"{origin} imports no version of the standard operators" + (f", only of {others}" if others else ""),
            hint="if it has any of them, export it again with an opset; if not (trees, say), nothing can be quantized",
        )
    if opset > MAX_OPSET:
        raise ModelError(
            f"{origin} uses opset {opset}, onnxruntime runs at most {MAX_OPSET}",
            hint=f"export it with opset {MAX_OPSET} or lower",
        )
    if opset < MIN_OPSET:
        check(proto, origin)
        try:
            proto = onnx.version_converter.convert_version(proto, MIN_OPSET)
        except Exception as problem:
            raise ModelError(
                f"{origin} uses opset {opset}, quantization needs {MIN_OPSET} and the conversion failed: "
                f"{first_line(problem)}",
                hint=f"export it with opset {MIN_OPSET} or newer",
            ) from problem
    proto.ir_version = min(max(proto.ir_version, _IR_OF_MIN_OPSET), MAX_IR_VERSION)
    return proto


def _densify(graph: onnx.GraphProto, origin: str) -> None:
    """Make plain initializers of sparse ones, which no op of ours and few of runtimes' know, here and in bodies.

    Raises:
        ModelError: one is too large for that, or lies in another file.
    """
    for sparse in graph.sparse_initializer:
        shape, name = tuple(sparse.dims), sparse.values.name
        if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
            raise ModelError(
                f"{origin}: sparse initializer {name!r} lies in another file", hint="store it as a dense one"
            )
        values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
        if math.prod(shape) * values.itemsize > _PROTOBUF_LIMIT:
            raise ModelError(f"{origin}: sparse initializer {name!r} of shape {list(shape)} takes more than 2 GiB")
        dense = np.zeros(shape, values.dtype)
        if indices.ndim == 1:  # places in the flat array, else one row of coordinates for each value
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        graph.initializer.append(onnx.numpy_helper.from_array(dense, name))
    del graph.sparse_initializer[:]
    for body in bodies(graph.node):
        _densify(body, origin)

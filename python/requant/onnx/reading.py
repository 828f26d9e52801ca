"""Reading an ONNX file with care.

The order matters, because a 50-byte model can kill ``onnx.shape_inference`` and a 243-byte one onnxruntime: parse,
our own checks, ``onnx.checker``, and only then anything else. External data is taken into the model here, from
regular files below the model's folder and nowhere else, so that everyone behind sees one self-contained model.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from requant.errors import MissingFileError, ModelError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    #: What a model may be given as.
    Model = str | Path | bytes | onnx.ModelProto

#: Newest operator set and file format that onnxruntime 1.31 loads.
MAX_OPSET = 26
MAX_IR_VERSION = 13
#: Per-axis QuantizeLinear and DequantizeLinear came with opset 13.
MIN_OPSET = 13
_IR_OF_MIN_OPSET = 7
_PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A checked model: its proto without external data, what to call it, the files it lies in, and their bytes."""

    proto: onnx.ModelProto
    origin: str
    files: tuple[Path, ...]
    size: int
    digest: str


def read_model(source: Model) -> ModelFile:
    """Read and check a model.

    Raises:
        MissingFileError: the file or its external data does not exist.
        ModelError: it is empty, not ONNX, invalid, newer than the runtime accepts, or reaches outside its folder.
        TypeError: ``source`` is none of the things a model may be given as.
    """
    proto, path, origin, size = _parse(source)
    external = _take_in_external_data(proto, None if path is None else path.parent, origin)
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    proto = _with_usable_versions(proto, origin)
    _check(proto, origin)
    files = (() if path is None else (path,)) + tuple(external)
    return ModelFile(proto, origin, files, size + sum(external.values()), digest)


def _parse(source: Model) -> tuple[onnx.ModelProto, Path | None, str, int]:
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return copy, None, "model", source.ByteSize()
    path, origin = None, "model"
    if isinstance(source, str | Path):
        path, origin = Path(source).absolute(), str(source)
        data = _read_bytes(path, origin)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    else:
        raise TypeError(f"expected a model as a path, bytes or ModelProto, got {type(source).__name__}")
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
    return proto, path, origin, len(data)


def _read_bytes(path: Path, origin: str) -> bytes:
    if path.is_dir():
        raise ModelError(f"{origin} is a directory, expected an .onnx file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"model {origin} does not exist") from None
    except OSError as problem:
        raise ModelError(f"{origin} cannot be read: {problem.strerror}") from problem


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for body in attribute.graphs:
                yield from _tensors(body)


def _take_in_external_data(proto: onnx.ModelProto, folder: Path | None, origin: str) -> dict[Path, int]:
    """Read every external tensor into the proto; returns the files and how many bytes of each were read."""
    found: dict[Path, int] = {}
    bodies = [proto.graph, *(onnx.GraphProto(node=f.node) for f in proto.functions)]
    for tensor in (t for body in bodies for t in _tensors(body)):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entry = {e.key: e.value for e in tensor.external_data}
        location = entry.get("location", "")
        what = f"{origin}: tensor {tensor.name!r}"
        if folder is None:
            raise ModelError(
                f"{what} lies in a file, {location!r}, but the model was not given as one", hint="pass the model's path"
            )
        path = _contained(folder, location, what)
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
        if sum(found.values()) + needed > _PROTOBUF_LIMIT:
            raise ModelError(f"{origin} exceeds 2 GiB", hint="models of this size are not supported yet")
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(needed)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        found[path] = found.get(path, 0) + needed
    return found


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
            raise MissingFileError(f"{what}: its external data {location!r} is missing")
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
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is None:
        raise ModelError(f"{origin} imports no version of the standard operators", hint="export it again with an opset")
    if opset > MAX_OPSET:
        raise ModelError(
            f"{origin} uses opset {opset}, onnxruntime runs at most {MAX_OPSET}",
            hint=f"export it with opset {MAX_OPSET} or lower",
        )
    if opset < MIN_OPSET:
        _check(proto, origin)
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


def _check(proto: onnx.ModelProto, origin: str) -> None:
    """Run ``onnx.checker``; outputs of unknown shape, which it rejects and runtimes take, are kept from it."""
    shapeless = [o for o in proto.graph.output if not o.type.tensor_type.HasField("shape")]
    if shapeless:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        for output in shapeless:
            copy.graph.output.remove(output)
        proto = copy
    try:
        onnx.checker.check_model(proto)
    except Exception as problem:  # ValidationError, but also UnicodeDecodeError and whatever else a mutant provokes
        raise ModelError(f"{origin} is not a valid ONNX model: {first_line(problem)}") from problem

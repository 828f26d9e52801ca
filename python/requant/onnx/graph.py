"""An ONNX model in memory: read with care, looked at by name, written whole.

Reading order, because a 50-byte model can kill ``onnx.shape_inference`` and a 243-byte one onnxruntime: parse, own
checks, ``onnx.checker``, and only then shape inference and runtimes.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError
from onnx.checker import ValidationError

from requant.data.spec import InputSpec
from requant.errors import MissingFileError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    #: What a model may be given as.
    Model = str | Path | bytes | onnx.ModelProto

logger = logging.getLogger(__name__)

#: Newest operator set and file format that onnxruntime 1.31 loads.
MAX_OPSET = 26
MAX_IR_VERSION = 13
#: Per-axis QuantizeLinear and DequantizeLinear came with opset 13.
MIN_OPSET = 13
_IR_OF_MIN_OPSET = 7
_PROTOBUF_LIMIT = 2**31 - 1

_QUANTIZED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QLinearAdd",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One model output: its name, numpy dtype (None if unknown) and shape (None if unknown)."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None


class Graph:
    """A model that can be looked at and rewritten; ``digest`` names the file it came from."""

    def __init__(self, model: ir.Model, *, digest: str, size: int, origin: str) -> None:
        self.model = model
        self.digest = digest
        self.size = size
        self.origin = origin

    @classmethod
    def load(cls, source: Model) -> Graph:
        """Read a model from a file, its bytes, or a ModelProto.

        Raises:
            MissingFileError: the file does not exist.
            ModelError: it is empty, not ONNX, invalid, or newer than the runtime accepts.
        """
        proto, base_dir, origin, size = _parse(source)
        _check_versions(proto, origin)
        _check(proto, origin)
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
        try:
            model = ir.serde.deserialize_model(proto)
        except Exception as problem:
            raise ModelError(f"{origin}: the graph cannot be read: {_first_line(problem)}") from problem
        if base_dir is not None:
            ir.external_data.set_base_dir(model.graph, base_dir)
        return cls(model, digest=digest, size=size, origin=origin)

    def copy(self) -> Graph:
        """An independent copy; tensor data is shared, never written in place."""
        return Graph(self.model.clone(), digest=self.digest, size=self.size, origin=self.origin)

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes of the main graph in execution order."""
        return list(self.model.graph)

    def all_nodes(self) -> Iterator[ir.Node]:
        """Every node, those of control-flow bodies included."""
        return self.model.graph.all_nodes()

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.model.opset_imports.get("", MIN_OPSET)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The inputs a caller feeds."""
        return tuple(
            InputSpec(_name(value), _numpy_dtype(value), self._input_shape(value))
            for value in self.model.graph.inputs
            if not value.is_initializer()
        )

    def _input_shape(self, value: ir.Value) -> tuple[int | str | None, ...]:
        shape = _shape(value)
        if shape is None:
            raise ModelError(
                f"input {value.name!r} of {self.origin} has no shape", hint="export the model with the rank of its inputs"
            )
        return shape

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The outputs a caller gets."""
        return tuple(
            OutputSpec(_name(v), None if v.dtype is None else v.dtype.numpy(), _shape(v))
            for v in self.model.graph.outputs
        )

    def quantized_ops(self) -> list[str]:
        """The op types present that mean the model is quantized already."""
        return sorted({node.op_type for node in self.all_nodes()} & _QUANTIZED_OPS)

    def to_bytes(self, fetch: Iterable[str] = ()) -> bytes:
        """The model as a file's bytes, with the tensors named in ``fetch`` as its outputs instead of its own.

        Shapes of inner tensors are left out: every reader infers them, and they are a tenth of a small model.

        Raises:
            ModelError: a tensor does not exist, or the model exceeds the 2 GiB of one protobuf message.
        """
        proto = ir.serde.serialize_model(self.model)
        _inline_external_data(proto, self.model)
        del proto.graph.value_info[:]
        wanted = list(fetch)
        if wanted:
            known = {name for node in proto.graph.node for name in node.output} | {i.name for i in proto.graph.input}
            missing = [name for name in wanted if name not in known]
            if missing:
                raise ModelError(f"tensor {missing[0]!r} is not in the graph of {self.origin}")
            del proto.graph.output[:]
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        try:
            return bytes(proto.SerializeToString(deterministic=True))
        except (EncodeError, ValueError) as problem:
            raise ModelError(
                f"{self.origin}: the model does not fit into one 2 GiB file",
                hint="models of this size are not supported yet",
            ) from problem


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The array behind an initializer or Constant node that no caller can override, else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or the operator's default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, or None if unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def _parse(source: Model) -> tuple[onnx.ModelProto, str | None, str, int]:
    if isinstance(source, onnx.ModelProto):
        return source, None, "model", source.ByteSize()
    base_dir, origin = None, "model"
    if isinstance(source, (str, Path)):
        path = Path(source).absolute()
        origin = str(source)
        if path.is_dir():
            raise ModelError(f"{origin} is a directory, expected an .onnx file")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise MissingFileError(f"model {origin} does not exist") from None
        except OSError as problem:
            raise ModelError(f"{origin} cannot be read: {problem.strerror}") from problem
        base_dir = str(path.parent)
    else:
        data = bytes(source)
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
    size = len(data) + _check_external_data(proto, base_dir, origin)
    return proto, base_dir, origin, size


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


def _check_external_data(proto: onnx.ModelProto, base_dir: str | None, origin: str) -> int:
    """Refuse external data outside the model's folder or outside its file; return its size in bytes."""
    total = 0
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entry = {e.key: e.value for e in tensor.external_data}
        location = entry.get("location", "")
        if base_dir is None:
            raise ModelError(
                f"tensor {tensor.name!r} lies in the file {location!r}, but the model was given as bytes",
                hint="pass the model's path",
            )
        root = Path(base_dir).resolve()
        path = root / location
        if Path(location).is_absolute() or not location or not path.resolve().is_relative_to(root) or path.is_symlink():
            raise ModelError(
                f"{origin}: tensor {tensor.name!r} points outside the model's folder: {location!r}",
                hint="external data must be a regular file below the model's folder",
            )
        try:
            offset, length = int(entry.get("offset", 0)), int(entry.get("length", 0))
            available = path.stat().st_size
        except FileNotFoundError:
            raise MissingFileError(
                f"{origin}: external data {location!r} of tensor {tensor.name!r} is missing"
            ) from None
        except ValueError:
            raise ModelError(
                f"{origin}: external data of tensor {tensor.name!r} has a damaged offset or length"
            ) from None
        if offset < 0 or length < 0 or offset + length > available:
            raise ModelError(
                f"{origin}: tensor {tensor.name!r} needs bytes {offset}..{offset + length} of {location!r}, "
                f"which has {available}"
            )
        total += length
    return total


def _check_versions(proto: onnx.ModelProto, origin: str) -> None:
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is None:
        raise ModelError(f"{origin} imports no version of the standard operators", hint="export it again with an opset")
    if opset > MAX_OPSET:
        raise ModelError(
            f"{origin} uses opset {opset}, onnxruntime runs at most {MAX_OPSET}",
            hint=f"export it with opset {MAX_OPSET} or lower",
        )
    if opset < MIN_OPSET:
        try:
            converted = onnx.version_converter.convert_version(proto, MIN_OPSET)
        except Exception as problem:
            raise ModelError(
                f"{origin} uses opset {opset}, quantization needs {MIN_OPSET} and the conversion failed: "
                f"{_first_line(problem)}",
                hint=f"export it with opset {MIN_OPSET} or newer",
            ) from problem
        proto.CopyFrom(converted)
    proto.ir_version = min(max(proto.ir_version, _IR_OF_MIN_OPSET), MAX_IR_VERSION)


def _check(proto: onnx.ModelProto, origin: str) -> None:
    """Run ``onnx.checker``, on a copy without what it rejects though runtimes take it.

    That is: outputs of unknown shape, and external data (checked above; the checker looks for it in the working
    directory).
    """
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(proto.graph))
    shapeless = [o for o in proto.graph.output if not o.type.tensor_type.HasField("shape")]
    if external or shapeless:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        for output in shapeless:
            copy.graph.output.remove(output)
        for tensor in _tensors(copy.graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                name, dtype = tensor.name, tensor.data_type
                tensor.Clear()
                tensor.name, tensor.data_type = name, dtype
                tensor.dims.append(0)
        proto = copy
    try:
        onnx.checker.check_model(proto)
    except ValidationError as problem:
        raise ModelError(f"{origin} is not a valid ONNX model: {_first_line(problem)}") from problem


def _inline_external_data(proto: onnx.ModelProto, model: ir.Model) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            const = model.graph.initializers[tensor.name].const_value
            if const is None:
                continue
            if const.nbytes > _PROTOBUF_LIMIT:
                raise ModelError(f"tensor {tensor.name!r} exceeds 2 GiB")
            tensor.raw_data = const.tobytes()
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT


def _name(value: ir.Value) -> str:
    return value.name or ""


def _numpy_dtype(value: ir.Value) -> np.dtype[Any]:
    return np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()


def _shape(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _first_line(problem: Exception) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(problem).__name__

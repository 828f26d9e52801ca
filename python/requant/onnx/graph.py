"""An ONNX model in memory: looked at by name, copied, written whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from requant.data.spec import InputSpec
from requant.errors import ModelError, first_line
from requant.onnx.bodies import expose
from requant.onnx.mapped import MappedTensor, Scratch, tensor_of
from requant.onnx.names import name_of
from requant.onnx.nodes import check_order, constant, initializers
from requant.onnx.reading import ModelFile, key_of, read_model
from requant.onnx.saving import self_contained
from requant.serialized import SerializedModel
from requant.uncollected import uncollected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from requant.onnx.reading import Model

_QUANTIZED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
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

_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training", "com.microsoft"})
#: Models with more external data than this are not held in memory, and tensors of so many bytes made for them neither.
IN_MEMORY = 1 << 29
_SPILLED = 1 << 20


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One model output: its name, numpy dtype (None if unknown) and shape (None if unknown)."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None


class Graph:
    """A model that can be looked at and rewritten, and the file it came from."""

    def __init__(self, model: ir.Model, file: ModelFile, scratch: Scratch | None = None) -> None:
        self.model = model
        self.file = file
        self.scratch = scratch

    @classmethod
    def load(cls, source: Model) -> Graph:
        """Read a model from a file, its bytes, a ModelProto or an onnx_ir.Model; errors are those of ``read_model``."""
        file = read_model(source)
        outside = sum(tensor.nbytes for tensor in file.mapped.values())
        try:
            model = ir.serde.deserialize_model(without_maps(file.proto))
            for value in initializers(model):
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = file.mapped[key_of(value.const_value)]
            check_order(model)
            return cls(model, file, Scratch() if outside > IN_MEMORY else None)
        except Exception as problem:
            raise ModelError(f"{file.origin}: the graph cannot be read: {first_line(problem)}") from problem

    def copy(self) -> Graph:
        """An independent copy; tensor data is shared, never written in place."""
        return Graph(self.model.clone(), self.file, self.scratch)

    @property
    def origin(self) -> str:
        """What to call the model: its path as given, or ``model``."""
        return self.file.origin

    @property
    def digest(self) -> str:
        """SHA-256 of the model with its external data."""
        return self.file.digest

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return self.file.size

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
        return self.model.opset_imports[""]

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The inputs a caller feeds."""
        return tuple(
            InputSpec(name_of(value), _numpy_dtype(value), self._input_shape(value))
            for value in self.model.graph.inputs
            if not value.is_initializer()
        )

    def _input_shape(self, value: ir.Value) -> tuple[int | str | None, ...]:
        if isinstance(value.type, ir.SequenceType | ir.OptionalType):
            raise ModelError(
                f"input {value.name!r} of {self.origin} is a sequence or optional, expected a tensor",
                hint="export the model with tensors as inputs",
            )
        shape = _shape(value)
        if shape is None:
            raise ModelError(
                f"input {value.name!r} of {self.origin} has no shape",
                hint="export the model with the rank of its inputs",
            )
        return shape

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The outputs a caller gets."""
        return tuple(
            OutputSpec(name_of(v), None if v.dtype is None else v.dtype.numpy(), _shape(v))
            for v in self.model.graph.outputs
        )

    def holds_half(self) -> bool:
        """Whether the file stores constants in half precision."""
        half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
        return any(tensor.data_type in half for tensor in self.file.proto.graph.initializer)

    def is_rounded(self) -> bool:
        """Whether constants that are doubles in the file are none here."""
        stored = any(tensor.data_type == onnx.TensorProto.DOUBLE for tensor in self.file.proto.graph.initializer)
        return stored and all(value.dtype is not ir.DataType.DOUBLE for value in initializers(self.model))

    def retyped(self) -> list[str]:
        """Names of the inputs and outputs that have another type than in the file."""
        proto = self.file.proto.graph
        declared = {value.name: value.type.tensor_type.elem_type for value in (*proto.input, *proto.output)}
        interface = (*self.model.graph.inputs, *self.model.graph.outputs)
        return [name_of(v) for v in interface if v.dtype is not None and declared.get(name_of(v), v.dtype) != v.dtype]

    def foreign_ops(self) -> tuple[str, ...]:
        """The ops that neither ONNX, onnxruntime nor the model itself defines: runtimes take them from libraries."""
        foreign = {
            f"{node.domain}:{node.op_type}": None
            for node in self.all_nodes()
            if node.domain not in _DOMAINS and node.op_identifier() not in self.model.functions
        }
        return tuple(foreign)

    def quantized_ops(self) -> list[str]:
        """The op types present that mean the model is quantized already."""
        found = {node.op_type for node in self.all_nodes()} & _QUANTIZED_OPS
        if any(_widens_weights(node) for node in self.all_nodes()):
            found.add("Cast of int8 weights")
        return sorted(found)

    def tensor(self, array: np.ndarray[Any, Any], name: str) -> ir.TensorProtocol:
        """A tensor of ``array``, in a file where the model is too large for memory."""
        return tensor_of(array, name, self.scratch)

    def spill(self) -> None:
        """Compute what waits for it; where the model is too large for memory, put what is new and large into a file."""
        for value in initializers(self.model):
            tensor = value.const_value
            waits = isinstance(tensor, ir.LazyTensor)
            large = self.scratch is not None and isinstance(tensor, ir.Tensor) and tensor.nbytes >= _SPILLED
            if tensor is not None and (waits or large):
                value.const_value = self.tensor(tensor.numpy(), name_of(value))

    @uncollected()
    def serialize(self, fetch: Iterable[str] = ()) -> SerializedModel:
        """The model as it can be run, with the tensors named in ``fetch`` as its outputs instead of its own.

        Tensors in files stay there. Shapes of inner tensors are left out: every reader infers them, and they are a
        tenth of a small model.

        Raises:
            ModelError: A tensor does not exist, or what is not in files exceeds the 2 GiB of one protobuf message.
        """
        wanted, model = list(fetch), self.model
        main = {value.name for node in model.graph for value in node.outputs} | {v.name for v in model.graph.inputs}
        if not main.issuperset(wanted):
            model = model.clone()
            seen = expose(model, set(wanted) - main)
            wanted = [seen.get(name, name) for name in wanted]
        proto = ir.serde.serialize_model(model)
        del proto.graph.value_info[:]
        declared = {output.name: output for output in self.file.proto.graph.output}
        for output in proto.graph.output:
            if output.name in declared and _holds_map(declared[output.name].type):
                output.type.CopyFrom(declared[output.name].type)
        if wanted:
            known = {name for node in proto.graph.node for name in node.output} | {i.name for i in proto.graph.input}
            missing = [name for name in wanted if name not in known]
            if missing:
                raise ModelError(f"tensor {missing[0]!r} is not in the graph of {self.origin}")
            del proto.graph.output[:]
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        try:
            data = bytes(proto.SerializeToString(deterministic=True))
        except (EncodeError, ValueError) as problem:
            raise ModelError(
                f"{self.origin}: the model does not fit into one 2 GiB file",
                hint="save it with external data, which may be of any size",
            ) from problem
        outside = [v.const_value for v in initializers(self.model) if isinstance(v.const_value, MappedTensor)]
        folders = {Path(tensor.base_dir) for tensor in outside}
        if len(folders) > 1:
            raise ModelError(f"{self.origin} lies on several drives: {', '.join(map(str, sorted(folders)))}")
        folder = next(iter(folders), None)
        return SerializedModel(data, folder, sum(tensor.nbytes for tensor in outside), tuple(outside))

    def to_bytes(self, fetch: Iterable[str] = ()) -> bytes:
        """As ``serialize``, with everything inside: a file's bytes.

        Raises:
            ModelError: A tensor does not exist, or the model exceeds the 2 GiB of one protobuf message.
        """
        return self_contained(self.serialize(fetch))


def without_maps(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` where no output is said to hold maps, as those of ZipMap do: their types cannot be represented."""
    if not any(_holds_map(output.type) for output in proto.graph.output):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for output in copy.graph.output:
        if _holds_map(output.type):
            output.ClearField("type")
    return copy


def _holds_map(kind: onnx.TypeProto) -> bool:
    while kind.HasField("sequence_type"):
        kind = kind.sequence_type.elem_type
    return bool(kind.HasField("map_type"))


def _widens_weights(node: ir.Node) -> bool:
    """Whether a node turns stored int8 weights, or rows of a table of them, into reals."""
    if node.op_type != "Cast" or node.attributes["to"].as_int() != ir.DataType.FLOAT:
        return False
    value = node.inputs[0]
    lookup = None if value is None else value.producer()
    array = constant(lookup.inputs[0] if lookup is not None and lookup.op_type == "Gather" else value)
    return array is not None and array.dtype == np.int8 and array.ndim > 1


def _numpy_dtype(value: ir.Value) -> np.dtype[Any]:
    return np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()


def _shape(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)

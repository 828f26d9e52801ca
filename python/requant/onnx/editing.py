"""Integer inputs and outputs for a quantized model.

An input becomes integer ``q`` and its readers get ``((q - zero_point) * scale - mean) / std``:

    q -> DequantizeLinear [-> Sub mean] [-> Div std] -> readers

A reader that is a QuantizeLinear which gives every ``q`` back is no longer needed: what it gave is ``q`` itself. An
output is made integer the other way round: by a QuantizeLinear behind it, or, where it comes from a DequantizeLinear
that this would undo, by giving out what that one reads. Ops that only change the layout are looked through.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.data.spec import listed
from requant.errors import ConfigError, ModelError, closest
from requant.onnx.boundary import DTYPES, OPSET_OF_16_BITS, Boundary, make_params
from requant.onnx.names import free_name, name_of, taken_names
from requant.onnx.nodes import add_initializer, constant
from requant.onnx.ops import row_of
from requant.onnx.passes.cleanup import drop_unused
from requant.types import QuantType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from requant.onnx.boundary import Kind, Wanted
    from requant.onnx.graph import Graph
    from requant.types import QuantParams

#: Ops that leave each value as it is, whatever its type.
_LAYOUT = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
#: Ops that look at the shape only.
_MEASURES = frozenset({"Shape", "Size"})
#: The domains in which QuantizeLinear and DequantizeLinear mean the same.
_DOMAINS = frozenset({"", "com.microsoft"})


def integer_input(graph: Graph, name: str, wanted: Wanted) -> tuple[Graph, Boundary]:
    """A copy of ``graph`` that takes integers at input ``name``, and what they stand for.

    Raises:
        ConfigError: there is no such input, it is no float32 tensor, or nothing says what the integers stand for.
    """
    edit = _Edit(graph, "input", name, wanted)
    quantizers, only = _quantizers(edit.value)
    params = wanted.params() or edit.shared(_params(node) for node in quantizers)
    axis = _channel_axis(edit, wanted)
    boundary = edit.boundary(params, only)
    boundary = replace(boundary, mean=wanted.mean or (0.0,), std=wanted.std or (1.0,), axis=axis)
    edit.value.type = _type(boundary)
    readers = edit.value.uses()
    floats = [(node, index) for node, index in readers if not _takes_integers(node, index, boundary)]
    for node, index in readers:
        if (node, index) not in floats:
            edit.hand_on(node, edit.value)
    if floats:
        reals = edit.dequantized(boundary, apart=not quantizers)
        for node, index in floats:
            node.replace_input_with(index, reals)
    return edit.finish(boundary)


def integer_output(graph: Graph, name: str, wanted: Wanted) -> tuple[Graph, Boundary]:
    """A copy of ``graph`` that gives integers at output ``name``, and what they stand for.

    Raises:
        ConfigError: there is no such output, it is no float32 tensor, or nothing says what the integers stand for.
    """
    edit = _Edit(graph, "output", name, wanted)
    moves, source = _dequantizer(edit.value)
    found = None if source is None else _params(source)
    params = wanted.params() or _of_fixed_range(edit.value, wanted) or edit.shared([found])
    boundary = edit.boundary(params, exact=True)
    undone = found is not None and edit.boundary(found, exact=True).survives(boundary.params)
    boundary = replace(boundary, exact=undone or (found is not None and wanted.params() is None))
    if undone and source is not None and (not moves or _read_by_nothing_else(source, moves)):
        edit.give_out(source, moves, boundary)
    else:
        edit.quantize(boundary)
    return edit.finish(boundary)


class _Edit:
    """One edit of a copy of a graph."""

    def __init__(self, graph: Graph, kind: Kind, name: str, wanted: Wanted) -> None:
        self.copy = graph.copy()
        self.graph = self.copy.model.graph
        self.kind, self.name, self.wanted = kind, name, wanted
        self.where = f"{kind} {name!r} of {graph.origin}"
        self.value = self._find()
        self.taken = taken_names(self.graph)
        self.removed: list[str] = []
        self.added: list[str] = []

    def _find(self) -> ir.Value:
        """The float32 tensor that is to become integer."""
        fed = [value for value in self.graph.inputs if not value.is_initializer()]
        here, there = (fed, self.graph.outputs) if self.kind == "input" else (self.graph.outputs, fed)
        value = next((v for v in here if v.name == self.name), None)
        if value is None:
            names = [name_of(v) for v in here]
            other = "output" if self.kind == "input" else "input"
            hint = f"it is an {other}" if any(v.name == self.name for v in there) else None
            raise ConfigError(
                f"{self.copy.origin} has no {self.kind} {self.name!r}{closest(self.name, names)}",
                hint=hint or f"its {self.kind}s are {listed(names)}",
            )
        if value.is_graph_input() and value.is_graph_output():
            raise ConfigError(f"{self.where} is handed through from input to output", hint="leave it float")
        if not isinstance(value.type, ir.TensorType) or value.dtype is not ir.DataType.FLOAT:
            kind = str(value.dtype or "untyped").lower()
            already = " already" if kind in [each.value for each in DTYPES] else ""
            raise ConfigError(f"{self.where} is {kind}{already}, expected float32", hint="leave it out")
        return value

    def shared(self, found: Iterable[QuantParams | None]) -> QuantParams:
        """The one meaning in ``found``, in the type that is wanted."""
        known = dict.fromkeys((float(p.scale), int(p.zero_point), p.scheme.dtype) for p in found if p is not None)
        if len(known) != 1:
            ways = "; ".join(f"{dtype}, scale {scale:.6g}, zero point {zero}" for scale, zero, dtype in known)
            reason = (
                f"is quantized in {len(known)} ways ({ways})" if known else "is float: no scale follows from the model"
            )
            pixels = "scale and zero_point (scale=0.00392157 for pixels from 0 to 1), or mean and std"
            hint = f"give {pixels}" if self.kind == "input" else "give scale and zero_point, or a range"
            raise ConfigError(f"{self.where} {reason}", hint=hint)
        ((scale, zero_point, dtype),) = known
        wanted = self.wanted.dtype
        if dtype.bits != wanted.bits:
            raise ConfigError(
                f"{self.where} is quantized to {dtype}, whose integers {wanted} cannot take over",
                hint=f"choose {' or '.join(t for t in DTYPES if t.bits == dtype.bits)}, or give a scale and zero_point",
            )
        return make_params(wanted, scale, zero_point + wanted.min - dtype.min)

    def boundary(self, params: QuantParams, exact: bool) -> Boundary:
        """``params`` as the meaning of this input or output."""
        scale, zero_point = float(params.scale), int(params.zero_point)
        return Boundary(self.kind, self.name, params.scheme.dtype, scale, zero_point, exact=exact)

    def dequantized(self, boundary: Boundary, *, apart: bool) -> ir.Value:
        """The reals that the integer input stands for; ``apart`` from integers, where they are to stay reals.

        There the same scale stands for each index of an axis: behind one scale onnxruntime would quantize a float layer
        itself (see ``Target.requantizes``).
        """
        shape = self.value.shape
        parameters = self._parameters(boundary)
        sizes = [(i, size) for i, size in enumerate(shape or ()) if i > 0 and isinstance(size, int) and size > 1]
        attributes: dict[str, int] = {}
        if apart and sizes:
            axis, size = sizes[0]
            parameters = tuple(np.repeat(array, size) for array in parameters)
            attributes = {"axis": axis}
        steps: list[tuple[str, tuple[NDArray[Any], ...]]] = [("DequantizeLinear", parameters)]
        rank = 1 if shape is None else len(shape)
        if any(boundary.mean):
            steps.append(("Sub", (boundary.along_axis(boundary.mean, rank),)))
        if set(boundary.std) != {1.0}:
            steps.append(("Div", (boundary.along_axis(boundary.std, rank),)))
        current: ir.Value = self.value
        nodes = []
        for op_type, constants in steps:
            node = self._node(
                op_type,
                current,
                constants,
                ir.TensorType(ir.DataType.FLOAT),
                free_name(f"{self.name}_float", self.taken),
                attributes=attributes if op_type == "DequantizeLinear" else {},
            )
            nodes.append(node)
            current = node.outputs[0]
        self.graph.insert_before(self.graph[0], nodes)
        return current

    def quantize(self, boundary: Boundary) -> None:
        """Put a QuantizeLinear behind the float output."""
        self.value.name = free_name(f"{self.name}_float", self.taken)
        node = self._node("QuantizeLinear", self.value, self._parameters(boundary), _type(boundary), self.name)
        self.graph.append(node)
        self._put_out(node.outputs[0])

    def give_out(self, source: ir.Node, moves: list[ir.Node], boundary: Boundary) -> None:
        """Give out the integers that DequantizeLinear ``source`` reads, moved by ``moves``."""
        integers = source.inputs[0]
        assert integers is not None
        kind = _type(boundary)
        if moves:
            moves[-1].replace_input_with(0, integers)
            for node in moves:
                node.outputs[0].type = kind
        else:
            shape = self.value.shape
            self.value.name = free_name(f"{self.name}_float", self.taken)
            if integers.is_graph_input() or integers.is_graph_output() or integers.is_initializer():
                node = self._node("Identity", integers, (), kind, self.name)
                self.graph.append(node)
                integers = node.outputs[0]
            integers.name, integers.type, integers.shape = self.name, kind, shape
            self._put_out(integers)
        if not source.outputs[0].uses():
            self._remove(source)

    def hand_on(self, node: ir.Node, integers: ir.Value) -> None:
        """Let ``node`` take ``integers``: a QuantizeLinear goes, a layout op hands them on to its own readers."""
        result = node.outputs[0]
        if node.op_type in _MEASURES:
            return
        if node.op_type == "QuantizeLinear":
            ir.convenience.replace_all_uses_with(result, integers)
            self._remove(node)
            return
        result.type = integers.type
        for reader, _ in result.uses():
            self.hand_on(reader, result)

    def finish(self, boundary: Boundary) -> tuple[Graph, Boundary]:
        """The edited graph, which says itself what the integers stand for."""
        key, value = boundary.metadata()
        self.copy.model.metadata_props[key] = value
        drop_unused(self.copy.model)
        return self.copy, replace(boundary, removed=tuple(self.removed), added=tuple(self.added))

    def _put_out(self, value: ir.Value) -> None:
        for index, output in enumerate(self.graph.outputs):
            if output is self.value:
                self.graph.outputs[index] = value

    def _remove(self, node: ir.Node) -> None:
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        self.removed.append(node.op_type)

    def _parameters(self, boundary: Boundary) -> tuple[NDArray[Any], ...]:
        if boundary.dtype.bits == 16 and self.copy.opset < OPSET_OF_16_BITS:
            raise ModelError(
                f"{self.where} cannot become {boundary.dtype}: that needs opset {OPSET_OF_16_BITS}, "
                f"the model has {self.copy.opset}",
                hint="choose uint8 or int8",
            )
        params = boundary.params
        return params.scale, params.zero_point

    def _node(
        self,
        op_type: str,
        value: ir.Value,
        constants: tuple[NDArray[Any], ...],
        kind: ir.TensorType,
        output: str,
        *,
        attributes: Mapping[str, int] = MappingProxyType({}),
    ) -> ir.Node:
        result = ir.Value(name=output, shape=self.value.shape, type=kind)
        inputs = [value, *(self._initializer(array) for array in constants)]
        self.added.append(op_type)
        name = free_name(f"{self.name}_{op_type}", self.taken)
        return ir.node(op_type, inputs, dict(attributes), outputs=[result], name=name)

    def _initializer(self, array: NDArray[Any]) -> ir.Value:
        return add_initializer(self.graph, free_name(f"{self.name}_constant", self.taken), ir.tensor(array))


def _type(boundary: Boundary) -> ir.TensorType:
    return ir.TensorType(ir.DataType[boundary.dtype.upper()])  # a new one: copies of a graph share those they have


def _is(node: ir.Node | None, op_type: str) -> bool:
    return node is not None and node.op_type == op_type and node.domain in _DOMAINS


def _moves(node: ir.Node) -> bool:
    return node.op_type in _LAYOUT and node.domain == ""


def _measures(node: ir.Node) -> bool:
    return node.op_type in _MEASURES and node.domain == ""


def _params(node: ir.Node) -> QuantParams | None:
    """Parameters of a QuantizeLinear or DequantizeLinear; None where they are not one known float32 scale."""
    scale, zero_point = constant(node.inputs[1]), None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero_point = constant(node.inputs[2])
        dtype = None if zero_point is None else zero_point.dtype.name
    else:
        dtype = _implied_dtype(node)
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or dtype not in [t.value for t in DTYPES]:
        return None
    try:
        return make_params(QuantType(dtype), float(scale.item()), 0 if zero_point is None else int(zero_point.item()))
    except ConfigError:  # a subnormal scale: the runtime may do with it what it likes
        return None


def _implied_dtype(node: ir.Node) -> str | None:
    """The integer type where no zero point tells it."""
    if node.op_type == "QuantizeLinear":
        chosen = ir.DataType(node.attributes.get_int("output_dtype", 0))
        return str(chosen).lower() if chosen is not ir.DataType.UNDEFINED else "uint8"
    integers = node.inputs[0]
    assert integers is not None
    if _is(integers.producer(), "QuantizeLinear"):
        return _implied_dtype(integers.producer())  # type: ignore[arg-type]
    return None if integers.dtype is None else str(integers.dtype).lower()


def _quantizers(value: ir.Value) -> tuple[list[ir.Node], bool]:
    """Every QuantizeLinear that ``value`` reaches unchanged, and whether nothing else reads it."""
    found, only = [], not value.is_graph_output()
    for node, index in value.uses():
        if index == 0 and _is(node, "QuantizeLinear"):
            found.append(node)
        elif index == 0 and _moves(node):
            further, alone = _quantizers(node.outputs[0])
            found += further
            only = only and alone
        elif not _measures(node):
            only = False
    return found, only


def _takes_integers(node: ir.Node, index: int, boundary: Boundary) -> bool:
    """Whether ``node`` can read the integers themselves, and all behind it compute what they did."""
    result = node.outputs[0]
    if _measures(node):
        return True
    if index != 0 or result.is_graph_output():
        return False
    if _is(node, "QuantizeLinear"):
        params = _params(node)
        return params is not None and boundary.survives(params)
    return _moves(node) and all(_takes_integers(reader, i, boundary) for reader, i in result.uses())


def _dequantizer(value: ir.Value) -> tuple[list[ir.Node], ir.Node | None]:
    """The DequantizeLinear that ``value`` comes from unchanged, and the layout ops between, last one first."""
    moves = []
    node = value.producer()
    while node is not None and _moves(node) and node.inputs[0] is not None:
        moves.append(node)
        node = node.inputs[0].producer()
    return moves, node if _is(node, "DequantizeLinear") else None


def _read_by_nothing_else(source: ir.Node, moves: list[ir.Node]) -> bool:
    """Whether all between ``source`` and the output, which the last move gives, serves that output alone."""
    last, *before = moves
    inner = [node.outputs[0] for node in (*before, source)]
    return not last.outputs[0].uses() and all(len(v.uses()) == 1 and not v.is_graph_output() for v in inner)


def _of_fixed_range(value: ir.Value, wanted: Wanted) -> QuantParams | None:
    """Parameters for an op whose outputs lie in a range that is always the same, as those of Softmax do."""
    node = value.producer()
    row = None if node is None else row_of(node)
    return None if row is None or row.fixed_range is None else replace(wanted, range=row.fixed_range).params()


def _channel_axis(edit: _Edit, wanted: Wanted) -> int | None:
    """The axis that mean and std have a value each for; None where they have one for all."""
    counts = {len(values) for values in (wanted.mean, wanted.std)} - {0, 1}
    if not counts:
        return None
    shape = edit.value.shape
    dims = [] if shape is None else [d if isinstance(d, int) else None for d in shape]
    axes = [axis for axis in dict.fromkeys((1, len(dims) - 1)) if 0 < axis < len(dims) and {dims[axis]} == counts]
    if len(axes) != 1:
        given = " and ".join(map(str, sorted(counts)))
        raise ConfigError(
            f"mean and std have {given} values, {edit.where} has the shape {list(dims)}",
            hint="give one value, or one for each channel (axis 1, or the last)",
        )
    return axes[0]

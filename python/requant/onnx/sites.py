"""Where the magnitude of channels can move along the graph without changing its function.

A *source* has constants that scale each channel of what it gives: a linear op, the gain and shift of a normalization,
or a product with a vector. When everything that reads its output scales with it, channel by channel, up to linear ops
(the *sinks*), the source's constants may be divided by any positive factor to a channel and the sinks' weights
multiplied by it. Ops that scale with their input: ReLU (``relu(x / s) = relu(x) / s``), pooling, a product with
something else (the gate of SwiGLU); constants added on the way are divided, too.

On request the walk passes gates, too: the product of hard swish, ``x HardSigmoid(x)``, scales with its ``x`` if what
the HardSigmoid reads is multiplied back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from requant.onnx.names import name_of
from requant.onnx.nodes import constant, int_attribute, is_transposed, rank
from requant.onnx.passes.affine import channels_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from requant.onnx.graph import Graph

#: Normalizations over the last axis, and the inputs that hold their gain and shift.
NORMS = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2,),
}
_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SAME = frozenset({"Dropout", "Identity", "LeakyRelu", "Relu"})
_GATE = "HardSigmoid"
_POOLING = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
#: Factors before a gate differ by as many powers of two at most: as integers they fit any type of 8 bits.
FACTOR_BITS = 6


@dataclass(frozen=True, slots=True)
class Sink:
    """A linear op, the tensor it reads, and how many neighbouring inputs make one channel (behind Flatten)."""

    node: str
    op_type: str
    reads: str
    span: int


@dataclass(frozen=True, slots=True)
class Divided:
    """A constant with the channels on ``axis``, counted from the end, ``span`` neighbours to a channel."""

    node: str
    index: int
    axis: int
    span: int


@dataclass(frozen=True, slots=True)
class Site:
    """A source, named after the tensor it gives, and what has to change with it.

    ``weight`` says whether the source is linear, with a weight as input 1; ``divided`` holds the other constants;
    ``path`` names every tensor that is divided, ``gates`` the nodes whose input is to be multiplied back.
    """

    tensor: str
    source: str
    op_type: str
    channels: int
    weight: bool
    divided: tuple[Divided, ...]
    sinks: tuple[Sink, ...]
    path: frozenset[str]
    gates: tuple[str, ...] = ()


def find_sites(graph: Graph, *, gates: bool = False) -> tuple[tuple[Site, ...], dict[str, str]]:
    """The sites of ``graph`` in its order, no sink in two of them, and why each other linear op is the sink of none.

    With ``gates``, a HardSigmoid does not stand in the way of what it is multiplied with.
    """
    sites: list[Site] = []
    taken: set[str] = set()
    blocked: dict[ir.Value, str] = {}
    for node in reversed(graph.nodes):  # a sink belongs to the source that is nearest
        found = _Walk.from_source(node, gates=gates)
        if found is None:
            continue
        names = {sink.node for sink in found.sinks}
        if found.blocked:
            blocked |= dict.fromkeys(found.values, found.blocked)
        elif names and not names & taken:
            sites.append(found.site())
            taken |= names
    reasons = {
        name_of(node): _reason(node.inputs[0], blocked)
        for node in graph.nodes
        if node.domain == "" and node.op_type in _LINEAR and node.name not in taken and _weight(node) is not None
    }
    return tuple(reversed(sites)), reasons


def _reason(value: ir.Value | None, blocked: Mapping[ir.Value, str]) -> str:
    """Why nothing can divide ``value``."""
    if value is not None and value in blocked:
        return blocked[value]
    producer = None if value is None else value.producer()
    return "it reads an input of the model" if producer is None else f"{producer.op_type} before it takes no factors"


@dataclass(slots=True)
class _Walk:
    """From a source forwards to its sinks; ``blocked`` says what stands in the way, if anything does."""

    source: ir.Node
    channels: int
    divided: list[Divided]
    sinks: list[Sink] = field(default_factory=list)
    values: dict[ir.Value, None] = field(default_factory=dict)
    products: list[ir.Node] = field(default_factory=list)
    passes_gates: bool = False
    gates: list[str] = field(default_factory=list)
    blocked: str = ""

    @classmethod
    def from_source(cls, node: ir.Node, *, gates: bool) -> _Walk | None:
        """The walk from ``node``; None where it is no source."""
        start = _start_of_norm(node) or _start_of_linear(node) or _start_of_gain(node)
        if start is None:
            return None
        walk = cls(node, start.channels, [Divided(name_of(node), i, -1, 1) for i in start.divided])
        walk.passes_gates = gates
        walk._follow(node.outputs[0], start.axis, 1)
        if any(sum(v in walk.values for v in product.inputs) > 1 for product in walk.products):
            walk.blocked = walk.blocked or "it is multiplied with itself"
        return walk

    def site(self) -> Site:
        node = self.source
        return Site(
            tensor=name_of(node.outputs[0]),
            source=name_of(node),
            op_type=node.op_type,
            channels=self.channels,
            weight=node.op_type in _LINEAR,
            divided=tuple(self.divided),
            sinks=tuple(self.sinks),
            path=frozenset(name_of(value) for value in self.values),
            gates=tuple(self.gates),
        )

    def _follow(self, value: ir.Value, axis: int, span: int) -> None:
        if value in self.values:
            return
        self.values[value] = None
        if value.is_graph_output():
            self.blocked = self.blocked or "an output of the model depends on it"
        for node, index in value.uses():
            if self.passes_gates and axis == 1 - (rank(value) or 0) and _is_gate(node):
                self.gates.append(name_of(node))
            elif not self._enter(node, index, axis, span):
                self.blocked = self.blocked or f"{node.op_type} does not scale with its input"

    def _enter(self, node: ir.Node, index: int, axis: int, span: int) -> bool:
        """Go on behind ``node``; False where it does not scale with its input ``index``."""
        if node.domain != "" or node.graph is not self.source.graph:
            return False
        value, op_type = node.inputs[index], node.op_type
        dims = rank(value)
        if op_type in _LINEAR:
            return index == 0 and self._end(node, axis, span)
        if op_type in _SAME or (op_type in _POOLING and dims is not None and axis == 1 - dims):
            self._follow(node.outputs[0], axis, span)
            return True
        if op_type in ("Mul", "Div"):
            other = node.inputs[1 - index]
            if op_type == "Div" and index != 0:
                return False
            if constant(other) is None:
                self.products.append(node)
            self._follow(node.outputs[0], axis, span)
            return True
        if op_type in ("Add", "Sub") and _is_float(constant(node.inputs[1 - index])):
            self.divided.append(Divided(name_of(node), 1 - index, axis, span))
            self._follow(node.outputs[0], axis, span)
            return True
        inner = _flattened(node) if value is not None and axis != -1 else None
        if inner is not None and dims is not None and axis == 1 - dims:
            self._follow(node.outputs[0], -1, span * inner)
            return True
        return False

    def _end(self, node: ir.Node, axis: int, span: int) -> bool:
        weight, value = _weight(node), node.inputs[0]
        if weight is None or value is None:
            return False
        if node.op_type.startswith("Conv"):
            grouped = node.op_type == "Conv"
            inputs = weight.shape[1] * int_attribute(node, "group", 1) if grouped else weight.shape[0]
            fits = axis == 1 - weight.ndim and inputs == self.channels
        else:
            inputs = weight.shape[1 if is_transposed(node) else 0]
            fits = axis == -1 and inputs == self.channels * span and not int_attribute(node, "transA", 0)
        if fits:
            self.sinks.append(Sink(name_of(node), node.op_type, name_of(value), span))
        return fits


@dataclass(frozen=True, slots=True)
class _Start:
    """What a source gives: channels on ``axis``, counted from the end, that vectors at the inputs ``divided`` scale."""

    channels: int
    axis: int
    divided: tuple[int, ...]


def _start_of_norm(node: ir.Node) -> _Start | None:
    """A normalization over the last axis with vectors of gains and shifts."""
    inputs = NORMS.get((node.domain, node.op_type), ())
    indices = tuple(i for i in inputs if i < len(node.inputs) and node.inputs[i] is not None)
    vectors = [array for i in indices if _is_vector(array := constant(node.inputs[i])) and array is not None]
    dims = rank(node.inputs[0]) if indices else None
    last = int_attribute(node, "axis", -1) in (-1, None if dims is None else dims - 1)
    if not vectors or len(vectors) < len(indices) or not last:
        return None
    return _Start(len(vectors[0]), -1, indices)


def _start_of_linear(node: ir.Node) -> _Start | None:
    """A linear op, whose weight is divided as well, with a constant bias or none."""
    if node.domain != "" or node.op_type not in _LINEAR:
        return None
    weight = _weight(node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or (bias is not None and not _is_float(constant(bias))):
        return None
    axis = 1 - weight.ndim if node.op_type.startswith("Conv") else -1
    return _Start(channels_of(node, weight), axis, () if bias is None else (2,))


def _start_of_gain(node: ir.Node) -> _Start | None:
    """A product with one vector."""
    if node.domain != "" or node.op_type != "Mul":
        return None
    constants = [(i, array) for i, value in enumerate(node.inputs) if (array := constant(value)) is not None]
    gains = [(i, array) for i, array in constants if _is_float(array) and 1 < array.size == array.shape[-1]]
    if len(gains) != 1:
        return None
    ((index, gain),) = gains
    return _Start(gain.size, -1, (index,))


def multiplies_back(node: ir.Node) -> bool:
    """Whether ``node`` only prepares the input of a gate: a product with powers of two, exact as integers."""
    users = list(node.outputs[0].uses()) if len(node.outputs) == 1 else []
    if node.domain != "" or node.op_type != "Mul" or len(users) != 1 or users[0].node.op_type != _GATE:
        return False
    factors = constant(node.inputs[1])
    if factors is None or factors.dtype != np.float32 or not factors.size or not np.all(factors > 0):
        return False
    powers = np.log2(factors)
    return bool(np.all(powers == np.rint(powers)) and np.ptp(powers) <= FACTOR_BITS)


def _is_gate(node: ir.Node) -> bool:
    """Whether ``node`` is a HardSigmoid, and all that it gives is multiplied with what it reads."""
    if node.domain != "" or node.op_type != _GATE or node.outputs[0].is_graph_output():
        return False
    factors = {node.inputs[0], node.outputs[0]}
    users = node.outputs[0].consumers()
    return all(user.domain == "" and user.op_type == "Mul" and set(user.inputs) == factors for user in users)


def _flattened(node: ir.Node) -> int | None:
    """How many neighbours each channel becomes in a Flatten, or a Reshape that does the same; None in other ops."""
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    if shape is None:
        return None
    dims = [d for d in shape[1:] if isinstance(d, int)]
    if len(dims) != len(shape) - 1:
        return None
    if node.op_type == "Reshape":
        target = constant(node.inputs[1])
        rows = (0, shape[0]) if isinstance(shape[0], int) else (0,)
        flat = target is not None and (
            target.tolist()[1:] == [prod(dims)] or target.tolist() in [[n, -1] for n in rows]
        )
    else:
        flat = node.op_type == "Flatten" and int_attribute(node, "axis", 1) == 1
    return prod(dims[1:]) if flat else None


def _weight(node: ir.Node) -> np.ndarray | None:
    """The constant weight of a linear op; None where it has none, or a stack of matrices."""
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or weight.dtype != np.float32 or not weight.size:
        return None
    return weight if node.op_type.startswith("Conv") or weight.ndim == 2 else None


def _is_float(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype == np.float32


def _is_vector(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype == np.float32 and array.ndim == 1

"""The weights of a graph, each with the axis that its product sums over last.

ONNX keeps the matrix of a MatMul as ``[K, N]``, that of a Gemm either way, an embedding as ``[V, K]``; exporters put
Transpose, Identity and Cast between a weight and its reader. Formats of weights without a graph have rows along K, so
each constant is followed to its readers, and transposed where they sum over its last axis but one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from requant.onnx.names import name_of
from requant.onnx.nodes import int_attribute
from requant.stored import StoredWeight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from requant.onnx.graph import Graph

_REALS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
#: Ops that pass a weight on as it is.
_PASSING = frozenset({"Cast", "Identity"})
#: Ops whose weight is not a matrix to sum along, but one whose rows are looked up or slid.
_AS_STORED = frozenset({"Conv", "ConvTranspose", "Gather"})


@dataclass(frozen=True, slots=True)
class _Use:
    """A reader of a weight: the axis it sums over (None: it takes it as stored), and what it multiplies with."""

    axis: int | None
    activation: str | None = None


def stored_weights(graph: Graph) -> tuple[StoredWeight, ...]:
    """Every constant of reals with at least one axis, of the graph and of the bodies in it, by its name.

    One whose readers do not agree on an axis is as it is stored.
    """
    return tuple(_stored(value, tensor) for value, tensor in _constants(graph))


def _constants(graph: Graph) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    main = graph.model.graph
    for body in (main, *main.subgraphs()):
        made = [output for node in body if node.op_type == "Constant" for output in node.outputs]
        for value in (*body.initializers.values(), *made):
            tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
            if tensor is not None and tensor.dtype in _REALS and len(tensor.shape):
                yield value, tensor


def _stored(value: ir.Value, tensor: ir.TensorProtocol) -> StoredWeight:
    shape = tuple(tensor.shape.numpy())
    uses = list(_uses(value, tuple(range(len(shape)))))
    axes = {use.axis for use in uses}
    last = len(shape) - 1
    turned = axes == {last - 1} and last > 0
    activations = [use.activation for use in uses if use.activation is not None]
    return StoredWeight(
        name_of(value),
        (*shape[:-2], shape[-1], shape[-2]) if turned else shape,
        partial(_read, tensor, turned),
        activations[0] if activations and axes <= {None, last - 1 if turned else last} else None,
        bool(uses),
    )


def _read(tensor: ir.TensorProtocol, turned: bool) -> NDArray[np.float32]:
    array = tensor.numpy()
    with np.errstate(over="ignore"):  # float64 beyond float32 is infinite, which is told with its place
        return np.asarray(array.swapaxes(-1, -2) if turned else array, np.float32, order="C")


def _uses(value: ir.Value, axes: tuple[int, ...]) -> Iterator[_Use]:
    """The products and lookups that read a value whose axes are those of a weight, in the order given."""
    for node, index in value.uses():
        if node.domain not in ("", "com.microsoft"):
            continue
        if node.op_type in _PASSING:
            yield from _uses(node.outputs[0], axes)
        elif node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            order = list(reversed(range(len(axes)))) if perm is None else list(perm.as_ints())
            if sorted(order) == list(range(len(axes))):
                yield from _uses(node.outputs[0], tuple(axes[axis] for axis in order))
        elif (position := _summed_axis(node, index, len(axes))) is not None:
            other = node.inputs[1 - index]
            whole = index == 1 and (node.op_type == "MatMul" or not int_attribute(node, "transA", 0))
            yield _Use(axes[position], other.name if other is not None and whole else None)
        elif node.op_type in _AS_STORED and index == (0 if node.op_type == "Gather" else 1):
            yield _Use(None)


def _summed_axis(node: ir.Node, index: int, rank: int) -> int | None:
    """Which axis of its input a product sums over."""
    if index > 1 or rank < 2:
        return None
    match node.op_type:
        case "MatMul":
            return rank - 1 if index == 0 else rank - 2
        case "Gemm":
            swapped = bool(int_attribute(node, ("transA", "transB")[index], 0))
            return 1 - index if not swapped else index
    return None

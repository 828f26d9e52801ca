"""Fold what is affine per output channel into the linear op before it.

``y = (W x + b) * s + t`` with constants s and t, one to an output channel, is ``y = (W s) x + (b s + t)``. s and t
come from BatchNormalization (s = gamma / sqrt(var + eps), t = beta - mean s) and from Add, Sub, Mul and Div by a
constant that broadcasts over everything but the channels: exporters write convolution biases so. A Squeeze may stand
between: a convolution in one dimension is often written as one in two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.nodes import constant, int_attribute, rank, set_constant
from requant.onnx.ops import OPS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_EPSILON = 1e-5  # the operator's default
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def fold_affine(model: ir.Model) -> int:
    """Fold constant affine ops into the linear op before them; returns how many."""
    folded = 0
    for node in list(model.graph):
        if node.domain == "" and node.op_type in _LINEAR:
            while _fold_next(model.graph, node):
                folded += 1
    return folded


def _fold_next(graph: ir.Graph, linear: ir.Node) -> bool:
    """Fold the single consumer of ``linear`` into it, if it is affine per channel."""
    if linear.op_type == "MatMul" and not (rank(linear.inputs[0]) == 2 == rank(linear.inputs[1])):
        return False
    out = linear.outputs[0]
    weight, bias = constant(linear.inputs[1]), linear.inputs[2] if len(linear.inputs) > 2 else None
    if weight is None or weight.dtype != np.float32 or not _plain(linear):
        return False
    carrier, dims, follower = out, weight.ndim, _only_reader(graph, out)
    if follower is not None and (gone := _squeezed(follower, weight.ndim)):
        carrier, dims = follower.outputs[0], dims - gone
        follower = _only_reader(graph, carrier)
    if follower is None:
        return False
    channels = channels_of(linear, weight)
    affine = _affine(follower, carrier, channels, dims)
    if affine is None:
        return False
    scale, shift = affine
    old = np.zeros(1) if bias is None else constant(bias)
    if old is None or any(d != 1 for d in old.shape[:-1]):
        return False  # unknown, or a Gemm bias that differs between rows
    with np.errstate(over="ignore", invalid="ignore"):
        new_bias = (old.reshape(-1) * scale + shift).astype(np.float32)
        scaled = not np.array_equal(scale, np.ones_like(scale))
        new_weight = (weight * along_channels(linear, weight, scale)).astype(np.float32) if scaled else weight
    if not ((not scaled or np.isfinite(new_weight).all()) and np.isfinite(new_bias).all()):
        return False  # the products leave float32
    if linear.op_type == "MatMul":
        linear.op_type = "Gemm"  # the same product, with room for a bias
    if scaled:
        set_constant(linear, 1, new_weight, "folded")
    set_constant(linear, 2, new_bias, "bias")
    result = follower.outputs[0]
    ir.convenience.replace_all_uses_with(result, carrier, replace_graph_outputs=True)
    name = result.name
    graph.remove(follower, safe=True)
    carrier.name = name
    return True


def _only_reader(graph: ir.Graph, value: ir.Value) -> ir.Node | None:
    """The node of ``graph`` that alone reads ``value``."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not graph:
        return None
    return uses[0].node


def _squeezed(node: ir.Node, dims: int) -> int:
    """How many axes a Squeeze takes from the result of a convolution with ``dims``; 0 unless all are spatial."""
    axes = constant(node.inputs[1]) if (node.domain, node.op_type) == ("", "Squeeze") and len(node.inputs) > 1 else None
    spatial = axes is not None and dims > 2 and all(int(axis) % dims >= 2 for axis in axes.reshape(-1))
    return axes.size if axes is not None and spatial else 0


def _plain(linear: ir.Node) -> bool:
    """Gemm counts only without its factors, which would apply to the folded values too."""
    if linear.op_type != "Gemm":
        return True
    alpha, beta = linear.attributes.get_float("alpha", 1.0), linear.attributes.get_float("beta", 1.0)
    return alpha == 1.0 and beta == 1.0 and int_attribute(linear, "transA", 0) == 0


def _channel_axis(linear: ir.Node) -> int:
    row = OPS[linear.op_type].weight_axis
    if row is None:
        message = f"{linear.op_type} has no weight axis"
        raise ValueError(message)
    return row.transposed if row.flag and int_attribute(linear, row.flag, 0) else row.axis


def channels_of(linear: ir.Node, weight: Array) -> int:
    """Number of output channels of a linear op."""
    groups = int_attribute(linear, "group", 1) if linear.op_type == "ConvTranspose" else 1
    return int(weight.shape[_channel_axis(linear)]) * int(groups or 1)


def along_channels(linear: ir.Node, weight: Array, scale: Array) -> Array:
    """``scale`` in a shape that multiplies ``weight`` channel by channel."""
    groups = int_attribute(linear, "group", 1)
    if linear.op_type == "ConvTranspose" and groups > 1:  # weight is [in, out / groups, ...]: rows belong to a group
        per_row = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return per_row.reshape(*per_row.shape, *[1] * (weight.ndim - 2))
    shape = [1] * weight.ndim
    shape[_channel_axis(linear)] = -1
    return scale.reshape(shape)


def _affine(node: ir.Node, x: ir.Value, channels: int, rank: int) -> tuple[Array, Array] | None:
    """Scale and shift, one to a channel, of a node that is affine in ``x``; None if it is not."""
    if node.domain != "":
        return None
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, x)
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    first = node.inputs[0] is x
    array = constant(node.inputs[1] if first else node.inputs[0])
    value = None if array is None else _per_channel(array, channels, rank)
    if value is None or (not first and node.op_type == "Div"):
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    match node.op_type:
        case "Add":
            return one, value
        case "Sub":
            return (one, -value) if first else (-one, value)
        case "Mul":
            return value, zero
        case _:
            return (1.0 / value, zero) if np.all(value != 0) else None


def _batch_norm(node: ir.Node, x: ir.Value) -> tuple[Array, Array] | None:
    arrays = [constant(v) for v in node.inputs[1:5]]
    if node.inputs[0] is not x or any(a is None for a in arrays) or int_attribute(node, "training_mode", 0):
        return None
    if any(v.uses() for v in node.outputs[1:]):
        return None
    gamma, beta, mean, var = (np.asarray(a, np.float64) for a in arrays)
    scale = gamma / np.sqrt(var + (node.attributes.get_float("epsilon", _EPSILON) or 0.0))
    return scale, beta - mean * scale


def _per_channel(array: Array, channels: int, rank: int) -> Array | None:
    """``array`` as one float64 to a channel (axis 1 of ``rank``), or None if it varies elsewhere."""
    if array.dtype != np.float32:
        return None
    if array.size == 1 and array.ndim <= rank:
        return np.full(channels, array.reshape(-1)[0], np.float64)
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if shape[1] != channels or any(d != 1 for i, d in enumerate(shape) if i != 1):
        return None
    return array.reshape(-1).astype(np.float64)

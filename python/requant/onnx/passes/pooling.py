"""Say pooling where pooling is meant.

Exporters write the squeeze of a squeeze-and-excitation block as ReduceMean over all spatial axes. That is
GlobalAveragePool, which runtimes run on integers and ReduceMean they do not. They also write the padding of a MaxPool
as a Pad before it, which runs in float and cuts a chain of integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from requant.onnx.nodes import constant, int_attribute, rank

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIRST_SPATIAL = 2
#: Of rank 3 a mean over the last axis is a normalization of tokens far more often than a pooling of signals.
_IMAGE = 4
#: Inputs of Pad.
_FILL, _AXES = 2, 3


def recognise_pooling(model: ir.Model) -> int:
    """Turn ReduceMean over exactly the spatial axes into GlobalAveragePool, and Flatten where it drops them.

    Returns how many.
    """
    found = 0
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        dims = rank(source)
        if node.op_type != "ReduceMean" or node.domain != "" or dims is None or dims < _IMAGE:
            continue
        if source is None or source.dtype is None or not source.dtype.is_floating_point():
            continue
        axes = _axes(node)
        if axes is None or {a % dims for a in axes} != set(range(_FIRST_SPATIAL, dims)):
            continue
        nodes = [ir.node("GlobalAveragePool", [source], name=node.name)]
        if not int_attribute(node, "keepdims", 1):
            nodes[0].outputs[0].name = f"{node.outputs[0].name}_pooled"
            nodes.append(ir.node("Flatten", [nodes[0].outputs[0]], name=f"{node.name}_flatten"))
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, [nodes[-1].outputs[0]])
        found += 1
    return found


def fold_pads(model: ir.Model) -> int:
    """Fold each Pad of space that only one MaxPool reads into it; returns how many.

    A MaxPool is padded with what is below every value, so the Pad has to write nothing larger than any value of its
    input: zeros behind a Relu, say. A padded AveragePool is left to the runtime, which is faster with it in float.
    """
    folded = 0
    for pool in list(model.graph):
        pad = None if not pool.inputs or pool.inputs[0] is None else pool.inputs[0].producer()
        if pool.domain or pad is None or pad.domain or pad.op_type != "Pad" or len(pad.outputs[0].uses()) != 1:
            continue
        added = None if pad.outputs[0].is_graph_output() else _padding(pad)
        if added is None or not _pads_alike(pool, pad):
            continue
        own = pool.attributes.get_ints("pads", [0] * len(added)) or ()
        total = [int(a) + b for a, b in zip(own, added, strict=True)]
        kernel = pool.attributes.get_ints("kernel_shape", ()) or ()
        if any(pads >= size for pads, size in zip(total, (*kernel, *kernel), strict=True)):
            continue  # windows of padding alone, which runtimes refuse
        pool.attributes["pads"] = ir.AttrInt64s("pads", total)
        pool.replace_input_with(0, pad.inputs[0])
        model.graph.remove(pad, safe=True)
        folded += 1
    return folded


def _pads_alike(pool: ir.Node, pad: ir.Node) -> bool:
    """Whether padding of ``pool`` itself would do what ``pad`` does before it."""
    plain = pool.attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and not int_attribute(pool, "ceil_mode", 0)
    dilations = pool.attributes.get_ints("dilations", ()) or ()
    if not plain or any(d != 1 for d in dilations):
        return False
    fill = _scalar(pad, _FILL, default=0.0)
    if pool.op_type != "MaxPool" or len(pool.outputs) > 1:
        return False
    return fill == -np.inf or (fill == 0.0 and _not_negative(pad.inputs[0]))


def _not_negative(value: ir.Value | None) -> bool:
    """Whether a clamp gives ``value``, and nothing below zero."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    low = _scalar(node, 1, default=-np.inf) if node.op_type == "Clip" else None
    return node.op_type in ("Relu", "Sigmoid") or (low is not None and low >= 0.0)


def _scalar(node: ir.Node, index: int, *, default: float) -> float | None:
    """Input ``index`` as a number, ``default`` where it is left out; None where it is computed."""
    value = _input(node, index)
    array = constant(value)
    if value is None:
        return default
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _padding(pad: ir.Node) -> Sequence[int] | None:
    """What a Pad adds before and behind each spatial axis; None where that is unknown, or not all that it does."""
    dims = rank(pad.inputs[0])
    pads = constant(_input(pad, 1))
    if dims is None or pads is None or pad.attributes.get_string("mode", "constant") != "constant":
        return None
    axes: Sequence[int] = range(dims)
    if (given := _input(pad, _AXES)) is not None:
        listed = constant(given)
        if listed is None:
            return None
        axes = [int(a) % dims for a in listed.reshape(-1)]
    before, behind = [0] * dims, [0] * dims
    for axis, low, high in zip(axes, *pads.reshape(2, -1).tolist(), strict=True):
        before[axis], behind[axis] = low, high
    moved = (*before[:_FIRST_SPATIAL], *behind[:_FIRST_SPATIAL])
    spatial = (*before[_FIRST_SPATIAL:], *behind[_FIRST_SPATIAL:])
    return None if any(moved) or min(spatial, default=0) < 0 else spatial


def _axes(node: ir.Node) -> list[int] | None:
    """The axes, an attribute before opset 18 and an input since; None where they are unknown or all."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return list(attribute.as_ints())
    array = constant(_input(node, 1))
    return None if array is None else [int(a) for a in array.reshape(-1)]

"""Where a constant can move from one bias through ReLU into the next, and moving it.

Of a linear op with ReLU behind it, ``relu(x) = relu(x - c) + c`` for all ``x >= c >= 0``: c leaves the op's bias, and
what reads the result gets it back through its weight, ``b' = b + W c``. Means and maxima, Flatten and the like let a
constant pass. Where a reader pads with zeros it does not: its border would read ``0`` for ``0 - c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.onnx.names import name_of
from requant.onnx.nodes import constant, int_attribute, is_transposed, set_constant
from requant.onnx.passes.cleanup import drop_unused
from requant.onnx.sites import find_sites

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from requant.onnx.graph import Graph
    from requant.onnx.sites import Site

    Array = NDArray[Any]
    #: What is subtracted from each channel, by the tensor that a site is named after.
    Shifts = Mapping[str, NDArray[np.float32]]

_BIASED = frozenset({"Conv", "Gemm"})
_PASSED = frozenset({"Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Reshape"})


def find_shifts(graph: Graph) -> tuple[tuple[Site, ...], dict[str, str]]:
    """The sites whose source may lose a constant, and why not the others that a ReLU or Clip follows, by source."""
    nodes = {name_of(node): node for node in graph.nodes}
    readers: dict[str, list[ir.Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None:
                readers.setdefault(name_of(value), []).append(node)
    found, reasons = [], {}
    for site in find_sites(graph)[0]:
        follows = {node.op_type for node in nodes[site.source].outputs[0].consumers()}
        if site.weight and "Relu" in follows:
            reason = _obstacle(site, nodes[site.source], readers)
            if reason:
                reasons[site.source] = reason
            else:
                found.append(site)
    for name, node in nodes.items():
        users = node.outputs[0].consumers()
        if node.op_type in _BIASED and users and all(_is_bounded(user) for user in users):
            reasons[name] = "Clip bounds it from above, too"
    return tuple(found), reasons


def shift(graph: Graph, shifts: Shifts) -> Graph:
    """A copy of ``graph`` whose tensor ``t`` is less by ``shifts[t]``, channel by channel, and that gives the same.

    The same, that is, wherever ``t`` was at least that large.

    Raises:
        KeyError: a tensor names no site of the graph that may lose a constant.
        ValueError: there are more or fewer values than channels.
    """
    copy = graph.copy()
    sites = {site.tensor: site for site in find_shifts(copy)[0]}
    nodes = {name_of(node): node for node in copy.nodes}
    for tensor, each in shifts.items():
        site = sites[tensor]
        if each.shape != (site.channels,):
            raise ValueError(f"{tensor!r} has {site.channels} channels, not {each.size}")
        exactly = each.astype(np.float64)
        _add(nodes[site.source], -exactly)
        for sink in site.sinks:
            node = nodes[sink.node]
            _add(node, outputs_of(node, _array(node, 1), np.repeat(exactly, sink.span)))
    drop_unused(copy.model)
    return copy


def outputs_of(node: ir.Node, weight: Array, inputs: Array) -> Array:
    """What a Conv without padding, or a Gemm, makes of ``inputs``, one constant to each input channel."""
    if node.op_type == "Conv":
        groups = int_attribute(node, "group", 1)
        kernels = weight.astype(np.float64).sum(axis=tuple(range(2, weight.ndim)))  # [outputs, inputs of a group]
        grouped = kernels.reshape(groups, -1, weight.shape[1])
        outputs: Array = np.einsum("gok,gk->go", grouped, inputs.reshape(groups, -1)).reshape(-1)
    else:
        matrix = weight.astype(np.float64)
        outputs = (matrix if is_transposed(node) else matrix.T) @ inputs
    return outputs


def _obstacle(site: Site, source: ir.Node, readers: Mapping[str, Sequence[ir.Node]]) -> str:
    """Why no constant may leave the source of a site; empty where one may."""
    if source.op_type not in _BIASED or not _is_plain(source):
        return f"{source.op_type} before it has no bias of its own"
    if len(readers[site.tensor]) != 1:
        return "it is read before ReLU, too"
    sinks = {sink.node for sink in site.sinks}
    for node in (node for name in site.path - {site.tensor} for node in readers.get(name, ())):
        if node.name in sinks:
            if node.op_type not in _BIASED or not _is_plain(node):
                return f"{node.op_type} behind it has no bias of its own"
            if _pads(node):
                return f"{node.op_type} behind it pads with zeros"
        elif node.op_type not in _PASSED and (node.op_type != "AveragePool" or _pads(node)):
            return f"{node.op_type} behind it does not pass a constant on"
    return ""


def _is_plain(node: ir.Node) -> bool:
    """Whether a linear op adds its bias as it is, and has a constant one for each channel, or none."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = None if bias is None else constant(bias)
    known = bias is None or (array is not None and array.dtype == np.float32 and all(d == 1 for d in array.shape[:-1]))
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")] if node.op_type == "Gemm" else []
    return known and all(factor == 1 for factor in factors)


def _pads(node: ir.Node) -> bool:
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return automatic or any(node.attributes.get_ints("pads", [])) or bool(int_attribute(node, "ceil_mode", 0))


def _is_bounded(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type == "Clip" and len(node.inputs) > 2 and node.inputs[2] is not None


def _add(node: ir.Node, values: Array) -> None:
    """Add ``values`` to the bias of a linear op, 0 where it has none."""
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    old = np.zeros(1) if bias is None else bias.reshape(-1).astype(np.float64)
    set_constant(node, 2, (old + values).astype(np.float32), "bias")


def _array(node: ir.Node, index: int) -> Array:
    array = constant(node.inputs[index])
    assert array is not None  # a site names constants
    return array

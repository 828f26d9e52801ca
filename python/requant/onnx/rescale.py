"""Divide and multiply the constants of a site, so that its function stays.

Factors are powers of two. A product with one only moves the exponent: the model computes the same sums of the same
rounded terms, and its float outputs are the same bits, unless a value leaves the range of normal float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.blocks import largest_terms
from requant.onnx.nodes import constant, int_attribute, is_transposed, rank, set_constant
from requant.onnx.passes.affine import along_channels, channels_of
from requant.onnx.passes.cleanup import drop_unused
from requant.onnx.sites import find_sites

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from requant.onnx.graph import Graph
    from requant.onnx.sites import Site

    Array = NDArray[Any]
    #: A positive factor to a channel, by the tensor that a site is named after.
    Factors = Mapping[str, NDArray[np.float32]]

#: The exponent of the largest factor.
LARGEST = 20
#: Magnitudes from here on are left alone: with a factor they could leave float32.
TOO_LARGE = 2.0**100


def powers_of_two(factors: Array) -> NDArray[np.float32]:
    """The powers of two nearest to ``factors`` (positive) over their geometric mean, which no scale depends on."""
    logs = np.log2(np.asarray(factors, np.float64))
    powers: Array = np.exp2(np.clip(np.rint(logs - logs.mean()), -LARGEST, LARGEST))
    return powers.astype(np.float32)


def rescale(graph: Graph, factors: Factors) -> Graph:
    """A copy of ``graph`` whose tensor ``t`` is divided by ``factors[t]``, channel by channel, and nothing behind.

    Constants that others use, too, are copied first.

    Raises:
        KeyError: a tensor names no site of the graph.
    """
    copy = graph.copy()
    sites = {site.tensor: site for gates in (True, False) for site in find_sites(copy, gates=gates)[0]}
    nodes = {node.name: node for node in copy.nodes}
    for tensor, each in factors.items():
        _rescale_site(nodes, sites[tensor], each)
    drop_unused(copy.model)
    return copy


def _rescale_site(nodes: Mapping[str | None, ir.Node], site: Site, factors: Array) -> None:
    source = nodes[site.source]
    if site.weight:
        weight = _array(source, 1)
        set_constant(source, 1, weight / along_channels(source, weight, factors), "rescaled")
    for part in site.divided:
        node = nodes[part.node]
        spread = np.repeat(factors, part.span).reshape(-1, *[1] * (-1 - part.axis))
        set_constant(node, part.index, _array(node, part.index) / spread, "rescaled")
    for sink in site.sinks:
        node = nodes[sink.node]
        set_constant(node, 1, scale_inputs(node, _array(node, 1), np.repeat(factors, sink.span)), "rescaled")
    for name in site.gates:
        _multiply_back(nodes[name], factors)


def _multiply_back(gate: ir.Node, factors: Array) -> None:
    """Let ``gate`` read what it has read before: its input times ``factors``, by channel (axis 1)."""
    value, graph, name = gate.inputs[0], gate.graph, f"{gate.name}/unscaled"
    assert value is not None
    assert isinstance(graph, ir.Graph)
    result = ir.Value(name=name, shape=value.shape, type=value.type)
    product = ir.node("Mul", [value, value], outputs=[result], name=name)
    graph.insert_before(gate, product)
    set_constant(product, 1, factors.reshape(-1, *[1] * ((rank(value) or 0) - 2)), "factors")
    gate.replace_input_with(0, result)


def scale_inputs(node: ir.Node, weight: Array, factors: Array) -> Array:
    """``weight`` of a linear op, each of whose inputs is multiplied by its factor."""
    if node.op_type == "Conv":
        groups = int_attribute(node, "group", 1)
        each = np.repeat(factors.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        scaled: Array = weight * each.reshape(*each.shape, *[1] * (weight.ndim - 2))
    elif node.op_type == "ConvTranspose":
        scaled = weight * factors.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        scaled = weight * (factors if is_transposed(node) else factors[:, None])
    return scaled


def input_peaks(node: ir.Node, weight: Array, span: int = 1) -> Array:
    """The largest magnitude in ``weight`` for each input channel of a linear op, ``span`` inputs to a channel."""
    if node.op_type == "Conv":
        groups = int_attribute(node, "group", 1)
        kernels: Array = np.abs(weight).max(axis=tuple(range(2, weight.ndim)))
        peaks: Array = kernels.reshape(groups, -1, weight.shape[1]).max(axis=1).reshape(-1)
    elif node.op_type == "ConvTranspose":
        peaks = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    else:
        peaks = largest_terms(weight.T if is_transposed(node) else weight).reshape(-1, span).max(axis=1)
    return peaks


def output_peaks(node: ir.Node, weight: Array) -> Array:
    """The largest magnitude in ``weight`` for each output channel of a linear op."""
    channels = channels_of(node, weight)
    index = np.broadcast_to(along_channels(node, weight, np.arange(channels)), weight.shape)
    peaks = np.zeros(channels)
    np.maximum.at(peaks, index.reshape(-1), np.abs(weight).reshape(-1))
    return peaks


def _array(node: ir.Node, index: int) -> Array:
    array = constant(node.inputs[index])
    assert array is not None  # a site names constants
    return array

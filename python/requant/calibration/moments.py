"""What a layer's sums are made of: means and second moments of its inputs, from some calibration samples.

A layer's output is a sum of products for each row of its weight. The inputs that meet a row, a window of pixels for a
convolution, are one vector of ``k`` terms; many such vectors are seen at each run. Of these, some are taken (up to
``ROWS`` of all samples together, evenly spread) and summed up as integers, so that no order of summing matters.

Moments of few vectors overrate what inputs have in common by chance. They are shrunk towards their diagonal by
``k / (k + vectors)``, in the way of Ledoit and Wolf (2004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.affine import quantize_array
from requant.calibration.observing import watch
from requant.onnx.nodes import constant, int_attribute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.planning.plan import NodePlan, QuantPlan
    from requant.types import QuantParams

    Array = NDArray[Any]

#: Vectors that are taken of each layer.
ROWS = 2048
#: Terms of the longest sums whose moments are collected.
LONGEST = 2304
_BYTES = 256 << 20  # of moments that are held at a time; what needs more takes more than one pass over the samples
_JITTER = 7919


@dataclass(frozen=True, slots=True, eq=False)
class LayerMoments:
    """Of the quantized inputs that meet the rows of a layer's weight, in the order of ``as_rows``.

    Attributes:
        second: second moments about 0, in steps of the inputs' scale, float64 ``[groups, k, k]``.
        count: how many vectors were seen.
    """

    second: Array
    count: int

    def shrunk(self) -> Array:
        """The moments nearer to their diagonal, float32."""
        k = self.second.shape[-1]
        shrunk = self.second * (self.count / (k + self.count))
        diagonal = np.arange(k)
        shrunk[:, diagonal, diagonal] = self.second[:, diagonal, diagonal]
        return np.ascontiguousarray(shrunk, np.float32)


def layer_moments(
    graph: Graph, plan: QuantPlan, activations: Mapping[str, QuantParams], batches: Sequence[Batch], *, threads: int
) -> Iterator[tuple[Layer, LayerMoments]]:
    """Each layer of ``plan`` whose inputs can be told term by term, with its moments.

    Args:
        graph: the float model that is planned for.
        plan: its plan.
        activations: parameters of every planned tensor.
        batches: the samples.
        threads: for the runtime.
    """
    waiting = [_Sums(layer, activations[layer.reads]) for layer in layers(graph, plan) if layer.k <= LONGEST]
    while waiting:
        held, size = [waiting[0]], waiting[0].bytes
        for sums in waiting[1:]:
            size += sums.bytes
            if size > _BYTES:
                break
            held.append(sums)
        waiting = waiting[len(held) :]
        reads = {sums.layer.node.name: sums.layer.reads for sums in held}
        by_name = {sums.layer.node.name: sums for sums in held}
        for name, vectors in _vectors(graph, [sums.layer for sums in held], reads, batches, threads):
            by_name[name].add(vectors)
        for sums in held:
            if sums.count:
                yield sums.layer, sums.moments()


def input_means(
    graph: Graph, layers: Sequence[Layer], reads: Mapping[str, str], batches: Sequence[Batch], *, threads: int
) -> dict[str, Array]:
    """Means of what meets the rows of each layer's weight, float64 ``[groups, k]`` by node name.

    Args:
        graph: a model, in float or quantized.
        layers: the layers, of the float model.
        reads: the tensor of ``graph`` that each of them reads, by node name.
        batches: the samples.
        threads: for the runtime.
    """
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for name, vectors in _vectors(graph, layers, reads, batches, threads):
        sums[name] = sums.get(name, 0.0) + vectors.sum(axis=0, dtype=np.float64)
        counts[name] = counts.get(name, 0) + len(vectors)
    return {name: total / counts[name] for name, total in sums.items() if counts[name]}


def mean_vectors(layer: Layer, arrays: Iterable[Array], batches: Sequence[Batch]) -> Array | None:
    """Means of what meets the rows of a layer's weight, float64 ``[groups, k]``; None where nothing does.

    Args:
        layer: the layer.
        arrays: what it reads, batch after batch.
        batches: the samples.
    """
    total: Any = 0.0
    count = 0
    samples = sum(batch.count for batch in batches)
    for batch, x in zip(batches, arrays, strict=True):
        if x.size:
            vectors = layer.vectors(x, _rows(batch, samples))
            total = total + vectors.sum(axis=0, dtype=np.float64)
            count += len(vectors)
    return total / count if count else None


def layers(graph: Graph, plan: QuantPlan) -> list[Layer]:
    """The layers of ``plan`` whose inputs can be told term by term: convolutions, and products with one matrix."""
    nodes = {node.name: node for node in graph.all_nodes()}
    found = [Layer(nodes[node.name], node) for node in plan.nodes if node.weight is not None]
    return [layer for layer in found if layer.k]


class Layer:
    """A layer, as far as its inputs are concerned.

    Attributes:
        node: its plan.
        reads: the tensor that it reads.
        groups: groups of a convolution; 1 of a product.
        k: terms of its sums; 0 where they cannot be told.
        outputs: how many sums it makes of each vector.
    """

    def __init__(self, op: ir.Node, node: NodePlan) -> None:
        weight = constant(op.inputs[1])
        assert weight is not None  # as of every planned layer
        self.node, self.reads = node, node.activations[0][1]
        self._op, self._kernel = op, weight.shape[2:] if op.op_type == "Conv" else ()
        self.groups = int_attribute(op, "group", 1) if op.op_type == "Conv" else 1
        self.outputs = weight.shape[node.weight_axis or 0]
        if op.op_type == "Conv":
            self.k = weight[0].size
        elif op.op_type in ("Gemm", "MatMul") and weight.ndim == 2:
            self.k = weight.shape[1 - (node.weight_axis or 0)]
        else:
            self.k = 0

    def vectors(self, x: Array, rows: int) -> Array:
        """At most about ``rows`` of the vectors that ``x`` holds, evenly spread: ``[vectors, groups, k]``."""
        if not self._kernel:
            flat = x.reshape(-1, 1, self.k)
            return flat[:: max(1, -(-len(flat) // rows))]
        x = x.reshape(-1, *x.shape[-1 - len(self._kernel) :])  # of a body stacked over its iterations
        windows = _windows(x, self._op, self._kernel)
        images, channels, *places = windows.shape[: x.ndim]
        total = images * math.prod(places)
        step = max(1, -(-total // rows))
        steps = np.arange(total // step)
        chosen = steps * step + steps * _JITTER % step  # not the same places of every image
        image, *at = np.unravel_index(chosen, (images, *places))
        taken = windows[(image, slice(None), *at)]  # [vectors, channels, *kernel]
        grouped = taken.reshape(len(chosen), self.groups, channels // self.groups, -1)
        return np.moveaxis(grouped, 2, -1).reshape(len(chosen), self.groups, self.k)


def _vectors(
    graph: Graph, layers: Sequence[Layer], reads: Mapping[str, str], batches: Sequence[Batch], threads: int
) -> Iterator[tuple[str, Array]]:
    """What each layer meets in each batch, by node name."""
    samples = sum(batch.count for batch in batches)
    for batch, arrays in watch(graph, reads.values(), batches, threads=threads):
        for layer in layers:
            held = [x for x in arrays[reads[layer.node.name]] if x.size]
            for x in held:
                rows = -(-_rows(batch, samples) // len(held))
                yield layer.node.name, layer.vectors(np.asarray(x, np.float32), rows)


def _rows(batch: Batch, samples: int) -> int:
    """How many vectors are taken of a batch, where there are so many samples."""
    return -(-ROWS * batch.count // samples)


class _Sums:
    """Running sums of one layer's quantized inputs, in steps: of integers below 2^53, so exact in any order."""

    def __init__(self, layer: Layer, params: QuantParams) -> None:
        self.layer, self.params = layer, params
        self.count = 0
        self._second: Any = 0

    @property
    def bytes(self) -> int:
        return int(8 * self.layer.groups * self.layer.k**2)

    def add(self, vectors: Array) -> None:
        q = quantize_array(vectors, self.params).data.astype(np.float64) - int(self.params.zero_point)
        self._second = self._second + np.moveaxis(q, 0, -1) @ np.moveaxis(q, 0, 1)
        self.count += len(vectors)

    def moments(self) -> LayerMoments:
        return LayerMoments(self._second / self.count, self.count)


def _windows(x: Array, node: ir.Node, kernel: tuple[int, ...]) -> Array:
    """A view ``[images, channels, *places, *kernel]`` of the padded ``x [images, channels, *space]``."""
    axes = len(kernel)
    strides = list(node.attributes.get_ints("strides", [1] * axes))
    dilations = list(node.attributes.get_ints("dilations", [1] * axes))
    extent = [d * (size - 1) + 1 for d, size in zip(dilations, kernel, strict=True)]
    pads = _pads(node, x.shape[2:], extent, strides)
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, x.ndim)))
    picked = (
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in strides),
        *(slice(None, None, d) for d in dilations),
    )
    return windows[picked]


def _pads(node: ir.Node, space: Sequence[int], extent: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "NOTSET":
        given = list(node.attributes.get_ints("pads", [0] * 2 * len(space)))
        return list(zip(given[: len(space)], given[len(space) :], strict=True))
    if auto == "VALID":
        return [(0, 0)] * len(space)
    pads = []
    for size, width, stride in zip(space, extent, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + width - size, 0)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return pads

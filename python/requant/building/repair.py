"""Make up for what rounding does to a layer's output, by what calibration samples say of its input.

* *Rounding*: integers, and scales, with which the output errs least (``rust/requant-core/src/reconstruction.rs``), for
  the inputs that the float model gives the layer; not kept where the outputs of the whole model clearly err more.
* *Bias correction*: what the output lacks on average goes into the bias, ``b + w E[x] - w' E[x']`` with ``'`` for the
  quantized model (Nagel et al. 2019, arXiv:1906.04721, section 4.2, from means that were seen), layer after layer in
  execution order, each in the model whose earlier biases are corrected. A missing bias is added where an op can have
  one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.arrays.affine import dequantize_array
from requant.building.noise import Noise, clearly_more
from requant.building.resolve import StoredTensors, guarded, quantize_bias, smallest_scale
from requant.calibration.moments import input_means, layer_moments, layers, mean_vectors
from requant.onnx.export import insert_qdq
from requant.onnx.names import name_of
from requant.onnx.nodes import constant
from requant.onnx.rows import as_rows, from_rows
from requant.onnx.segments import Walk
from requant.targets import get_target
from requant.types import QuantizedTensor
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.building.resolve import Resolved
    from requant.calibration.moments import Layer
    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.planning.plan import NodePlan, QuantPlan
    from requant.types import QuantParams

    Array = NDArray[Any]

_MAGNITUDE = 127
_PAIR = 128
_BIASED = ("Conv", "Gemm")
_ERRED = "on samples held back, outputs clearly erred more with"
_WEIGHTS_REJECTED = f"weights rounded to nearest: {_ERRED} those rounded by the error of the layer's output"
_BIASES_REJECTED = f"biases left as they are: {_ERRED} corrected ones"


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of ``resolved``, and a line for each kind of repair."""

    resolved: Resolved
    done: tuple[str, ...] = ()


def repair(
    graph: Graph,
    plan: QuantPlan,
    resolved: Resolved,
    config: QuantConfig,
    batches: Sequence[Batch],
    *,
    held: Sequence[Batch] = (),
) -> Repaired:
    """``resolved`` with the weights and biases that ``config`` asks for, where there are samples to repair by.

    On the samples ``held`` back, which nothing was chosen by, what was repaired must prove itself.
    A model that is too large for memory stays as it is: the moments of its layers are, too.
    """
    repaired = Repaired(resolved)
    if not batches or graph.scratch is not None:
        return repaired
    judge = Noise(graph, held, threads=config.cores)

    def noise(tried: Resolved) -> Array:
        return judge.of(insert_qdq(graph, plan, tried))

    if config.rounding == "reconstruct":
        better = _reconstruct(graph, plan, resolved, config, batches)
        repaired = _proved(noise, repaired, better, _WEIGHTS_REJECTED)
    if config.bias_correction and get_target(config.target).quantizes_bias:
        better = _correct_biases(graph, plan, repaired, config, batches)
        repaired = _proved(noise, repaired, better, _BIASES_REJECTED)
    return repaired


def _proved(noise: Callable[[Resolved], Array], before: Repaired, after: Repaired, rejected: str) -> Repaired:
    """What came ``after``, unless the outputs of the whole model clearly err more with it."""
    if after.done == before.done:
        return before  # nothing was done
    if clearly_more(noise(after.resolved), noise(before.resolved)):
        return Repaired(before.resolved, (*before.done, rejected))
    return after


def _reconstruct(
    graph: Graph, plan: QuantPlan, resolved: Resolved, config: QuantConfig, batches: Sequence[Batch]
) -> Repaired:
    weights, biases, gains = StoredTensors(graph, resolved.weights), dict(resolved.biases), []
    readers = Counter(node.weight for node in plan.nodes)
    for layer, moments in layer_moments(graph, plan, resolved.activations, batches, threads=config.cores):
        node = layer.node
        if readers[node.weight] > 1:
            continue  # what is best for one of them is not for the others, and a weight is stored once
        weight, bias = _constants(graph, node)
        input_scale = float(resolved.activations[node.activations[0][1]].scale)
        rows = np.ascontiguousarray(as_rows(weight, node), np.float32)
        pair = _PAIR if guarded(node, weight, layer.groups, config) else None
        search = _Search(rows, moments.shrunk(), pair, config.cores)
        nearest = weights[node.name]
        integers, scales, gain = search.run(nearest.params, smallest_scale(bias, input_scale))
        better = _weight(integers, scales, node, nearest)
        weights.add(node.name, better)
        gains.append(gain)
        if node.name in biases:
            biases[node.name] = quantize_bias(bias, better.params, input_scale)
    ratios = [before / after for before, after in gains if after > 0]
    typical = 10 * np.log10(np.median(ratios)) if ratios else 0.0
    done = counted(len(gains), f"weight(s) rounded by the error of the layer's output ({typical:.1f} dB less, median)")
    return Repaired(replace(resolved, weights=weights, biases=biases), (done,) if gains else ())


def _correct_biases(
    graph: Graph, plan: QuantPlan, repaired: Repaired, config: QuantConfig, batches: Sequence[Batch]
) -> Repaired:
    found = [layer for layer in layers(graph, plan) if layer.node.op_type in _BIASED]
    if not found:
        return repaired
    exact = input_means(graph, found, {layer.node.name: layer.reads for layer in found}, batches, threads=config.cores)
    resolved = repaired.resolved
    found = [layer for layer in found if layer.node.name in exact]
    biases = dict(resolved.biases)

    def bias_of(layer: Layer, lacks: Array) -> QuantizedTensor:
        _, bias = _constants(graph, layer.node)
        scale = float(resolved.activations[layer.reads].scale)
        return quantize_bias(bias + lacks, resolved.weights[layer.node.name].params, scale)

    for layer in found:
        if layer.node.name not in biases:  # it is there from the beginning, as 0
            biases[layer.node.name] = bias_of(layer, np.zeros(layer.outputs))
    main = {node.name for node in graph.nodes}
    kind = _Walked if all(layer.node.name in main for layer in found) else _Rebuilt
    quantized = kind(graph, plan, replace(resolved, biases=biases), batches, config.cores)
    for layer in found:
        means = quantized.means(layer, biases)
        if means is not None:
            weight, _ = _constants(graph, layer.node)
            rounded = dequantize_array(resolved.weights[layer.node.name])
            exactly = _outputs(weight, exact[layer.node.name], layer.node)
            biases[layer.node.name] = bias_of(layer, exactly - _outputs(rounded, means, layer.node))
    resolved = replace(resolved, biases=biases)
    done = counted(len(found), "bias(es) corrected by what their layers' outputs lack on average")
    return Repaired(resolved, (*repaired.done, done))


class _Walked:
    """The quantized model, run from layer to layer: each piece with the biases that were corrected before it."""

    def __init__(
        self, graph: Graph, plan: QuantPlan, resolved: Resolved, batches: Sequence[Batch], threads: int
    ) -> None:
        model = insert_qdq(graph, plan, resolved)
        self._places = {name_of(node): (place, node) for place, node in enumerate(model.nodes)}
        self._walk = Walk(model, [batch.feeds for batch in batches], threads=threads)
        self._batches, self._activations, self._biases = batches, resolved.activations, dict(resolved.biases)

    def means(self, layer: Layer, biases: Mapping[str, QuantizedTensor]) -> Array | None:
        """Means of what meets the rows of the layer's weight, ``[groups, k]``, with these ``biases`` before it."""
        for name in [name for name in biases if biases[name] is not self._biases[name]]:
            _, node = self._places[name]
            self._biases[name] = biases[name]
            self._walk.replace(_name(node.inputs[2]), _reals(biases[name].data, biases[name].params))
        place, node = self._places[layer.node.name]
        self._walk.advance(place)
        params = self._activations[layer.reads]
        read = node.inputs[0]
        dequantize = None if read is None else read.producer()
        assert dequantize is not None  # as before every layer that runs on integers
        integers = self._walk.arrays(_name(dequantize.inputs[0]))
        return mean_vectors(layer, (_reals(array, params) for array in integers), self._batches)


class _Rebuilt:
    """The same where layers stand in bodies of If, Loop and Scan, which run as one: the whole model for each layer."""

    def __init__(
        self, graph: Graph, plan: QuantPlan, resolved: Resolved, batches: Sequence[Batch], threads: int
    ) -> None:
        self._graph, self._plan, self._resolved = graph, plan, resolved
        self._batches, self._threads = batches, threads

    def means(self, layer: Layer, biases: Mapping[str, QuantizedTensor]) -> Array | None:
        """Means of what meets the rows of the layer's weight, ``[groups, k]``; None where nothing does."""
        model = insert_qdq(self._graph, self._plan, replace(self._resolved, biases=biases))
        node = next(node for node in model.all_nodes() if node.name == layer.node.name)
        reads = {layer.node.name: _name(node.inputs[0])}
        return input_means(model, [layer], reads, self._batches, threads=self._threads).get(layer.node.name)


def _reals(integers: Array, params: QuantParams) -> Array:
    """``integers`` of one scale, or of one for each of their values, as the runtime dequantizes them."""
    reals: Array = (integers.astype(np.int64) - params.zero_point).astype(np.float32) * params.scale
    return reals


def _name(value: ir.Value | None) -> str:
    assert value is not None  # what a layer multiplies and adds is there
    return name_of(value)


def _constants(graph: Graph, node: NodePlan) -> tuple[Array, Array]:
    """Weight and bias of a layer, the latter zeros where it has none: ``[outputs]``, or ``[1]``."""
    initializers = graph.model.graph.initializers
    weight = constant(initializers[node.weight or ""])
    assert weight is not None  # it was resolved
    bias = None if node.bias is None else constant(initializers[node.bias])
    return weight, np.zeros(1, np.float32) if bias is None else bias.reshape(-1)


def _outputs(weight: Array, inputs: Array, node: NodePlan) -> Array:
    """What the rows of ``weight`` make of ``inputs [groups, k]``: ``[outputs]``, float64."""
    groups, k = inputs.shape
    rows = as_rows(weight, node).reshape(groups, -1, k).astype(np.float64)
    outputs: Array = np.einsum("gnk,gk->gn", rows, inputs).reshape(-1)
    return outputs


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """For better integers of ``rows [outputs, k]``; ``pair`` is what two neighbours of one sign may add up to."""

    rows: Array
    second: Array
    pair: int | None
    threads: int

    def run(self, params: QuantParams, least: Array) -> tuple[Array, Array, tuple[float, float]]:
        """Integers around 0, scales ``[outputs]`` of at least ``least``, the error's power before and after."""
        each = np.broadcast_to(params.scale.reshape(-1), len(self.rows)).astype(np.float32)
        integers, scales, gain = self._reconstructed(each, scales_too=params.scale.ndim > 0)
        if np.any(scales < np.minimum(least, each)):
            integers, scales, gain = self._reconstructed(each, scales_too=False)
        return integers, scales, gain

    def _reconstructed(self, scales: Array, *, scales_too: bool) -> tuple[Array, Array, tuple[float, float]]:
        scales, integers = scales.copy(), np.empty(self.rows.shape, np.int8)
        gain = ops.reconstruct(
            self.rows, self.second, scales, _MAGNITUDE, self.pair, scales_too, self.threads, integers
        )
        return integers, scales, gain


def _weight(integers: Array, scales: Array, node: NodePlan, nearest: QuantizedTensor) -> QuantizedTensor:
    """Integers of rows in the shape and type of ``nearest``."""
    params = nearest.params
    centred = integers.astype(np.int16) + int(params.zero_point.flat[0])
    scale = scales.reshape(params.scale.shape) if params.scale.ndim else params.scale
    data = from_rows(centred.astype(nearest.data.dtype), node, nearest.data.shape)
    return QuantizedTensor(data, replace(params, scale=scale))

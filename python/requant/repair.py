"""Make up for what rounding does to a layer's output, by what calibration samples say of its input.

* *Rounding*: integers, and scales, with which the output errs least (``rust/requant-core/src/reconstruction.rs``), for
  the inputs that the float model gives the layer; not kept where the outputs of the whole model clearly err more.
* *Bias correction*: what the output lacks on average goes into the bias, ``b + w E[x] - w' E[x']`` with ``'`` for the
  quantized model (Nagel et al. 2019, arXiv:1906.04721, section 4.2, from means that were seen), layer after layer in
  execution order, each in the model whose earlier biases are corrected. A missing bias is added where an op can have
  one.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.moments import input_means, layer_moments, layers
from requant.onnx.export import insert_qdq
from requant.onnx.graph import constant
from requant.resolve import StoredTensors, guarded, quantize_bias, smallest_scale
from requant.rows import as_rows, from_rows
from requant.runtime import open_runner
from requant.targets import get_target
from requant.types import QuantizedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.plan import NodePlan, QuantPlan
    from requant.resolve import Resolved
    from requant.types import QuantParams

    Array = NDArray[Any]

_MAGNITUDE = 127
_PAIR = 128
_BIASED = ("Conv", "Gemm")
_FEW = 8  # samples that prove nothing
_REJECTED = "weights rounded to nearest: on samples held back, those rounded by their layer's output clearly erred more"


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

    On the samples ``held`` back, which nothing was chosen by, weights must prove themselves.
    A model that is too large for memory stays as it is: the moments of its layers are, too.
    """
    repaired = Repaired(resolved)
    if not batches or graph.scratch is not None:
        return repaired
    if config.rounding == "reconstruct":
        repaired = _reconstruct(graph, plan, resolved, config, batches)
        if repaired.done and clearly_more(*_noises(graph, plan, (repaired.resolved, resolved), held, config)):
            repaired = Repaired(resolved, (_REJECTED,))
    if config.bias_correction and get_target(config.target).quantizes_bias:
        repaired = _correct_biases(graph, plan, repaired, config, batches)
    return repaired


def clearly_more(noise: Array, other: Array) -> bool:
    """Whether the ``noise [samples]`` of one model is above that ``other`` by more than chance explains.

    That is, on average by more than two standard errors of the difference; never on a few samples.
    """
    differences = noise - other
    if not np.isfinite(noise).all():
        return bool(np.isfinite(other).all())
    if len(noise) < _FEW:
        return False
    return bool(differences.mean() > 2 * differences.std(ddof=1) / math.sqrt(len(noise)))


def _noises(
    graph: Graph, plan: QuantPlan, tried: Sequence[Resolved], batches: Sequence[Batch], config: QuantConfig
) -> list[Array]:
    """Power of the outputs' error for each sample and each model, over the mean power of each output, summed up."""
    if not batches:
        return [np.zeros(0) for _ in tried]
    models = [graph, *(insert_qdq(graph, plan, each) for each in tried)]
    runners = [open_runner(model.serialize(), threads=config.cores, shared=True) for model in models]
    powers: dict[int, list[Array]] = {}  # by output, [1 + models, samples] of each batch
    for batch in batches:
        for place, (exact, *others) in enumerate(zip(*(runner.run(batch.feeds) for runner in runners), strict=True)):
            if exact.dtype.kind == "f" and exact.size:
                errors = (x - exact if x.shape == exact.shape else exact for x in others)  # another shape: all error
                rows = [_power_by_sample(x, batch.count) for x in (exact, *errors)]
                powers.setdefault(place, []).append(np.array(rows))
    noises = np.zeros((len(tried), sum(batch.count for batch in batches)))
    for parts in powers.values():
        signal, *noise = np.concatenate(parts, axis=1)
        noises += np.array(noise) / (signal.mean() or 1.0)
    return list(noises)


def _power_by_sample(x: Array, count: int) -> Array:
    """The sum of squares of each of ``count`` samples; an equal share where ``x`` has no axis of them."""
    power = np.square(x, dtype=np.float64)
    if x.ndim and len(x) == count:
        rows: Array = power.reshape(count, -1).sum(axis=1)
        return rows
    return np.full(count, power.sum() / count)


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
    done = f"{len(gains)} weights rounded by the error of their layer's output ({typical:.1f} dB less, median)"
    return Repaired(replace(resolved, weights=weights, biases=biases), (done,) if gains else ())


def _correct_biases(
    graph: Graph, plan: QuantPlan, repaired: Repaired, config: QuantConfig, batches: Sequence[Batch]
) -> Repaired:
    resolved = repaired.resolved
    found = [layer for layer in layers(graph, plan) if layer.node.op_type in _BIASED]
    if not found:
        return repaired
    reads = {layer.node.name: layer.reads for layer in found}
    exact = input_means(graph, found, reads, batches, threads=config.cores)
    for layer in found:
        node = layer.node
        model = insert_qdq(graph, plan, resolved)
        read = next(n for n in model.all_nodes() if n.name == node.name).inputs[0]
        assert read is not None  # it is what the layer multiplies
        means = input_means(model, [layer], {node.name: read.name or ""}, batches, threads=config.cores)
        if node.name not in means:
            continue
        weight, bias = _constants(graph, node)
        rounded = resolved.weights[node.name]
        outputs = _outputs(ops.dequantize_array(rounded), means[node.name], node)
        lacks = _outputs(weight, exact[node.name], node) - outputs
        corrected = quantize_bias(bias + lacks, rounded.params, float(resolved.activations[layer.reads].scale))
        resolved = replace(resolved, biases={**resolved.biases, node.name: corrected})
    done = f"{len(found)} biases corrected by what their layers' outputs lack on average"
    return Repaired(resolved, (*repaired.done, done))


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

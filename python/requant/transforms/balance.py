"""Balance channels before convolutions.

A depthwise convolution multiplies each channel by weights of its own. With a scale to each of them, its weights take
any factor without loss: a channel that is small beside others, and would get few of the integers that all channels
share, may be as large as the largest (factors are what tensors are divided by, so at most 1). The convolution before,
with a scale to each of its channels, loses nothing either.

Where only ReLU and the like stand between the two, that is cross-layer equalization (Nagel et al. 2019,
arXiv:1906.04721) by activations. It is done here behind hard swish, too: what its HardSigmoid reads is multiplied back,
which on integers takes the place of the HardSigmoid, where the target has it saturate. Networks in the manner of
MobileNetV3 lose most of their accuracy in 8 bits for want of it. (SiLU would need one more op: a network of that kind,
which had lost nothing, became a quarter slower.)

Other convolutions add channels up, each times weights that share a scale: there a factor that spares the activation
costs the weights, and it is done where both together lose much less (``level``).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.calibration.observing import watch
from requant.errors import ModelError
from requant.onnx.nodes import constant, int_attribute
from requant.onnx.rescale import LARGEST, TOO_LARGE
from requant.onnx.sites import FACTOR_BITS, find_sites
from requant.targets import get_target
from requant.transforms.change import Change, has_own_range
from requant.transforms.level import Ends, Reader, level
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.onnx.sites import Site
    from requant.planning.plan import QuantPlan

    Array = NDArray[Any]

logger = logging.getLogger(__name__)

#: What the power of rounding must fall by, where factors are free, where a gate costs an op, and where it is estimated
#: from more than ranges.
GAIN, GAIN_OF_GATES, GAIN_OF_SUMS = 1.5, 4.0, 2.0


def balance(graph: Graph, plan: QuantPlan, config: QuantConfig, sample: Sequence[Batch]) -> Change:
    """Factors for the channels that only convolutions read, where these lose much without."""
    target = get_target(config.target)
    scaled = config.per_channel and (target.per_channel is None or "Conv" in target.per_channel)
    if not config.balance or not scaled:
        return Change()
    gates = "HardSigmoid" in target.saturating_adds
    nodes = {node.name: node for node in graph.nodes}
    layers = {node.name: nodes[node.name] for node in plan.nodes if node.name in nodes}
    stored = {node.name for node in plan.dynamic}
    sites = [site for site in find_sites(graph, gates=gates)[0] if _is_candidate(site, nodes, layers.keys(), plan)]
    read = (sink.reads for site in sites for sink in site.sinks)
    names = dict.fromkeys((*(name for site in sites for name in _integers(site, plan)), *read))
    if not names:
        return Change()
    try:
        ends = _observe(graph, tuple(names), sample, threads=config.cores)
    except ModelError as problem:
        logger.info("nothing was balanced: %s", problem.message)  # calibration will tell which sample it is
        return Change()
    chosen: dict[str, Array] = {}
    gains = []
    for site in sites:
        integers = [ends[name] for name in _integers(site, plan)]
        if all(_is_depthwise(nodes[sink.node], site.channels) for sink in site.sinks):
            weights = np.sum([_energy(nodes[sink.node]) for sink in site.sinks], axis=0)
            factors, gain = choose(integers, weights, FACTOR_BITS if site.gates else LARGEST)
            least = GAIN_OF_GATES if site.gates else GAIN
        else:
            factors, gain = level(
                integers,
                [
                    _reader(nodes[sink.node], ends[sink.reads], rounds=sink.node in layers)
                    for sink in site.sinks
                    if sink.node in layers.keys() | stored
                ],
            )
            least = GAIN_OF_SUMS
        if gain >= least:
            chosen[site.tensor] = factors
            gains.append(gain)
    if not chosen:
        return Change()
    decibels = 10 * np.log10(np.median(gains))
    done = f"tensor(s) before convolutions balanced (rounding {decibels:.1f} dB less, median)"
    return Change(factors=chosen, done=(counted(len(chosen), done),))


def choose(ends: Sequence[Ends], weights: Array, bits: int) -> tuple[NDArray[np.float32], float]:
    """Factors for the channels of tensors that are divided by the same ones, and by how much rounding loses power.

    The power of what is rounded, seen behind the convolution, is the sum of ``width^2 weights_i factors_i^2``, where
    ``width`` is that of the range all channels share. Growing a channel may widen it on the side where the largest
    one ends early (-0.38 behind hard swish): the widening with the least power is taken.

    Args:
        ends: of each tensor.
        weights: sum of squares of the weights that each channel is multiplied by.
        bits: the exponent of the least factor.
    """
    best = np.ones(len(weights), np.float32), _power(ends, np.ones(len(weights)), weights)
    if not (np.isfinite(best[1]) and best[1] > 0):
        return best[0], 1.0
    before = best[1]
    for widening in range(FACTOR_BITS + 1):
        ratio = np.zeros(len(weights))
        for each in ends:
            reach = float(max(each.below.max(), each.above.max()))
            for side in (each.below, each.above):
                bound = min(float(side.max()) * 2**widening, reach)
                if bound > 0:
                    ratio = np.maximum(ratio, side / bound)
        live = ratio > 0
        powers = np.ceil(np.log2(np.where(live, ratio, 1.0)))
        factors = np.exp2(np.clip(powers, -bits, 0)).astype(np.float32)
        power = _power(ends, factors, weights)
        if power < best[1]:
            best = factors, power
    return best[0], before / best[1]


def _power(ends: Sequence[Ends], factors: Array, weights: Array) -> float:
    widths = [float((each.below / factors).max() + (each.above / factors).max()) for each in ends]
    return float(np.sum(np.square(widths)) * np.sum(weights * np.square(factors, dtype=np.float64)))


def _is_candidate(site: Site, nodes: Mapping[str | None, ir.Node], layers: Collection[str], plan: QuantPlan) -> bool:
    """Whether all that reads a site are convolutions, some of them ``layers``, which run on integers of 8 bits."""
    if not site.weight or has_own_range(site, plan) or not any(sink.node in layers for sink in site.sinks):
        return False
    for sink in site.sinks:
        weight = constant(nodes[sink.node].inputs[1]) if sink.op_type == "Conv" else None
        if weight is None or not np.max(np.abs(weight)) < TOO_LARGE:
            return False
    depthwise = all(sink.node in layers and _is_depthwise(nodes[sink.node], site.channels) for sink in site.sinks)
    return (depthwise or not site.gates) and all(
        plan.tensors[name].scheme.dtype.bits == 8 for name in _integers(site, plan)
    )


def _is_depthwise(node: ir.Node, channels: int) -> bool:
    """Whether each of ``channels`` is multiplied by weights of its own."""
    weight = constant(node.inputs[1])
    return weight is not None and weight.shape[1] == 1 and int_attribute(node, "group", 1) == channels == len(weight)


def _integers(site: Site, plan: QuantPlan) -> tuple[str, ...]:
    """The tensors of a site that become integers, in the plan's order."""
    return tuple(name for name in plan.tensors if name in site.path)


def _observe(graph: Graph, names: Sequence[str], batches: Sequence[Batch], *, threads: int) -> Mapping[str, Ends]:
    """What the named tensors, channels on axis 1, reach for ``batches``."""
    ends: dict[str, Ends] = {}
    for _, arrays in watch(graph, names, batches, threads=threads):
        for name, array in ((each, array) for each in names for array in arrays[each]):
            axes = (0, *range(2, array.ndim))
            power = np.square(array, dtype=np.float32).mean(axis=axes, dtype=np.float64)
            seen = Ends(-array.min(axis=axes, initial=0.0), array.max(axis=axes, initial=0.0), power)
            ends[name] = ends[name].joined(seen) if name in ends else seen
    return ends


def _reader(node: ir.Node, read: Ends, *, rounds: bool) -> Reader:
    """What ``level`` has to know of a convolution."""
    weight = constant(node.inputs[1])
    assert weight is not None  # a sink has one
    return Reader.of(weight, int_attribute(node, "group", 1), read.power, rounds=rounds)


def _energy(depthwise: ir.Node) -> Array:
    """The sum of squares of each channel's weights."""
    weight = constant(depthwise.inputs[1])
    assert weight is not None  # a sink has one
    energy: Array = np.square(weight, dtype=np.float64).reshape(len(weight), -1).sum(axis=1)
    return energy

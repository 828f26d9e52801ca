"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): move the magnitude of activations into weights.

One scale serves a whole activation. Where a few of its channels are far larger than the rest, the rest is left with a
few levels. ``s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)`` divides channel j of the activation, in the constants of
what computes it, and multiplies the weights that meet it in all linear layers that read it; these have many scales.

Alpha is searched for each activation: its layers are computed on some rows with the integers that each alpha would
give, and the alpha with the least error of their outputs is kept, if that error falls by a third or more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.arrays.affine import compute_params, fake_quantize_array, params_from_data
from requant.arrays.intake import as_float32
from requant.calibration.observing import watch
from requant.errors import ModelError
from requant.onnx.nodes import constant, is_transposed
from requant.onnx.rescale import TOO_LARGE, input_peaks, powers_of_two, scale_inputs
from requant.onnx.sites import find_sites
from requant.transforms.change import Change, has_own_range
from requant.types import PerChannel, PerTensor, QuantScheme, QuantType
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.onnx.sites import Site
    from requant.planning.plan import NodePlan, QuantPlan

    Array = NDArray[Any]

logger = logging.getLogger(__name__)

#: The usual one first: another must do clearly better than those before it.
ALPHAS = (0.5, 0.6, 0.4, 0.7, 0.3, 0.8)
_CLEARLY = 1.1
#: What the error must fall by: less is not worth a changed model.
GAIN = 1.5
#: Where the largest channel stands no further above the median one than this, the search is spared.
SPREAD = 2.0
#: How far the largest channel of an activation stands above the median one where that is worth a note.
OUTLIER = 20.0
_ROWS = 256  # of each activation, from all batches together
_METHOD = "mse"  # whatever the config says: a calibration table serves every method
_MATRIX = ("Gemm", "MatMul")


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """An activation in the sample: the largest magnitude of each channel, and some of its rows."""

    peaks: Array
    rows: Array


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    factors: Array
    alpha: float
    gain: float


def smooth(graph: Graph, plan: QuantPlan, config: QuantConfig, sample: Sequence[Batch]) -> Change:
    """Factors for the activations of linear layers that gain from them, or for all with a fixed alpha."""
    if config.smooth == "none":
        return Change()
    found, reasons = find_sites(graph)
    layers = {node.name: node for node in plan.nodes if node.op_type in _MATRIX}
    sites = [site for site in found if _is_candidate(site, layers, plan, config)]
    blocked = {layers[name].activations[0][1]: reason for name, reason in reasons.items() if name in layers}
    names = dict.fromkeys(sink.reads for site in sites for sink in site.sinks) | dict.fromkeys(blocked)
    if not names:
        return Change()
    try:
        seen = observe(graph, tuple(names), sample, threads=config.cores)
    except ModelError as problem:
        logger.info("nothing was smoothed: %s", problem.message)  # calibration will tell which sample it is
        return Change()
    search = _Search(graph, plan, config, layers, seen)
    choices = {site.tensor: search.choose(site) for site in sites}
    chosen = {tensor: choice for tensor, choice in choices.items() if choice is not None}
    count = sum(sink.node in layers for site in sites if site.tensor in chosen for sink in site.sinks)
    return Change(
        factors={name: choice.factors for name, choice in chosen.items()},
        done=_lines(list(chosen.values()), count),
        notes=tuple(_unsmoothed({name: seen[name].peaks for name in blocked}, blocked)),
    )


def observe(graph: Graph, names: Sequence[str], batches: Sequence[Batch], *, threads: int = 0) -> dict[str, Seen]:
    """What the named tensors hold for ``batches``, seen as rows of channels (their last axis)."""
    each = -(-_ROWS // max(len(batches), 1))
    peaks: dict[str, Array] = {}
    rows: dict[str, list[Array]] = {name: [] for name in names}
    for _, arrays in watch(graph, names, batches, threads=threads):
        for name, held in ((each, array) for each in names for array in arrays[each]):
            array = held.reshape(-1, held.shape[-1])
            peak = np.abs(array).max(axis=0, initial=0.0)
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
            rows[name].append(array[:: max(1, -(-len(array) // each))].copy())
    return {name: Seen(peaks[name], np.concatenate(rows[name])) for name in names}


def _is_candidate(site: Site, layers: Mapping[str, NodePlan], plan: QuantPlan, config: QuantConfig) -> bool:
    if site.weight and not config.per_channel:
        return False  # its source has one scale, which would have to serve all factors
    matrices = all(sink.op_type in _MATRIX for sink in site.sinks)
    return matrices and any(sink.node in layers for sink in site.sinks) and not has_own_range(site, plan)


class _Search:
    def __init__(
        self,
        graph: Graph,
        plan: QuantPlan,
        config: QuantConfig,
        layers: Mapping[str, NodePlan],
        seen: Mapping[str, Seen],
    ) -> None:
        self.nodes = {node.name: node for node in graph.nodes}
        self.plan = plan
        self.config = config
        self.layers = layers
        self.seen = seen

    def choose(self, site: Site) -> _Choice | None:
        """The factors for a site; None where they bring too little."""
        x = np.max([self.seen[s.reads].peaks.reshape(-1, s.span).max(axis=1) for s in site.sinks], axis=0)
        w = np.max([input_peaks(self.nodes[s.node], self._weight(s.node), s.span) for s in site.sinks], axis=0)
        live = (x > 0) & (w > 0)
        if not live.any() or not (np.max(x) < TOO_LARGE and np.max(w) < TOO_LARGE):
            return None  # NaN and infinity among them: those will be refused, with their place

        def factors(alpha: float) -> Array:
            return powers_of_two(np.where(live, np.where(live, x, 1) ** alpha / np.where(live, w, 1) ** (1 - alpha), 1))

        if not isinstance(self.config.smooth, str):
            return _Choice(factors(self.config.smooth), self.config.smooth, 1.0)
        if np.max(x[live]) < SPREAD * np.median(x[live]):
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # products may leave float32
            return self._search(site, factors)

    def _search(self, site: Site, factors: Callable[[float], Array]) -> _Choice | None:
        exact = {
            sink.node: _product(self.nodes[sink.node], self.seen[sink.reads].rows, self._weight(sink.node))
            for sink in site.sinks
            if sink.node in self.layers
        }
        before = self._error(site, exact, np.ones(site.channels, np.float32))
        tried: dict[bytes, tuple[float, float]] = {}  # as powers of two, the factors of several alphas may be equal
        for alpha in ALPHAS:
            if factors(alpha).tobytes() not in tried:
                tried[factors(alpha).tobytes()] = self._error(site, exact, factors(alpha)), alpha
        least, _ = min(tried.values())
        if not (np.isfinite(before) and np.isfinite(least)):
            return None
        error, alpha = next(each for each in tried.values() if each[0] <= least * _CLEARLY)
        if not error * GAIN <= before:
            return None
        return _Choice(factors(alpha), alpha, before / max(error, 1e-30))

    def _error(self, site: Site, exact: Mapping[str, Array], factors: Array) -> float:
        """Power of the error over that of the signal, summed over the layers' outputs, with integers for both sides."""
        total = 0.0
        integers: dict[str, Array] = {}
        for sink in site.sinks:
            if sink.node not in exact:
                continue
            node, spread = self.nodes[sink.node], np.repeat(factors, sink.span)
            if sink.reads not in integers:
                integers[sink.reads] = self._as_integers(sink.reads, self.seen[sink.reads].rows / spread)
            weight = scale_inputs(node, self._weight(sink.node), spread)
            granularity = PerChannel(0 if is_transposed(node) else 1) if self.config.per_channel else PerTensor()
            scheme = QuantScheme(QuantType(self.config.weights), symmetric=True, granularity=granularity, narrow=True)
            rounded = fake_quantize_array(weight, params_from_data(weight, scheme))
            got, wanted = _product(node, integers[sink.reads], rounded), exact[sink.node]
            power = float(np.sum(np.square(wanted, dtype=np.float64)))
            total += float(np.sum(np.square(got - wanted, dtype=np.float64))) / power if power else 0.0
        return total

    def _as_integers(self, name: str, rows: Array) -> Array:
        tensor = self.plan.tensors[name]
        statistics = ops.TensorStatistics()
        statistics.observe(as_float32(rows))
        scheme = tensor.scheme
        ends = statistics.range(_METHOD, scheme.dtype.value, scheme.symmetric, self.config.percentile)
        return fake_quantize_array(rows, compute_params(*ends, scheme))

    def _weight(self, name: str) -> Array:
        weight = constant(self.nodes[name].inputs[1])
        assert weight is not None  # a sink has one
        return weight


def _product(node: ir.Node, rows: Array, weight: Array) -> Array:
    product: Array = rows @ (weight.T if is_transposed(node) else weight)
    return product


def _lines(choices: Sequence[_Choice], layers: int) -> tuple[str, ...]:
    if not choices:
        return ()
    alphas = sorted({choice.alpha for choice in choices})
    alpha = f"{alphas[0]:g}" if len(alphas) == 1 else f"{alphas[0]:g} to {alphas[-1]:g}"
    gains = [choice.gain for choice in choices]
    gain = f", output error {min(gains):.3g} to {max(gains):.3g} times smaller" if max(gains) > 1 else ""
    smoothed = f"{counted(len(choices), 'activation(s)')} of {counted(layers, 'linear layer(s)')}"
    return (f"{smoothed} smoothed (alpha {alpha}{gain})",)


def _unsmoothed(peaks: Mapping[str, Array], reasons: Mapping[str, str]) -> Iterable[str]:
    for name, peak in peaks.items():
        ratio = float(np.max(peak) / max(float(np.median(peak)), 1e-30))
        if OUTLIER <= ratio < np.inf and np.median(peak) > 0:
            yield f"outlier channels stay in {name} ({ratio:.0f} times the median): {reasons[name]}"

"""Round the weights of a plan: at once where no data is needed, else layer by layer in execution order.

With data, a layer is rounded for what it will really read: its inputs come from the layers before it with their rounded
weights, and its own weights first make up for what those inputs have lost. Second moments are those of one tensor at a
time, shared by the layers that read it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import DataError, ModelError
from requant.onnx.blocks import extent, finite
from requant.onnx.mapped import forget
from requant.onnx.names import name_of
from requant.onnx.segments import Walk
from requant.onnx.sites import find_sites
from requant.weights import ALGORITHMS, AUTO, get_algorithm, needs_data
from requant.weights.moments import DAMPING, LONGEST, carried_error, moments_of_rows
from requant.weights.plan import in_columns, weights_of
from requant.weights.scaling import choose_factors
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.arrays.lowbit import BlockWeights
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.onnx.sites import Site
    from requant.planning.plan import BlockedNode, QuantPlan
    from requant.types import Progress
    from requant.weights.spec import Moments

    Key = tuple[str, bool]
    Layer = tuple[BlockedNode, ir.Node, NDArray[Any]]

_SEARCHED = 256  # rows of each weight by which factors are searched


@dataclass(frozen=True, slots=True)
class LayerError:
    """What rounding does to a weight: mean squares of it and of the error.

    With data, "it" has made up for the errors of earlier layers, and is scaled.
    """

    name: str
    algorithm: str
    lo: float
    hi: float
    scale: float
    signal: float
    noise: float


@dataclass(frozen=True)
class Rounded:
    """Integer weights by the key of their nodes, the factors of scaled tensors, and what rounding did.

    ``too_long`` weights were rounded without data, as their rows are longer than ``LONGEST``.
    """

    weights: Mapping[Key, BlockWeights]
    factors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    errors: tuple[LayerError, ...] = ()
    too_long: int = 0

    def notes(self) -> Iterator[str]:
        """What was chosen."""
        chosen = Counter(error.algorithm for error in self.errors)
        yield "weights rounded by " + ", ".join(f"{name} ({count})" for name, count in chosen.most_common())
        if self.too_long:
            yield f"{counted(self.too_long, 'weight(s)')} rounded without data: rows of more than {LONGEST:,} values"
        if self.factors:
            yield counted(len(self.factors), "activation(s) scaled by channel (AWQ), by powers of two")
        damped = [weights.damping for weights in self.weights.values() if weights.damping is not None]
        if damped and max(damped) > 1.5 * DAMPING:
            count = counted(sum(each > 1.5 * DAMPING for each in damped), "layer(s)")
            yield f"second moments of {count} are singular: damped by up to {max(damped):g}; give more data"


def wants_data(plan: QuantPlan) -> bool:
    """Whether the weights cannot be rounded without data."""
    return any(needs_data(node.algorithm) for node in plan.blocked)


def round_weights(
    graph: Graph,
    plan: QuantPlan,
    batches: Sequence[Batch] | None = None,
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> Rounded:
    """Round every weight of ``plan``; without ``batches`` each by itself.

    Raises:
        DataError: an algorithm needs data and there is none.
        ModelError: a weight holds NaN or infinity.
    """
    if not batches and wants_data(plan):
        name = next(node.algorithm for node in plan.blocked if needs_data(node.algorithm))
        raise DataError(
            f"algorithm {name} needs calibration data, and none was given",
            hint="pass samples (data=..., --data FILE), or choose rtn, mse, hqq or kquant",
        )
    return _Rounding(graph, plan, batches or (), threads, progress).run()


def round_apart(graph: Graph, plan: QuantPlan, batches: Sequence[Batch], *, threads: int = 0) -> Rounded:
    """Round every weight of ``plan`` as if all others stayed float: by what its layer reads in the float model.

    Nothing is scaled and nothing makes up for earlier errors, so that any of the weights go with any others in float.
    """
    return _Rounding(graph, plan, batches, threads, None).run_apart()


def moments_of(
    graph: Graph, plan: QuantPlan, batches: Sequence[Batch], *, threads: int = 0
) -> Iterator[tuple[list[Key], Moments]]:
    """What the products of ``plan`` read in the float model, tensor by tensor, each with the keys of its readers."""
    if not batches:
        return
    walk = Walk(graph, (batch.feeds for batch in batches), threads=threads)
    layers = [layer for layer in weights_of(graph, plan) if _is_judged(graph, *layer)]
    for place, value, group in _in_order(graph, layers):
        walk.advance(place)
        name = name_of(value)
        yield [planned.key for planned, _, _ in group], moments_of_rows(name, walk.arrays(name))


def _is_product(graph: Graph, planned: BlockedNode, node: ir.Node) -> bool:
    """Whether it is a product of the main graph, whose input a walk comes by."""
    return planned.op_type != "Gather" and node.graph is graph.model.graph


def _is_judged(graph: Graph, planned: BlockedNode, node: ir.Node, rows: NDArray[Any]) -> bool:
    """Whether it is a product whose moments are collected."""
    return _is_product(graph, planned, node) and rows.shape[1] <= LONGEST


def _in_order(graph: Graph, layers: Sequence[Layer]) -> Iterator[tuple[int, ir.Value, list[Layer]]]:
    """Layers by the tensor that they read, in execution order, with the place of the first of them."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    groups: dict[ir.Value, list[Layer]] = {}
    for layer in layers:
        value = layer[1].inputs[0]
        assert value is not None  # a product reads something
        groups.setdefault(value, []).append(layer)
    for value, group in sorted(groups.items(), key=lambda item: min(places[node] for _, node, _ in item[1])):
        yield min(places[node] for _, node, _ in group), value, group


class _Rounding:
    def __init__(
        self, graph: Graph, plan: QuantPlan, batches: Sequence[Batch], threads: int, progress: Progress | None
    ) -> None:
        self.graph = graph
        self.plan = plan
        self.batches = batches
        self.threads = threads
        self.progress = progress
        self.layers = list(weights_of(graph, plan))
        self.weights: dict[Key, BlockWeights] = {}
        self.factors: dict[str, NDArray[np.float32]] = {}
        self.errors: dict[Key, LayerError] = {}

    def run(self) -> Rounded:
        walked = self._walked() if self.batches else []
        keys = {planned.key for planned, _, _ in walked}
        for planned, _, rows in self.layers:
            if planned.key not in keys and planned.key not in self.weights:
                self._keep(planned, *self._alone(planned, rows), rows)
        if walked:
            self._walk(walked)
        return Rounded(self.weights, self.factors, tuple(self.errors.values()), self._too_long())

    def run_apart(self) -> Rounded:
        walked = {planned.key: (planned, rows) for planned, _, rows in self._walked()} if self.batches else {}
        for planned, _, rows in self.layers:
            if planned.key not in walked and planned.key not in self.weights:
                self._keep(planned, *self._alone(planned, rows), rows)
        for keys, moments in moments_of(self.graph, self.plan, self.batches if walked else (), threads=self.threads):
            for planned, rows in (walked[key] for key in keys if key in walked and key not in self.weights):
                weights, name, _ = self._best(planned, finite(rows, planned.weight), moments, None)
                self._keep(planned, weights, name, rows)
        return Rounded(self.weights, errors=tuple(self.errors.values()), too_long=self._too_long())

    def _walked(self) -> list[Layer]:
        """The layers that are rounded by what they read: products of the main graph that ask for it.

        Tables are needed before anything is read, so heads that share one are rounded with it.
        """
        tables = {planned.key for planned, _, _ in self.layers if planned.op_type == "Gather"}
        return [
            (planned, node, rows)
            for planned, node, rows in self.layers
            if _by_data(planned) and _is_judged(self.graph, planned, node, rows) and planned.key not in tables
        ]

    def _too_long(self) -> int:
        """How many weights would have been rounded by what they read, if there were room for its moments."""
        return len(
            {
                planned.key
                for planned, node, rows in (self.layers if self.batches else ())
                if _by_data(planned) and _is_product(self.graph, planned, node) and rows.shape[1] > LONGEST
            }
        )

    def _alone(self, planned: BlockedNode, rows: NDArray[Any]) -> tuple[BlockWeights, str]:
        """A weight rounded by itself."""
        names = [name for name in ALGORITHMS if not needs_data(name)]
        if planned.algorithm in names:
            names = [planned.algorithm]
        elif planned.algorithm != AUTO:
            names = ["mse"]  # asked for what data alone could give it
        found = [(_rounded(planned, rows, name), name) for name in names]
        if len(found) == 1:
            return found[0]
        return min(found, key=lambda each: each[0].error(rows))

    # -- layer by layer ----------------------------------------------------------------------------------------------

    def _walk(self, walked: list[Layer]) -> None:
        walk = Walk(self.graph, (batch.feeds for batch in self.batches), threads=self.threads)
        for planned, node, _ in self.layers:
            if planned.key in self.weights:
                self._put(walk, planned, node)
        order = list(_in_order(self.graph, walked))
        sites = self._sites({value: group for _, value, group in order})
        exact = Walk(self.graph, (batch.feeds for batch in self.batches), threads=self.threads)
        for done, (place, value, group) in enumerate(order):
            name = name_of(value)
            walk.advance(place)
            exact.advance(place)
            moments = moments_of_rows(name, walk.arrays(name))
            for planned, _, rows in group:
                finite(rows, planned.weight)
            carried = carried_error(moments, walk.arrays(name), exact.arrays(name))
            mended = [(planned, node, rows + rows @ carried) for planned, node, rows in group]
            self._round_group(walk, mended, moments, sites.get(name))
            if self.progress is not None:
                self.progress(done + 1, len(order))

    def _sites(self, groups: Mapping[ir.Value, Sequence[Layer]]) -> dict[str, Site]:
        """The tensors of ``groups`` that can be scaled, each with its site."""
        sinks = {node.name: value for value, group in groups.items() for _, node, _ in group}
        alone = {node.name for group in groups.values() for _, node, _ in group if len(node.inputs[1].uses()) == 1}  # type: ignore[union-attr]
        nodes = {node.name: node for node in self.graph.nodes}
        readers = Counter(planned.key for planned, _, _ in self.layers)
        stored = {planned.name: readers[planned.key] for planned, _, _ in self.layers}
        found = {}
        for site in find_sites(self.graph)[0]:
            values = {sinks.get(sink.node) for sink in site.sinks}
            value = next(iter(values))
            source = nodes[site.source]
            shared = site.weight and (len(source.inputs[1].uses()) != 1 or stored.get(site.source, 1) > 1)  # type: ignore[union-attr]
            plain = all(sink.node in alone and sink.span == 1 for sink in site.sinks)
            if len(values) == 1 and value is not None and plain and not shared:
                found[name_of(value)] = site
        return found

    def _round_group(
        self,
        walk: Walk,
        group: list[Layer],
        moments: Moments,
        site: Site | None,
    ) -> None:
        """Round the layers that read one tensor."""
        scaling = site is not None and all(
            planned.algorithm == AUTO or get_algorithm(planned.algorithm).scales for planned, _, _ in group
        )
        factors = self._factors(group, moments) if scaling else None
        found = [self._best(planned, rows, moments, factors) for planned, _, rows in group]
        if factors is not None and any(planned.algorithm == AUTO for planned, _, _ in group):
            plain = [self._best(planned, rows, moments, None) for planned, _, rows in group]
            if sum(each[2] for each in plain) <= sum(each[2] for each in found):
                found, factors = plain, None
        if factors is not None and site is not None:
            self.factors[site.tensor] = factors
            self._divide_source(site, factors)
        for (planned, node, rows), (weights, name, _) in zip(group, found, strict=True):
            if planned.key not in self.weights:
                self._keep(planned, weights, name, rows if factors is None else rows * factors)
            self._put(walk, planned, node, factors)

    def _best(
        self, planned: BlockedNode, rows: NDArray[Any], moments: Moments, factors: NDArray[np.float32] | None
    ) -> tuple[BlockWeights, str, float]:
        """A weight rounded as asked for, or as errs least; the name of the algorithm, and the error of the outputs."""
        if factors is not None:
            rows, moments = rows * factors, moments.divided(factors)
        names = [planned.algorithm]
        if planned.algorithm == AUTO:
            names = [name for name in ALGORITHMS if get_algorithm(name).scales == (factors is not None)]
            names += ["rtn"] if factors is not None else []
        found = []
        for name in names:
            weights = get_algorithm(name).quantize(rows, planned.scheme, moments)
            found.append((weights, name, weights.error(rows, moments.matrix)))
        return min(found, key=lambda each: each[2])

    def _factors(self, group: list[Layer], moments: Moments) -> NDArray[np.float32] | None:
        parts = [(planned.scheme, rows[:: max(1, len(rows) // _SEARCHED)]) for planned, _, rows in group]

        def error(factors: NDArray[np.float32]) -> float:
            scaled = moments.divided(factors)
            total = 0.0
            for scheme, rows in parts:
                weights = get_algorithm("awq").quantize(rows * factors, scheme, scaled)
                total += weights.error(rows * factors, scaled.matrix)
            return total

        found = choose_factors([rows for _, rows in parts], moments, error)
        return None if found is None else found[0]

    def _divide_source(self, site: Site, factors: NDArray[np.float32]) -> None:
        """Divide what a rounded layer gives: each channel is a row of its weight, with scales of its own."""
        for planned, _, _ in self.layers:
            if planned.name == site.source and planned.key in self.weights:
                weights = self.weights[planned.key]
                self.weights[planned.key] = replace(weights, scales=weights.scales / factors[:, np.newaxis])

    def _put(
        self,
        walk: Walk,
        planned: BlockedNode,
        node: ir.Node,
        factors: NDArray[np.float32] | None = None,
    ) -> None:
        """Let the walk go on with a rounded weight, as if nothing were scaled."""
        if node.graph is not self.graph.model.graph:
            return
        reals = self.weights[planned.key].dequantize()
        if factors is not None:
            reals = reals / factors
        value = node.inputs[planned.index]
        assert value is not None  # it is the weight
        walk.replace(name_of(value), np.ascontiguousarray(reals.T if in_columns(node) else reals))

    def _keep(self, planned: BlockedNode, weights: BlockWeights, name: str, rows: NDArray[Any]) -> None:
        lo, hi, signal = extent(rows)
        noise = weights.error(rows) / rows.size
        self.weights[planned.key] = self._stored(weights)
        scale = float(np.abs(weights.scales).max())
        self.errors[planned.key] = LayerError(planned.weight, name, lo, hi, scale, signal, noise)
        for array in (rows, self.weights[planned.key].data, self.weights[planned.key].scales):
            forget(array)

    def _stored(self, weights: BlockWeights) -> BlockWeights:
        """The same, in a file where the model is too large for memory."""
        if self.graph.scratch is None:
            return weights
        return replace(
            weights,
            data=self.graph.tensor(weights.data, "data").numpy(),
            scales=self.graph.tensor(weights.scales, "scales").numpy(),
        )


def _by_data(planned: BlockedNode) -> bool:
    return planned.algorithm == AUTO or needs_data(planned.algorithm)


def _rounded(planned: BlockedNode, rows: NDArray[Any], name: str) -> BlockWeights:
    try:
        return get_algorithm(name).quantize(rows, planned.scheme, None)
    except DataError as problem:
        raise ModelError(f"weight {planned.weight!r}: {problem.message}", hint="mend the model: it holds NaN") from None

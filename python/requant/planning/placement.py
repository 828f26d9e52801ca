"""Which part of a plan pays: integers only where this machine runs them faster than floats.

Every node of the float model and of the quantized one is timed in its place by the runtime's own profile, and the
cheapest assignment found (``partition``). What a conversion costs depends on what stands around it (layouts, fusions),
so several prices are tried, each giving a plan; whole models then run in turn, and the fastest plan is kept.
"""

from __future__ import annotations

import logging
import re
import statistics
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from requant.onnx.names import name_of
from requant.planning.partition import Times, partition
from requant.runtime import open_runner, profile, run_seconds
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.building.dynamic import IntegerWeights
    from requant.building.resolve import Resolved
    from requant.calibration.choosing import Choice
    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan
    from requant.runtime import Event
    from requant.serialized import SerializedModel

    Feeds = Mapping[str, NDArray[Any]]
    #: From the nodes to be left in float, with reasons, to a quantized model.
    Build = Callable[[Mapping[str, str]], "Candidate"]

logger = logging.getLogger(__name__)

_PROFILE_RUNS = 30
#: Microseconds that a conversion takes however small the tensor is, and for each byte of float.
_CALL, _BYTE = 2.0, 0.12e-3
#: Multiples of that price; the largest moves only large regions.
_PRICES = (0.3, 1.0, 3.0, 10.0)
#: A plan with less in integers must be faster by this factor to be preferred.
WORTH = 1.02
_SECONDS = 1.5  # for each candidate
_ROUNDS = (7, 60)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan, its integers, the model, the ranges chosen, what was done to weights, and what must be said of it.

    ``halves`` counts the constants that are stored in half precision.
    """

    plan: QuantPlan
    resolved: Resolved
    weights: IntegerWeights
    model: SerializedModel
    choices: Mapping[str, Choice] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    halves: int = 0

    @property
    def is_quantized(self) -> bool:
        """Whether anything is stored in less than float32."""
        return bool(self.plan.nodes or self.plan.dynamic or self.halves)

    @property
    def integer(self) -> frozenset[str]:
        """The nodes that run on integers."""
        return frozenset(node.name for node in self.plan.nodes)


def slower_sets(graph: Graph, whole: Candidate, feeds: Feeds) -> Iterator[dict[str, str]]:
    """Nodes of ``whole`` to leave in float, with reasons: those on the float side of the cut at each price.

    Args:
        graph: the prepared float model.
        whole: a model with more in integers than may pay.
        feeds: one sample.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    times = _Times(graph, profile(graph.serialize(), feeds, _PROFILE_RUNS), profile(whole.model, feeds, _PROFILE_RUNS))
    for price in _PRICES:
        yield _slower_nodes(graph, whole.plan, times, feeds, price)


def place(
    graph: Graph,
    reference: SerializedModel,
    build: Build,
    feeds: Feeds,
    presumed: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Candidate, str]:
    """The fastest of several plans on this machine, one thread, for one sample; and a line about those that were tried.

    Args:
        graph: the prepared float model, whose node names ``build`` knows.
        reference: the float model as the user gave it, which plans are compared with.
        build: makes a plan and its model; called with ``{}`` for the plan with all that can be integer.
        feeds: one sample.
        presumed: nodes that are left in float where nothing is measured, with reasons: tried as well.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    whole = build({})
    candidates = {whole.integer: whole}
    for slower in filter(None, (presumed, *slower_sets(graph, whole, feeds))):
        candidate = build(slower)
        if candidate.plan.nodes or candidate.plan.dynamic:
            candidates.setdefault(candidate.integer, candidate)
    # Most integers first; another must be faster by more than noise.
    order = sorted(candidates.values(), key=lambda candidate: -len(candidate.integer))
    speeds = [race.speedup for race in run_races([reference, *(candidate.model for candidate in order)], feeds)]
    best = 0
    for index, speed in enumerate(speeds):
        if speed > speeds[best] * WORTH:
            best = index
    walked = ", ".join(
        f"{counted(len(c.integer), 'node(s)')} {speed:.2f} x" for c, speed in zip(order, speeds, strict=True)
    )
    kept = counted(len(order[best].integer), "node(s)")
    note = f"--optimize latency tried, in speed against float: {walked}; kept {kept}"
    logger.info("%s", note)
    return order[best], note


class _Times:
    """Microseconds of each node on either side."""

    def __init__(self, graph: Graph, in_float: Sequence[Event], quantized: Sequence[Event]) -> None:
        owner = {name_of(output): name_of(node) for node in graph.nodes for output in node.outputs}
        self.in_float = _by_node(in_float, owner)
        self.quantized = _by_node(quantized, owner)
        self.bytes = {name: event.output_bytes for event in in_float for name in [_node(event.name, owner)] if name}
        timed = frozenset(self.in_float)
        for node in graph.nodes:
            if node.name not in timed:
                self._take_from_fused(node, timed)

    def _take_from_fused(self, node: Any, timed: frozenset[str]) -> None:
        """``node`` was fused into one behind it, which has the time of both: that is the first one's."""
        last = node
        while last.name not in timed:
            users = list(last.outputs[0].uses()) if len(last.outputs) == 1 else []
            if len(users) != 1:
                return
            last = users[0].node
        if last.name in self.in_float:
            self.in_float[node.name] = self.in_float.pop(last.name)
            self.bytes[node.name] = self.bytes.get(last.name, 0)


def _by_node(events: Sequence[Event], owner: Mapping[str, str]) -> dict[str, float]:
    times: dict[str, float] = {}
    for event in events:
        name = _node(event.name, owner)
        times[name] = times.get(name, 0.0) + event.microseconds
    return times


def _node(event: str, owner: Mapping[str, str]) -> str:
    """The node of the graph that an event belongs to: onnxruntime appends to names, or names a node by its output."""
    event = re.sub(r"_token_\d+$", "", event)
    return owner.get(event.removesuffix("_nchwc"), event)


def _slower_nodes(graph: Graph, plan: QuantPlan, times: _Times, feeds: Feeds, price: float) -> dict[str, str]:
    """The nodes of ``plan`` that are on the float side of the cheapest cut, each with its reason."""
    inputs: Mapping[str | None, int] = {name: array.nbytes for name, array in feeds.items()}

    def crossing(value: ir.Value) -> float:
        producer = value.producer()
        size = inputs.get(value.name, 0) if producer is None else times.bytes.get(name_of(producer), 0)
        return price * (_CALL + _BYTE * size)

    slower = partition(graph, plan, Times(times.in_float, times.quantized), crossing).in_float
    return dict.fromkeys(slower, "it is slower in integers on this machine")


@dataclass(frozen=True, slots=True)
class Race:
    """How a model did against another one: median milliseconds of a run, and the median ratio of the two's times."""

    ms: float
    speedup: float


def run_races(models: Sequence[SerializedModel], feeds: Feeds, *, shorter: int = 1) -> list[Race]:
    """How each model but the first did against the first: all run in turn, several rounds, on one thread.

    They run ``shorter`` times less than where the result decides.
    """
    runners = [open_runner(model, threads=1) for model in models]
    once = min(run_seconds(runner, feeds, 1) for runner in runners for _ in range(2))
    repeats = max(1, int(0.002 / max(once, 1e-6)))
    low, high = _ROUNDS
    rounds = min(high, max(low, int(_SECONDS / shorter / max(once * repeats, 1e-6))))
    taken = [[run_seconds(runner, feeds, repeats) for runner in runners] for _ in range(rounds)]
    return [
        Race(
            1e3 * statistics.median(times[i] for times in taken),
            statistics.median(times[0] / times[i] for times in taken),
        )
        for i in range(1, len(models))
    ]

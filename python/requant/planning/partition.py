"""Which part of a plan pays: the cheapest assignment of nodes to floats and integers, as a minimum cut.

To keep a node on either side costs its time there; a tensor that crosses from one side to the other costs a conversion.
The times are measured (``placement``) or estimated from shapes (``worth``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.onnx.names import name_of
from requant.planning.mincut import Network

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    import onnx_ir as ir  # noqa: TID251 - for annotations only

    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan

_OUTSIDE = ("whoever feeds and reads the model",)


@dataclass(frozen=True, slots=True)
class Times:
    """What each node of the main graph takes on either side, by its name: microseconds; 0 where nothing is said.

    A clamp that ``in_float`` says nothing of has no time of its own, and stands on its producer's side.
    """

    in_float: Mapping[str, float]
    quantized: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Partition:
    """The cheapest assignment: which nodes of the plan are better left in float, and what the planned nodes take."""

    in_float: tuple[str, ...]
    microseconds: float


def partition(graph: Graph, plan: QuantPlan, times: Times, crossing: Callable[[ir.Value], float]) -> Partition:
    """The cheapest assignment of the nodes of ``plan``.

    Args:
        graph: the prepared float model.
        plan: what is to be integer.
        times: of its nodes.
        crossing: microseconds that it takes to convert a tensor.
    """
    network = Network()
    planned = {node.name for node in plan.nodes}
    network.cost(_OUTSIDE, on_source_side=0.0, on_sink_side=math.inf)
    for node in graph.nodes:
        name = name_of(node)
        absorbed = node.op_type in ("Relu", "Clip") and name not in times.in_float
        if name in planned or absorbed:
            float_time, integer_time = times.in_float.get(name, 0.0), times.quantized.get(name, 0.0)
            network.cost(name, on_source_side=float_time, on_sink_side=integer_time)
        else:
            network.cost(name, on_source_side=0.0, on_sink_side=math.inf)
    for value, producer, users in _tensors(graph):
        to_integer, to_float = ("Q", value.name), ("DQ", value.name)
        cost = crossing(value)
        free = producer in planned and value.name not in plan.tensors  # it gives float anyway
        network.cost_between(producer, to_integer, cost)
        network.cost_between(to_float, producer, 0.0 if free else cost)
        for user in users:  # all of them share one conversion
            network.cost_between(to_integer, user, math.inf)
            network.cost_between(user, to_float, math.inf)
    in_float, cost = network.cut()
    return Partition(tuple(node.name for node in plan.nodes if node.name in in_float), cost)


def _tensors(graph: Graph) -> Iterator[tuple[ir.Value, Hashable, list[Hashable]]]:
    """The tensors of the main graph, each with what gives it and what reads it."""
    given = (output for node in graph.nodes for output in node.outputs)
    for value in (*graph.model.graph.inputs, *given):
        giver = value.producer()
        users: list[Hashable] = [name_of(use.node) for use in value.uses()]
        if value.is_graph_output():
            users.append(_OUTSIDE)
        yield value, _OUTSIDE if giver is None else name_of(giver), users

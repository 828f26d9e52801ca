"""Which part of a plan pays: the cheapest assignment of nodes to floats and integers, as a minimum cut.

To keep a node on either side costs its time there; a tensor that crosses from one side to the other costs a conversion.
The times are measured (``placement``) or estimated from shapes (``worth``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.planning.mincut import Network

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

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


def faster_in_float(graph: Graph, plan: QuantPlan, times: Times, crossing: Callable[[ir.Value], float]) -> list[str]:
    """The nodes of ``plan`` that are on the float side of the cheapest cut.

    Args:
        graph: the prepared float model.
        plan: what is to be integer.
        times: of its nodes.
        crossing: microseconds that it takes to convert a tensor.
    """
    network = Network()
    planned = {node.name for node in plan.nodes}
    for node in graph.nodes:
        name = node.name or ""
        absorbed = node.op_type in ("Relu", "Clip") and name not in times.in_float
        movable = name in planned or absorbed
        network.cost(
            name,
            on_source_side=times.in_float.get(name, 0.0) if movable else 0.0,
            on_sink_side=times.quantized.get(name, 0.0) if movable else math.inf,
        )
    for node in graph.nodes:
        name = node.name or ""
        for output in node.outputs:
            users: list[Hashable] = [use.node.name or "" for use in output.uses()]
            if output.is_graph_output():
                users.append(_OUTSIDE)
            cost = crossing(output)
            free = name in planned and output.name not in plan.tensors  # it gives float anyway
            _cross(network, output.name or "", name, users, quantize=cost, dequantize=0.0 if free else cost)
    for value in graph.model.graph.inputs:
        users = [use.node.name or "" for use in value.uses()]
        _cross(network, value.name or "", _OUTSIDE, users, quantize=crossing(value), dequantize=0.0)
    network.cost(_OUTSIDE, on_source_side=0.0, on_sink_side=math.inf)
    slower = network.source_side()
    return [node.name for node in plan.nodes if node.name in slower]


def _cross(
    network: Network, tensor: str, producer: Hashable, users: Sequence[Hashable], *, quantize: float, dequantize: float
) -> None:
    """The cost of quantizing a tensor of a float producer for integer users, and the reverse, once for all users."""
    to_integer, to_float = ("Q", tensor), ("DQ", tensor)
    network.cost_between(producer, to_integer, quantize)
    network.cost_between(to_float, producer, dequantize)
    for user in users:
        network.cost_between(to_integer, user, math.inf)
        network.cost_between(user, to_float, math.inf)

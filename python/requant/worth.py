"""Where integers would cost more than they save, judged from shapes and from what a target says of its kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from requant.onnx.graph import int_attribute, rank
from requant.partition import Times, faster_in_float

if TYPE_CHECKING:
    import onnx_ir as ir  # noqa: TID251 - for annotations only

    from requant.onnx.graph import Graph
    from requant.plan import QuantPlan
    from requant.targets import Cost, Target

_SPATIAL = 2  # the first axis behind batch and channels
#: What is assumed of an axis of free size other than the batch.
_FREE = 64
#: Microseconds that a conversion takes however small the tensor is.
_CALL = 8.0
#: What integers may lose on a node, in microseconds and as a share, before it counts: what no estimate can tell.
_DOUBT, _SHARE = 5.0, 0.1
DEPTHWISE = "depthwise Conv"


def presumably_slower(graph: Graph, plan: QuantPlan, target: Target) -> list[str]:
    """The nodes of ``plan`` that ``target`` presumably runs faster in float, conversions included.

    Estimated from shapes alone; axes of free size count as 64, a free batch as 1.
    """
    if not target.costs:
        return []
    in_float, quantized = {}, {}
    by_name = {node.name: node for node in graph.nodes}
    for planned in plan.nodes:
        node = by_name.get(planned.name)
        if node is None:  # it stands in a body
            continue
        costs = target.costs.get(_kind(node))
        if costs is None:
            # Nothing says that it is slower: a product never is, and what moves values costs little on either side.
            in_float[planned.name] = math.inf if planned.weight is not None else 0.0
            continue
        in_float[planned.name] = estimate(node, costs[0])
        quantized[planned.name] = max(0.0, estimate(node, costs[1]) * (1 - _SHARE) - _DOUBT)

    def crossing(value: ir.Value) -> float:
        return _CALL + 1e-3 * target.crossing * math.prod(_sizes(value))

    return faster_in_float(graph, plan, Times(in_float, quantized), crossing)


def estimate(node: ir.Node, cost: Cost) -> float:
    """Microseconds that ``node`` takes by ``cost``, apart from the call."""
    output = _sizes(node.outputs[0])
    elements = math.prod(output)
    if node.op_type == "GlobalAveragePool":
        return 1e-3 * cost.window * math.prod(_sizes(node.inputs[0]))
    if node.op_type != "Conv":
        return 1e-3 * (cost.output * elements + cost.window * elements * math.prod(_kernel(node)))
    channels = output[1]
    weight = _sizes(node.inputs[1])
    taps = elements // channels * math.prod(weight[_SPATIAL:])  # positions of all windows
    group = int_attribute(node, "group", 1)
    together = -(-channels // group // cost.lanes) * cost.lanes * group
    window = taps * weight[1] * group
    per_tap = cost.tap + weight[1] * (cost.window * group + cost.product * together)
    return 1e-3 * (cost.output * elements + taps * per_tap) if window else 0.0


def _kind(node: ir.Node) -> str:
    """Under which name costs are known."""
    if node.op_type == "Conv":
        weight = node.inputs[1]
        lone = weight is not None and weight.shape is not None and weight.shape[1] == 1
        return DEPTHWISE if lone and int_attribute(node, "group", 1) > 1 else "Conv"
    if node.op_type == "Softmax" and int_attribute(node, "axis", -1) not in (-1, (rank(node.inputs[0]) or 0) - 1):
        return "Softmax across"
    return node.op_type


def _kernel(node: ir.Node) -> tuple[int, ...]:
    attribute = node.attributes.get("kernel_shape")
    return () if attribute is None else tuple(attribute.as_ints())


def _sizes(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of ``value``, with something in place of each free size; of an unknown one nothing is said."""
    if value is None or value.shape is None:
        return (_FREE, _FREE)
    sizes = (size if isinstance(size, int) else (1 if axis == 0 else _FREE) for axis, size in enumerate(value.shape))
    return tuple(sizes) or (1,)


def elements(value: ir.Value | None, first: int = 0) -> int | None:
    """Elements of ``value`` from axis ``first`` on, a free batch counted as 1; None where a size is not known."""
    if value is None or value.shape is None:
        return None
    sizes = [1 if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(value.shape)]
    known = [size for size in sizes[first:] if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes[first:]) else None

"""Where integers would cost more than they save, judged from shapes and from what a target says of its kernels."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

from requant.onnx.names import name_of
from requant.onnx.nodes import int_attribute, rank
from requant.onnx.passes.shapes import assumed, is_size
from requant.planning.partition import Times, partition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import onnx_ir as ir  # noqa: TID251 - for annotations only

    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan
    from requant.targets import Cost, Costs, Target

    #: Shapes of tensors by name.
    Shapes = Mapping[str, tuple[int, ...]]

_SPATIAL = 2  # the first axis behind batch and channels
#: What is assumed of a tensor of unknown rank.
_UNKNOWN = (64, 64)
#: What integers may lose on a node, in microseconds and as a share, before it counts: what no estimate can tell.
_DOUBT, _SHARE = 1.0, 0.1
#: What integers may lose on a whole model.
_SLOWER = 1.02
DEPTHWISE, GROUPED, NARROW, SIGNAL = "depthwise Conv", "grouped Conv", "narrow Conv", "signal Conv"
#: Axes of a signal such as sound, and of the weight of its convolution.
_SIGNAL = 3
#: Input channels from which on a convolution is not narrow.
_NARROW = 4
_PRODUCTS = ("Gemm", "MatMul")


def presumably_slower(
    graph: Graph,
    plan: QuantPlan,
    target: Target,
    cpu: str | None,
    fed: Shapes = MappingProxyType({}),
    *,
    certain: bool = True,
    products: bool = False,
) -> tuple[str, ...]:
    """The nodes of ``plan`` that ``target`` presumably runs faster in float, conversions included.

    Estimated from shapes alone (``assumed``), those that inputs are ``fed`` in among them, for one kind of CPU, or for
    all kinds alike. ``certain`` are only nodes that lose more than an estimate can be wrong; ``products`` may be among
    them.
    """
    if not target.costs:
        return ()
    times, crossing = _estimates(graph, plan, _costs_for(target, cpu), fed)
    in_float, quantized = times.in_float, times.quantized
    if not products:
        stay = {node.name for node in graph.nodes if node.op_type in _PRODUCTS}
        in_float = {name: math.inf if name in stay else time for name, time in in_float.items()}
    if certain:
        quantized = {name: max(0.0, time * (1 - _SHARE) - _DOUBT) for name, time in quantized.items()}
    return partition(graph, plan, Times(in_float, quantized), crossing).in_float


def is_presumably_slower(graph: Graph, plan: QuantPlan, target: Target, cpu: str | None, fed: Shapes) -> bool:
    """Whether ``plan`` as a whole, conversions included, presumably makes the model slower on ``target``.

    Estimated from shapes alone, those that inputs are ``fed`` in among them, for one kind of CPU, or for all alike.
    """
    if not target.costs:
        return False
    in_float, in_integers = whole_times(graph, plan, target, cpu, fed)
    return in_integers > in_float * _SLOWER


def whole_times(
    graph: Graph,
    plan: QuantPlan,
    target: Target,
    cpu: str | None,
    fed: Shapes,
    *,
    left: Collection[str] = (),
) -> tuple[float, float]:
    """Microseconds that the nodes of ``plan`` presumably take in float, and as planned with all conversions.

    Those of ``left`` stay float.
    """
    times, crossing = _estimates(graph, plan, _costs_for(target, cpu), fed)
    in_float = {name: 0.0 if time == math.inf else time for name, time in times.in_float.items()}
    sides = Times(
        {node.name: in_float.get(node.name, 0.0) if node.name in left else math.inf for node in plan.nodes},
        {**times.quantized, **dict.fromkeys(left, math.inf)},
    )
    return sum(in_float.values()), partition(graph, plan, sides, crossing).microseconds


def _costs_for(target: Target, cpu: str | None) -> tuple[Costs, ...]:
    """Those of a kind of CPU, or those of all kinds, for a model that may run on any."""
    known = target.costs.get(cpu or "")
    return tuple(target.costs.values()) if known is None else (known,)


def _estimates(
    graph: Graph, plan: QuantPlan, kinds: Sequence[Costs], fed: Shapes
) -> tuple[Times, Callable[[ir.Value], float]]:
    """What the nodes of ``plan`` and the conversions of tensors take, on average of some ``kinds`` of CPUs."""
    sizes = assumed(graph.model, fed)
    in_float, quantized = {}, {}
    by_name = {node.name: node for node in graph.nodes}
    types = {node.name: node.op_type for node in plan.nodes}
    for planned in plan.nodes:
        node = by_name.get(planned.name)
        if node is None:  # it stands in a body
            continue
        known = [pair for costs in kinds if (pair := _costs_of(node, costs)) is not None]
        if not known:
            # Nothing says that it is slower: with a weight it never is, and what moves values costs little either way.
            in_float[planned.name] = math.inf if planned.weight is not None else 0.0
            continue
        in_float[planned.name], quantized[planned.name] = (
            sum(estimate(node, cost, sizes) for cost in side) / len(known) for side in zip(*known, strict=True)
        )

    def crossing(value: ir.Value) -> float:
        elements = math.prod(sizes.get(name_of(value), _UNKNOWN))
        bare = _is_for_products(value, types)
        each = [(costs.bare if bare and costs.bare else costs.conversion) for costs in kinds]
        return 1e-3 * sum(cost.call + cost.output * elements for cost in each) / len(kinds)

    return Times(in_float, quantized), crossing


def _is_for_products(value: ir.Value, planned: Mapping[str, str]) -> bool:
    """Whether of the ``planned`` nodes, by op type, only products read ``value``, and none but a product gives it."""
    readers = {planned.get(name_of(node)) for node in value.consumers()} - {None}
    giver = value.producer()
    given = None if giver is None else planned.get(name_of(giver))
    return bool(readers) and readers.issubset(_PRODUCTS) and (given is None or given in _PRODUCTS)


def estimate(node: ir.Node, cost: Cost, sizes: Mapping[str, tuple[int, ...]]) -> float:
    """Microseconds that ``node`` takes by ``cost``, where its tensors have these ``sizes``."""
    return 1e-3 * (cost.call + _by_size(node, cost, sizes))


def _by_size(node: ir.Node, cost: Cost, sizes: Mapping[str, tuple[int, ...]]) -> float:
    """Its nanoseconds apart from the call."""

    def size(value: ir.Value | None) -> tuple[int, ...]:
        return sizes.get((value and value.name) or "", _UNKNOWN)

    output = size(node.outputs[0])
    elements = math.prod(output)
    if node.op_type == "GlobalAveragePool":
        return cost.window * math.prod(size(node.inputs[0]))
    if node.op_type in _PRODUCTS:
        return (cost.output + cost.product * size(node.inputs[0])[-1]) * elements
    if node.op_type != "Conv":
        return (cost.output + cost.window * math.prod(_kernel(node))) * elements
    weight = size(node.inputs[1])
    channels = weight[0]
    taps = elements // channels * math.prod(weight[_SPATIAL:])  # positions of all windows
    places = max(math.prod(output[_SPATIAL:]), 1)
    padded = -(-places // cost.places) * cost.places / places
    group = int_attribute(node, "group", 1)
    together = -(-channels // group // cost.lanes) * cost.lanes * group
    copies = cost.group * group if group > 1 else 0.0
    per_tap = cost.tap + copies + weight[1] * (cost.window * group + cost.product * padded * together)
    per_tap += cost.rest * (channels % cost.lanes)
    rows = taps // max(output[-1], 1) * weight[1] * group
    return cost.output * elements + taps * per_tap + cost.row * rows


def _costs_of(node: ir.Node, costs: Costs) -> tuple[Cost, Cost] | None:
    """What is known of ``node``; of a convolution what is known of any, where nothing else is."""
    kind = _kind(node)
    return costs.ops.get(kind) or (costs.ops.get("Conv") if kind in (GROUPED, NARROW) else None)


def _kind(node: ir.Node) -> str:
    """Under which name costs are known."""
    if node.op_type == "Conv":
        group, weight = int_attribute(node, "group", 1), node.inputs[1]
        shape = None if weight is None or weight.shape is None else list(weight.shape)
        if shape is not None and len(shape) == _SIGNAL:
            return SIGNAL if group == 1 else ""  # of those with groups nothing is known: floats have no fast kernels
        if group > 1:
            return DEPTHWISE if shape is not None and shape[:2] == [group, 1] else GROUPED
        return NARROW if shape is not None and isinstance(shape[1], int) and shape[1] < _NARROW else "Conv"
    if node.op_type == "Softmax" and int_attribute(node, "axis", -1) not in (-1, (rank(node.inputs[0]) or 0) - 1):
        return "Softmax across"
    return node.op_type


def _kernel(node: ir.Node) -> tuple[int, ...]:
    attribute = node.attributes.get("kernel_shape")
    return () if attribute is None else tuple(attribute.as_ints())


def elements(value: ir.Value | None, first: int = 0) -> int | None:
    """Elements of ``value`` from axis ``first`` on, a free batch counted as 1; None where a size is not known."""
    if value is None or value.shape is None:
        return None
    sizes = [1 if axis == 0 and not is_size(size) else size for axis, size in enumerate(value.shape)]
    known = [size for size in sizes[first:] if is_size(size)]
    return math.prod(known) if len(known) == len(sizes[first:]) else None

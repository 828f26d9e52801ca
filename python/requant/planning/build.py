"""What will be quantized, and why the rest will not: decided from the graph alone, before any data is seen.

Four rules give the plan.

1. An op that computes (convolution, product) is quantized when the target runs it on integers and its weight is known.
2. An op that only follows (residual add, pooling, concat) or moves values is quantized when all it reads is integer
   already and something integer reads what it gives, so that a chain stays in integers and no lone Q/DQ pair is left.
3. A product that may give float for free does so, unless an integer op reads it.
4. What the target presumably runs faster in float stays so (``worth``), unless a rule includes it or latency is
   measured anyway.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from requant.onnx.bodies import Surroundings
from requant.onnx.names import name_of
from requant.onnx.nodes import constant, is_float, may_touch_float, rank
from requant.onnx.ops import OPS, Kind, OpSpec, Role, Tie, row_of
from requant.onnx.passes.activations import hard_sigmoid
from requant.onnx.passes.shapes import has_free_sizes
from requant.onnx.sites import multiplies_back
from requant.planning.operands import activations, is_masked, refuse_activation, refuse_constant, refuse_factors
from requant.planning.plan import NodePlan, QuantPlan, Saturation, Skip
from requant.planning.selection import excluded, insisted, names_of
from requant.planning.tensors import Activation, TensorPlan, plan_tensors
from requant.planning.worth import elements, presumably_slower, whole_times
from requant.targets import CPUS, Target, get_target
from requant.types import Range
from requant.uncollected import uncollected

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import onnx_ir as ir  # noqa: TID251 - for annotations only

    from requant.config import QuantConfig
    from requant.onnx.graph import Graph
    from requant.types import FixedParams

FASTER = "it is faster in float"
#: Why nodes are left in float that each lose less than an estimate can be wrong.
TOGETHER = "the model is faster with it and others in float"
#: Why nodes are left in float on which integers save nothing, or lose less than an estimate can be wrong.
NO_FASTER = "integers make it no faster"
#: Where integers are cheapest: a model that is slower even there, by such a share and microseconds, is so everywhere.
#: One that gains less than the share is left as it is: estimates cannot tell which of its nodes pay.
_CHEAPEST, _SHARE, _LOSS = CPUS[-1], 0.05, 10.0


@uncollected()
def build_plan(graph: Graph, config: QuantConfig, left_out: Mapping[str, str] = MappingProxyType({})) -> QuantPlan:
    """The plan for ``graph`` under ``config``; pure, the graph is not changed.

    The nodes named in ``left_out`` stay float, for the reason given there.
    """
    target = get_target(config.target)
    plan, faster = _presumed(graph, config, target, _Planner(graph, config, target, {}).plan())
    if not left_out:
        return plan
    # What stays float for speed does not depend on ``left_out``: so a part has nothing that the whole has not.
    return _Planner(graph, config, target, {**faster, **left_out}).plan()


def _presumed(graph: Graph, config: QuantConfig, target: Target, whole: QuantPlan) -> tuple[QuantPlan, dict[str, str]]:
    """What of ``whole`` is not left in float for the sake of speed, and what is, with the reason.

    That is what certainly loses. Where sizes are known and the model clearly gains, it is also what saves nothing even
    where integers are cheapest, as it would be rounded for nothing; where it clearly loses, whatever loses.
    Where latency is measured nothing is presumed, and a user who names a node means it.
    """
    if config.optimize == "latency" or not target.costs:
        return whole, {}
    meant = insisted(graph.all_nodes(), config.ordered_rules)

    def without(slower: Iterable[str], reason: str, known: Mapping[str, str]) -> tuple[QuantPlan, dict[str, str]]:
        left = {name: known.get(name, reason) for name in slower if name not in meant}
        part = _Planner(graph, config, target, left).plan() if left else whole
        return (part, left) if part.nodes else (whole, {})  # where nothing would be left, that is what to do

    def times(plan: QuantPlan) -> tuple[float, float]:
        left = {node.name for node in whole.nodes} - {node.name for node in plan.nodes}
        return whole_times(graph, whole, target, config.cpu or _CHEAPEST, {}, left=left)

    plan, faster = without(presumably_slower(graph, whole, target, config.cpu), FASTER, {})
    if has_free_sizes(graph.model):
        return plan, faster
    in_float, time = times(plan)
    if time < in_float * (1 - _SHARE):
        idle = presumably_slower(graph, plan, target, config.cpu or _CHEAPEST, certain=False)
        part, more = without((*faster, *idle), NO_FASTER, faster)
        return (part, more) if more and times(part)[1] <= time else (plan, faster)
    if time > in_float + max(in_float * _SHARE, _LOSS):
        slower = presumably_slower(graph, whole, target, config.cpu, certain=False)
        part, more = without(slower, TOGETHER, faster)
        if more and times(part)[1] < time:
            return part, more
    return plan, faster


def presumed_in_float(graph: Graph, config: QuantConfig) -> dict[str, str]:
    """The nodes that stay float for the sake of speed where latency is not measured, each with the reason."""
    plan = build_plan(graph, replace(config, optimize="none"))
    return {skip.node: skip.reason for skip in plan.skipped if skip.reason in (FASTER, NO_FASTER, TOGETHER)}


def nodes_of(graph: Graph, plan: QuantPlan, tensors: Collection[str]) -> tuple[str, ...]:
    """The nodes of ``plan`` that read or give one of ``tensors``."""
    if not tensors:
        return ()
    outputs = {name_of(node): {value.name for value in node.outputs} for node in graph.all_nodes()}
    return tuple(
        node.name
        for node in plan.nodes
        if outputs[node.name] & set(tensors) or any(name in tensors for _, name in node.activations)
    )


class _Planner:
    def __init__(self, graph: Graph, config: QuantConfig, target: Target, left_out: Mapping[str, str]) -> None:
        self.config = config
        self.rules = config.ordered_rules
        self.target = target
        self.nodes = list(graph.all_nodes())
        self.main = graph.model.graph
        self.surroundings = Surroundings(graph)
        self.left_out = excluded(graph, config) | dict(left_out)
        # Where latency is measured nothing is presumed, and a user who names a node means it.
        self.presumes = config.optimize != "latency"
        self.insisted = insisted(self.nodes, self.rules)
        self.chosen: dict[ir.Node, OpSpec] = {}
        self.reasons: dict[ir.Node, str] = {}

    def plan(self) -> QuantPlan:
        self._choose_compute()
        self._choose_followers()
        self._drop_loose_followers()
        tensors = self._tensors()
        nodes = tuple(self._node_plan(node, row, tensors) for node, row in self.chosen.items())
        skipped = tuple(
            Skip(name_of(node), node.op_type, self.reasons[node])
            for node in self.nodes
            if node in self.reasons and not self._absorbed(node, tensors)
        )
        guarded = self.target.requantizes | self.target.behind_convolutions.keys()
        names = frozenset(name_of(node) for node in self.reasons if node.domain == "" and node.op_type in guarded)
        return QuantPlan(nodes, tensors, skipped, guarded=names)

    # -- which nodes -------------------------------------------------------------------------------------------------

    def _choose_compute(self) -> None:
        for node in self.nodes:
            row = row_of(node)
            if not may_touch_float(node):
                continue  # shapes, indices and masks are no business of ours
            if row is None:
                self.reasons[node] = f"{node.op_type} has no integer form here"
            elif row.kind is Kind.COMPUTE:
                reason = self.left_out.get(name_of(node)) or self._hidden(node) or self._refuse_compute(node, row)
                if not reason:
                    self.chosen[node] = row
                else:
                    self.reasons[node] = reason

    def _refuse_compute(self, node: ir.Node, row: OpSpec) -> str | None:
        if node.op_type not in self.target.fused:
            return f"{self.target.name} has no integer kernel for {node.op_type}"
        for index, role in row.inputs.items():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None:
                continue
            known = constant(value) if value.name in self.main.initializers else None
            problem = refuse_activation(value) if role is Role.ACTIVATION else refuse_constant(role, value, known)
            if problem:
                return problem
        return refuse_factors(node) if node.op_type == "Gemm" else None

    def _is_faster(self, node: ir.Node) -> bool:
        """Whether ``node`` is to stay float for the sake of speed, judged from the graph alone."""
        if not self.presumes or name_of(node) in self.insisted:
            return False
        if (least := self.target.behind_convolutions.get(node.op_type)) is not None:
            size = elements(node.inputs[0])
            return (size is None or size >= least) and not self._behind_convolutions(node)
        return False

    def _behind_convolutions(self, node: ir.Node) -> bool:
        """Whether integer convolutions give all that ``node`` reads, and nothing between changes their layout."""
        seen, waiting = set(), [value for _, value in activations(node, OPS[node.op_type])]
        while waiting:
            giver = self._through_clamp(waiting.pop())
            if giver not in self.chosen or giver.op_type not in {"Conv", *self.target.keeps_layout}:
                return False
            if giver.op_type != "Conv" and giver not in seen:
                seen.add(giver)
                waiting += [value for _, value in activations(giver, self.chosen[giver])]
        return True

    def _choose_followers(self) -> None:
        for node in self.nodes:
            row = row_of(node)
            if row is None or row.kind is Kind.COMPUTE or not may_touch_float(node):
                continue
            reason = self.left_out.get(name_of(node)) or self._hidden(node) or self._refuse_follower(node, row)
            if reason:
                self.reasons[node] = reason
            else:
                self.chosen[node] = row

    def _hidden(self, node: ir.Node) -> str:
        """Why the tensors of a node in a body cannot be calibrated; empty where they can."""
        return "" if node.graph is self.main else self.surroundings.hidden(node.graph)

    def _refuse_follower(self, node: ir.Node, row: OpSpec) -> str | None:
        if row.kind is Kind.CLAMP:
            return None if self._stays(node) else "a clamp of its own: no integer op stands before it"
        supported = self.target.moves if row.kind is Kind.MOVE else self.target.fused | self.target.saturating_adds
        if node.op_type not in supported:
            return f"{self.target.name} has no integer kernel for {node.op_type}"
        if node.op_type in self.target.saturating_adds and min(hard_sigmoid(node)) <= 0.0:
            return "it is no addition that saturates: its alpha or beta is not positive"
        if any(out.uses() and not is_float(out) for out in node.outputs):
            return "its output of indices is used"
        return self._refuse_inputs(node, row) or (FASTER if self._is_faster(node) else None)

    def _stays(self, node: ir.Node) -> bool:
        """Whether a clamp is to run on integers itself, as it cannot vanish into what stands before it."""
        if not self.target.everything or not _is_clamp(node) or self._through_clamp(node.outputs[0]) is not node:
            return False
        return self._refuse_inputs(node, OPS[node.op_type]) is None

    def _refuse_inputs(self, node: ir.Node, row: OpSpec) -> str | None:
        for _, value in activations(node, row):
            if constant(value) is not None:
                return "one of its inputs is a constant"
            if not is_float(value):
                return "its input is not float32"
            if is_masked(value):
                return "its input is masked with large numbers, which would stretch its range"
            if not self.target.everything and not self._is_integer(value):
                return "its input is float"
        if node.op_type in self.target.one_scale:
            fixed = [self._fixed_params(value) for _, value in activations(node, row)]
            if any(params != fixed[0] for params in fixed):
                return f"{self.target.name} wants one scale here, and fixes that of one of its inputs"
        return None

    def _fixed_params(self, value: ir.Value) -> FixedParams | None:
        """Scale and zero point that the target fixes for ``value``, or for what it is made of."""
        giver = self._through_clamp(value)
        while giver in self.chosen and giver.op_type in self.target.one_scale:
            value = next(value for _, value in activations(giver, self.chosen[giver]))
            giver = self._through_clamp(value)
        return self.target.fixed_outputs.get(giver.op_type) if giver in self.chosen else None

    def _is_integer(self, value: ir.Value) -> bool:
        """Whether ``value`` has integers anyway: from its producer, or for a product that reads it."""
        producer = self._through_clamp(value)
        if producer in self.chosen and producer.op_type not in self.target.float_output:
            return True
        return any(
            user in self.chosen and self.chosen[user].kind is Kind.COMPUTE and index == 0
            for user, index in value.uses()
        )

    def _drop_loose_followers(self) -> None:
        """Drop followers that no integer op reads, until none is left."""
        while not self.target.everything:
            loose = [
                node
                for node, row in self.chosen.items()
                if row.kind is not Kind.COMPUTE
                and not any(self._is_read(self._after_clamp(out)) for out in node.outputs)
            ]
            if not loose:
                break
            for node in loose:
                del self.chosen[node]
                self.reasons[node] = "no integer op reads its output"

    def _is_read(self, value: ir.Value) -> bool:
        return any(
            user in self.chosen and any(i == index for i, _ in activations(user, self.chosen[user]))
            for user, index in value.uses()
        )

    def _after_clamp(self, value: ir.Value) -> ir.Value:
        """The tensor that carries the result of a node: behind the Relu or Clip that alone reads it."""
        while not value.is_graph_output() and len(value.uses()) == 1:
            user = next(iter(value.uses())).node
            if not _is_clamp(user) or user.inputs[0] is not value or user.graph is not value.graph:
                break
            value = user.outputs[0]
        return value

    def _through_clamp(self, value: ir.Value) -> ir.Node | None:
        """The node whose result ``value`` carries, looking through Relu and Clip."""
        producer = value.producer()
        while producer is not None and _is_clamp(producer):
            before = producer.inputs[0]
            if before is None or self._after_clamp(before) is not self._after_clamp(value):
                break
            producer = before.producer()
        return producer

    def _absorbed(self, node: ir.Node, tensors: Mapping[str, TensorPlan]) -> bool:
        """Whether a clamp vanishes into the quantization of what it gives."""
        return (
            _is_clamp(node) and node.outputs[0].name in tensors and self._through_clamp(node.outputs[0]) in self.chosen
        )

    # -- which tensors -----------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, TensorPlan]:
        found: dict[str, Activation] = {}
        ties: list[tuple[str, str]] = []
        for node in self.nodes:
            row = self.chosen.get(node)
            if row is None:
                continue
            read = [name_of(value) for _, value in activations(node, row)]
            for _, value in activations(node, row):
                found.setdefault(name_of(value), self._activation(value))
            for out in filter(is_float, node.outputs):
                result = self._after_clamp(out)
                if node.op_type in self.target.float_output and not self._is_read(result):
                    continue
                if node.op_type in self.target.one_scale or (row.tie is Tie.SAME_AS_INPUT and result is out):
                    ties += [(name, name_of(result)) for name in read]
                found.setdefault(name_of(result), self._activation(result))
        return plan_tensors(tuple(found.values()), ties, self.rules, self.config.activation_scheme)

    def _activation(self, value: ir.Value) -> Activation:
        """``value``, with what is known of it before any data is seen."""
        producer = value.producer()
        giver = self._through_clamp(value)
        # A clamp gives what the node before it computes: a rule for either concerns the tensor.
        names = {name_of(value), *(name for node in (producer, giver) if node is not None for name in names_of(node))}
        row = None if giver is None or giver not in self.chosen else self.chosen[giver]
        if giver is None or row is None:
            return Activation(name_of(value), frozenset(names))
        return Activation(
            name_of(value),
            frozenset(names),
            giver.op_type,
            self._before_saturation(giver) or row.fixed_range,
            self.target.fixed_outputs.get(giver.op_type),
        )

    def _before_saturation(self, node: ir.Node) -> Range | None:
        """What a HardSigmoid tells apart of the result of ``node``, where it reads nothing else but that."""
        if not multiplies_back(node):
            return None
        gate = next(iter(node.outputs[0].uses())).node
        if gate.op_type not in self.target.saturating_adds:
            return None
        alpha, beta = hard_sigmoid(gate)
        return Range(-beta / alpha, (1 - beta) / alpha)

    def _node_plan(self, node: ir.Node, row: OpSpec, tensors: Mapping[str, TensorPlan]) -> NodePlan:
        names = dict.fromkeys(Role) | {
            role: node.inputs[i].name  # type: ignore[union-attr]
            for i, role in row.inputs.items()
            if i < len(node.inputs) and node.inputs[i] is not None
        }
        axis = None
        if row.weight_axis is not None and row.kind is Kind.COMPUTE:
            axis = row.weight_axis.of(node) % (rank(node.inputs[1]) or 1)
        return NodePlan(
            name=name_of(node),
            op_type=node.op_type,
            activations=tuple((index, name_of(value)) for index, value in activations(node, row)),
            weight=names[Role.WEIGHT],
            weight_axis=axis,
            bias=names[Role.BIAS],
            saturates=self._saturation(node, tensors),
        )

    def _saturation(self, node: ir.Node, tensors: Mapping[str, TensorPlan]) -> Saturation | None:
        if node.op_type not in self.target.saturating_adds:
            return None
        giver = node.inputs[0].producer() if node.inputs[0] is not None else None
        if giver not in self.chosen:
            return Saturation.AS_ADD
        wanted = self._before_saturation(giver)  # a rule may want something else
        known = tensors[name_of(giver.outputs[0])].fixed
        return Saturation.BEFORE if wanted is not None and wanted == known else Saturation.AS_ADD


def _is_clamp(node: ir.Node) -> bool:
    row = row_of(node)
    if row is None or row.kind is not Kind.CLAMP:
        return False
    return all(bound is None or constant(bound) is not None for bound in node.inputs[1:])

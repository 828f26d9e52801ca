"""Quantization without calibration: weights become integers now, activations when the model runs.

Each float node that multiplies constant weights takes one of two forms.

* *Integer*: its input is quantized at run time, uint8, from its own least and largest value, and multiplied by int8
  weights. Chosen where the target has a kernel for it that is faster than float at the size of these weights.
* *Stored*: it stays float, and its weights are int8 in the file only; a runtime that folds constants widens them once,
  when it loads the model. Chosen for the rest, where it makes the file smaller.

All that is read is a graph, so nodes in the bodies of If, Loop and Scan are planned like those of the main graph.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.affine import quantize_array
from requant.building.resolve import saturating_pairs
from requant.onnx.blocks import finite, largest_pairs, largest_terms, quantized
from requant.onnx.names import name_of
from requant.onnx.nodes import constant, int_attribute, is_float, may_touch_float
from requant.onnx.ops import OPS, Kind, OpSpec, Role, row_of
from requant.parallel import in_order
from requant.planning.build import FASTER, build_plan
from requant.planning.operands import GIVEN_OUT
from requant.planning.plan import DynamicNode, Form, QuantPlan, Skip, WeightPlan
from requant.planning.positions import takes_positions
from requant.planning.selection import excluded
from requant.targets import Target, get_target
from requant.types import PerChannel, QuantParams, QuantScheme, QuantType
from requant.weights.plan import plan_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.config import QuantConfig
    from requant.onnx.graph import Graph
    from requant.planning.plan import NodePlan

    #: Integer weights by node name and input index.
    IntegerWeights = Mapping[tuple[str, int], "IntegerWeight"]

#: Weights that are worked on at a time at most, whatever the number of cores: the integers of each are in memory.
_WORKERS = 4
_RECURRENCE = 2  # the input that holds the recurrent weight
_STORED = "; its weights are int8 in the file"
_WORTH = 1 << 10  # weights of a layer that is faster in float, at least, to be rounded for the size of the file
_STORED_COST = 300  # bytes of the two nodes, their names and the initializers' headers, about


@dataclass(frozen=True, slots=True, eq=False)
class IntegerWeight:
    """A weight as ``(data - zero_point) * scale``, where ``scale`` broadcasts to the shape of ``data``.

    That of a table may be times ``gain`` in addition, ``[1, columns]``.
    """

    stored: NDArray[Any] | ir.TensorProtocol
    scale: NDArray[np.float32]
    zero_point: int
    gain: NDArray[np.float32] | None = None

    @property
    def data(self) -> NDArray[Any]:
        """The integers, in the weight's shape; of a weight in a file they are mapped anew each time."""
        return self.stored if isinstance(self.stored, np.ndarray) else self.stored.numpy()

    @property
    def zero_points(self) -> NDArray[Any]:
        """The zero point, in the integers' type and the shape of ``scale``."""
        return np.full(self.scale.shape, self.zero_point, self.data.dtype)


def plan_whole(graph: Graph, config: QuantConfig, left_out: Mapping[str, str] = MappingProxyType({})) -> QuantPlan:
    """The plan that ``config`` asks for; pure, the graph is not changed.

    The nodes ``left_out`` multiply in float, for the reasons given there.
    """
    if config.weight_only is not None:
        return plan_weights(graph, config)
    if config.dynamic:
        return plan_dynamic(graph, config)
    plan = build_plan(graph, config, left_out)
    return plan_rest(graph, config, plan, left_out) if config.rest == "int8" else plan


def plan_dynamic(graph: Graph, config: QuantConfig) -> QuantPlan:
    """The plan for ``graph`` without calibration; pure, the graph is not changed."""
    planned, reasons = _plan(graph, config, {}, {})
    skipped = tuple(Skip(name_of(node), node.op_type, reason) for node, reason in reasons.items())
    return QuantPlan((), {}, skipped, tuple(planned.values()))


def plan_rest(graph: Graph, config: QuantConfig, static: QuantPlan, left_out: Mapping[str, str]) -> QuantPlan:
    """``static``, and forms without calibration for what it leaves in float, bodies of If, Loop and Scan included.

    The nodes ``left_out`` are not to run on integers, for the reasons given there; their weights may be stored so.
    """
    planned, _ = _plan(graph, config, {node.name: node for node in static.nodes}, left_out)
    # What is faster in float by itself is so because its weights are few; the fewest are not worth the rounding. Layers
    # that only together are faster, or no slower, can be most of a file.
    faster = {skip.node for skip in static.skipped if skip.reason == FASTER}
    planned = {node: plan for node, plan in planned.items() if plan.name not in faster or _weighs(node) >= _WORTH}
    forms = {node.name: node.form for node in planned.values()}
    skipped = tuple(
        replace(skip, reason=skip.reason + _STORED) if forms.get(skip.node) is Form.STORED else skip
        for skip in static.skipped
        if forms.get(skip.node) is not Form.INTEGER
    )
    return replace(static, skipped=skipped, dynamic=tuple(planned.values()))


def _plan(
    graph: Graph, config: QuantConfig, static: Mapping[str, NodePlan], left_out: Mapping[str, str]
) -> tuple[dict[ir.Node, DynamicNode], dict[ir.Node, str]]:
    """The form of each node that has one, and why a node stays float; those of ``static`` are passed over."""
    target = get_target(config.target)
    in_float = excluded(graph, config)
    planned: dict[ir.Node, DynamicNode] = {}
    reasons: dict[ir.Node, str] = {}
    for node in graph.all_nodes():
        if not may_touch_float(node) or node.name in static:
            continue
        row = row_of(node)
        problem = in_float.get(name_of(node)) or _without_weights(node, row)
        if row is None or problem:
            reasons[node] = problem
            continue
        reason = left_out.get(name_of(node)) or _refuse_integer(node, row, target)
        if reason:
            reasons[node] = reason
        form = Form.STORED if reason else Form.INTEGER
        weights = tuple(_weight_plan(node, row, index, form, config) for index in _weight_indices(row))
        planned[node] = DynamicNode(name_of(node), node.op_type, form, weights)
    uses = {(node.name, weight.index) for node, plan in planned.items() for weight in plan.weights}
    uses |= {(name, 1) for name, node in static.items() if node.weight is not None}
    for node, plan in list(planned.items()):
        if plan.form is Form.STORED:
            problem = next(filter(None, (_refuse_storing(node, weight, uses) for weight in plan.weights)), "")
            reasons[node] += problem or _STORED
            if problem:
                del planned[node]
    return planned, reasons


def _weight_indices(row: OpSpec) -> tuple[int, ...]:
    """Which inputs of an op are weights, tables of embeddings included."""
    return (0,) if row.lookup else tuple(index for index, role in row.inputs.items() if role is Role.WEIGHT)


def _without_weights(node: ir.Node, row: OpSpec | None) -> str:
    """Why a node has no weights that could become integer; empty where it has."""
    indices = () if row is None else _weight_indices(row)
    if not indices:
        return "it has no weights"
    for index in indices:
        array = constant(node.inputs[index])
        if array is None:
            return "it has no weights" if row is not None and row.lookup else "its weight is computed at run time"
        if array.size == 0 or array.dtype != np.float32:
            return "its weight is empty or not float32"
        if array.ndim < 2:
            return "its weight is a vector"
        if _value(node, index).is_graph_output():
            return GIVEN_OUT
    return "" if node.op_type != "Slice" or takes_positions(node) else "it has no weights"


def _weight_plan(node: ir.Node, row: OpSpec, index: int, form: Form, config: QuantConfig) -> WeightPlan:
    """Along which axes of a weight its scales run, and along which axis its values are summed up.

    The recurrent weight of an integer LSTM has one scale to a direction: it is multiplied at each step, where
    onnxruntime takes a tenth longer for scales to each channel.
    """
    array = _array(node, index)
    stack: tuple[int, ...] = ()  # axes that tell one matrix from the next
    if node.op_type == "Slice":
        stack, axis, terms = tuple(range(array.ndim - 2)), array.ndim - 2, array.ndim - 1
    elif row.lookup:
        axis = int_attribute(node, "axis", 0) % array.ndim
        terms = (axis + 1) % array.ndim
        if array.ndim > 2 and array.ndim - 1 not in (axis, terms):  # a matrix to each index, such as an expert's
            stack, axis = (axis,), array.ndim - 1
    elif node.op_type == "MatMul":
        stack, terms, axis = tuple(range(array.ndim - 2)), array.ndim - 2, array.ndim - 1
    else:
        assert row.weight_axis is not None  # as of every op with weights
        axis = row.weight_axis.of(node)
        stack, terms = ((0,), 2) if row.kind is Kind.RECURRENT else ((), 1 - axis)
    each_step = form is Form.INTEGER and row.kind is Kind.RECURRENT and index == _RECURRENCE
    per_channel = config.per_channel and not each_step
    return WeightPlan(index, name_of(_value(node, index)), (*stack, axis) if per_channel else stack, terms)


def _refuse_integer(node: ir.Node, row: OpSpec, target: Target) -> str:
    """Why a node with constant weights does not run on integers; empty where it does."""
    if row.lookup:
        return "it only looks up"
    least = target.dynamic.get(node.op_type)
    if least is None:
        return f"{target.name} has no fast integer kernel for {node.op_type} with ranges found at run time"
    arrays = [_array(node, index) for index in _weight_indices(row)]
    size = sum(array.size for array in arrays)
    x, bias = node.inputs[0], node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    scaled = node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) != 1.0
    checks = (
        (x is None or not is_float(x) or constant(x) is not None, "its input is constant or not float32"),
        (size < least, f"{size:,} weights are too few for integers to be faster (from {least:,})"),
        (node.op_type == "MatMul" and arrays[0].ndim != 2, "its weight is a stack of matrices"),
        (int_attribute(node, "transA", 0), "Gemm with transA has no integer kernel"),
        (scaled and bias is not None and constant(bias) is None, "its bias is computed at run time and scaled"),
        (int_attribute(node, "layout", 0), "batch-major sequences (layout 1) have no integer kernel"),
    )
    return next((reason for holds, reason in checks if holds), "")


def _refuse_storing(node: ir.Node, weight: WeightPlan, uses: set[tuple[str | None, int]]) -> str:
    """Why a weight does not become integers in the file, to stand behind a reason; empty where it does."""
    array, value = _array(node, weight.index), _value(node, weight.index)
    channels = math.prod(array.shape[axis] for axis in weight.axes)
    if array.nbytes <= array.size + 4 * channels + _STORED_COST:
        return ", and too few to be stored as int8"
    if any((use.node.name, use.idx) not in uses for use in value.uses()):
        return "; its weights stay float, because another op reads them"
    return ""


def _weighs(node: ir.Node) -> int:
    """How many weights a planned node has."""
    row = OPS[node.op_type]
    return sum(_array(node, index).size for index in _weight_indices(row))


def _value(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # it is a weight
    return value


def _array(node: ir.Node, index: int) -> NDArray[Any]:
    array = constant(node.inputs[index])
    assert array is not None  # it is a weight
    return array


def resolve_dynamic(graph: Graph, plan: QuantPlan, config: QuantConfig) -> dict[tuple[str, int], IntegerWeight]:
    """Quantize the weights of ``plan``; a weight that several nodes share is quantized once.

    Raises:
        ModelError: a weight holds NaN or infinity.
    """
    nodes = {node.name: node for node in graph.all_nodes()}
    jobs: dict[object, tuple[ir.Value, WeightPlan, bool, bool]] = {}
    keys = {}
    for planned, weight, value in _planned_weights(plan, nodes):
        integer = planned.form is Form.INTEGER
        summed = not integer and not OPS[planned.op_type].lookup
        key = (value, integer, summed, weight.axes, weight.terms)
        jobs.setdefault(key, (value, weight, integer, summed))
        keys[planned.name, weight.index] = key

    def quantize(job: tuple[ir.Value, WeightPlan, bool, bool]) -> IntegerWeight:
        value, weight, integer, summed = job
        dtype = QuantType(config.weights) if integer else QuantType.INT8
        pairs = integer and saturating_pairs(config)
        data, scale = _quantize(constant(value), weight, dtype, pairs=pairs, summed=summed)
        stored = data if graph.scratch is None else graph.tensor(data, weight.name)
        return IntegerWeight(stored, scale, dtype.centre)

    # Where weights lie in files, one is read while another is computed.
    workers = 1 if graph.scratch is None else min(config.cores, _WORKERS)
    with closing(in_order(quantize, jobs.values(), workers)) as weights:
        done = dict(zip(jobs, weights, strict=True))
    return {place: done[key] for place, key in keys.items()}


def _planned_weights(
    plan: QuantPlan, nodes: Mapping[str | None, ir.Node]
) -> Iterator[tuple[DynamicNode, WeightPlan, ir.Value]]:
    for planned in plan.dynamic:
        for weight in planned.weights:
            yield planned, weight, _value(nodes[planned.name], weight.index)


def _quantize(
    reals: NDArray[Any] | None, weight: WeightPlan, dtype: QuantType, *, pairs: bool, summed: bool
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Symmetric and narrow integers, and their scale, one to each index of ``weight.axes``.

    ``summed`` keeps the sums of errors small.
    """
    array = finite(reals, weight.name)
    rows = np.moveaxis(array, weight.terms, -1)
    matrix = rows.reshape(-1, rows.shape[-1])
    peak = (largest_pairs(matrix) if pairs else largest_terms(matrix)).reshape(rows.shape[:-1])
    peak = np.expand_dims(peak, weight.terms)
    others = tuple(axis for axis in range(array.ndim) if axis not in weight.axes)
    peak = peak.max(axis=others, keepdims=True)
    scale = np.maximum(peak / 127, 2 * float(np.finfo(np.float32).tiny)).astype(np.float32)
    if len(weight.axes) == 1 and not summed:
        return quantized(array, _params(scale, dtype, weight.axes[0])), scale
    order = (*weight.axes, *others)
    shape = tuple(array.shape[axis] for axis in order)
    flat = np.transpose(array, order).reshape(scale.size, -1)
    data = quantize_array(np.ascontiguousarray(flat), _params(scale, dtype, 0)).data
    if summed:
        exact = flat / scale.reshape(-1, 1).astype(np.float64)
        kernel = math.prod(array.shape[axis] for axis in others[1:])  # of a convolution: one input channel's part
        for terms in (kernel, flat.shape[1]):
            data = _keep_sums(data.reshape(-1, terms), exact.reshape(-1, terms)).reshape(flat.shape)
    return np.transpose(data.reshape(shape), np.argsort(order)), scale


def _params(scale: NDArray[np.float32], dtype: QuantType, axis: int) -> QuantParams:
    scheme = QuantScheme(dtype, symmetric=True, granularity=PerChannel(axis), narrow=True)
    return QuantParams(scale.reshape(-1), np.full(scale.size, dtype.centre, dtype.numpy), scheme)


def _keep_sums(data: NDArray[Any], exact: NDArray[np.float64]) -> NDArray[Any]:
    """``data``, int8, with some integers of each row one lower or higher, so that a row's errors sum to half a step.

    Inputs of one sign, as behind Relu, turn the sum of a row's errors into a shift of the output. Those integers move
    whose reals lie nearest to the other side (Guo et al., SQuant, 2022).
    """
    error = data - exact
    excess = np.rint(error.sum(axis=1)).astype(np.int64)[:, None]
    order = np.argsort(-error * np.sign(excess), axis=1, kind="stable")
    rank = np.argsort(order, axis=1)
    moved = data - np.where(rank < np.abs(excess), np.sign(excess), 0)
    kept: NDArray[Any] = np.clip(moved, -127, 127).astype(np.int8)
    return kept

"""From ranges to integers: the parameters of every activation, the integers of every weight and bias.

A weight is quantized symmetrically with one scale to an output channel (or one for the tensor). Two bounds may make a
scale larger than ``max|w| / 127``:

* the bias of a channel is an int32 with scale ``s_x * s_w``; where ``|b| / (s_x s_w)`` would leave no room there for
  the products, s_w grows;
* x86 CPUs before VNNI add pairs of uint8 x int8 products in 16 bits. With ``255 (w[2i] + w[2i+1]) <= 32767`` for pairs
  of one sign they cannot saturate; ``saturation="safe"`` grows s_w until that holds, so that the model gives the same
  numbers on every CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.affine import compute_params, quantize_array
from requant.onnx.blocks import finite, largest_pairs, largest_terms
from requant.onnx.boundary import make_params
from requant.onnx.nodes import constant, int_attribute
from requant.onnx.rows import as_rows
from requant.planning.plan import Saturation
from requant.targets import get_target
from requant.types import PerChannel, PerTensor, QuantizedTensor, QuantParams, QuantScheme, QuantType

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.config import QuantConfig
    from requant.onnx.graph import Graph
    from requant.planning.plan import NodePlan, QuantPlan
    from requant.types import Range

    Floats = NDArray[np.floating[Any]]

_INT32_MAX = 2**31 - 1
_BIAS_MAX = 2**30  # the other half of int32 is for the products
_PAIR_LIMIT = 127  # real sums up to here stay at most 128 when both terms are rounded, and 255 * 128 < 2**15


class StoredTensors(Mapping[str, QuantizedTensor]):
    """Quantized tensors by name; of a model that is too large for memory each is mapped anew when it is asked for.

    What is not added is that of ``base``.
    """

    def __init__(self, graph: Graph, base: Mapping[str, QuantizedTensor] = MappingProxyType({})) -> None:
        self._graph, self._base = graph, base
        self._stored: dict[str, tuple[NDArray[Any] | ir.TensorProtocol, QuantParams]] = {}

    def add(self, name: str, tensor: QuantizedTensor) -> None:
        """Keep a tensor."""
        in_memory = self._graph.scratch is None
        self._stored[name] = tensor.data if in_memory else self._graph.tensor(tensor.data, name), tensor.params

    def __getitem__(self, name: str) -> QuantizedTensor:
        if name not in self._stored:
            return self._base[name]
        stored, params = self._stored[name]
        return QuantizedTensor(stored if isinstance(stored, np.ndarray) else stored.numpy(), params)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._base, *self._stored)))

    def __len__(self) -> int:
        return len({*self._base, *self._stored})


@dataclass(frozen=True, slots=True)
class Resolved:
    """Parameters by activation name; integers of weights and biases by node name."""

    activations: Mapping[str, QuantParams]
    weights: Mapping[str, QuantizedTensor]
    biases: Mapping[str, QuantizedTensor]
    widened: tuple[str, ...]

    def of(self, plan: QuantPlan) -> Resolved:
        """The same as what ``plan``, a part of the one that was resolved, is made from."""
        names = {node.name for node in plan.nodes}
        return replace(self, widened=tuple(name for name in self.widened if name in names))


def resolve(graph: Graph, plan: QuantPlan, ranges: Mapping[str, Range], config: QuantConfig) -> Resolved:
    """Quantize every weight and bias of ``plan`` and turn ``ranges`` into parameters.

    Raises:
        ModelError: a weight or bias holds NaN or infinity.
    """
    target = get_target(config.target)
    activations = {}
    # Both ends of these must be those of the integers.
    saturating = {node.activations[0][1] for node in plan.nodes if node.saturates is Saturation.BEFORE}
    for tensor in plan.tensors.values():
        if tensor.params is not None:
            activations[tensor.name] = make_params(tensor.scheme.dtype, *tensor.params)
            continue
        chosen = tensor.fixed or ranges[tensor.source or tensor.name]
        scheme = replace(tensor.scheme, symmetric=False) if tensor.name in saturating else tensor.scheme
        activations[tensor.name] = compute_params(chosen.lo, chosen.hi, scheme)
    constants = graph.model.graph.initializers
    groups = {node.name: int_attribute(node, "group", 1) for node in graph.all_nodes() if node.op_type == "Conv"}
    weights, biases, widened = StoredTensors(graph), {}, []
    for node in plan.nodes:
        if node.weight is None:
            continue
        weight = finite(constant(constants[node.weight]), node.weight)
        bias = None
        if node.bias is not None and target.quantizes_bias:
            bias = finite(constant(constants[node.bias]), node.bias).reshape(-1)
        input_scale = float(activations[node.activations[0][1]].scale)
        pairs = guarded(node, weight, groups.get(node.name, 1), config)
        scheme, scale = _weight_scale(weight, node, config, guarded=pairs)
        grown = _grow_for_bias(scale, np.zeros(1) if bias is None else bias, input_scale)
        if np.any(grown > scale):
            widened.append(node.name)
            scale = grown
        zero_points = np.full(scale.shape, scheme.dtype.centre, scheme.dtype.numpy)
        params = QuantParams(scale.astype(np.float32), zero_points, scheme)
        weights.add(node.name, quantize_array(weight, params))
        if bias is not None:
            biases[node.name] = quantize_bias(bias, params, input_scale)
    return Resolved(activations, weights, biases, tuple(widened))


def _weight_scale(weight: Floats, node: NodePlan, config: QuantConfig, *, guarded: bool) -> tuple[QuantScheme, Floats]:
    """Scheme of a weight and its scale (shape [] or [channels], float64) before any bias is considered."""
    axis = node.weight_axis or 0
    one_matrix = node.op_type != "MatMul" or weight.ndim == 2
    allowed = get_target(config.target).per_channel
    per_channel = config.per_channel and one_matrix and (allowed is None or node.op_type in allowed)
    granularity = PerChannel(axis) if per_channel else PerTensor()
    scheme = QuantScheme(QuantType(config.weights), symmetric=True, granularity=granularity, narrow=True)
    rows = as_rows(weight, node)
    peak = largest_pairs(rows) if guarded else largest_terms(rows)
    if isinstance(granularity, PerTensor):
        peak = peak.max()
    live = peak > 0
    scale = np.where(live, peak / _PAIR_LIMIT, np.max(peak, initial=0.0) / _PAIR_LIMIT)
    return scheme, np.where(scale > 0, scale, 1.0)


def guarded(node: NodePlan, weight: Floats, groups: int, config: QuantConfig) -> bool:
    """Whether pairs of neighbouring weights of this node must be kept from saturating.

    Depthwise kernels multiply in 16 bits and add in 32: there is nothing to guard.
    """
    depthwise = node.op_type == "Conv" and weight.shape[1] == 1 and groups == weight.shape[0]
    return saturating_pairs(config) and not depthwise


def saturating_pairs(config: QuantConfig) -> bool:
    """Whether pairs of neighbouring weights must be kept from saturating."""
    return get_target(config.target).pair_products and config.saturation == "safe" and config.weights == "int8"


def _grow_for_bias(scale: Floats, bias: Floats, input_scale: float) -> Floats:
    """``scale``, grown where biases would fill int32 in steps of ``input_scale * scale``, or these leave float32."""
    smallest = smallest_scale(bias, input_scale)
    if scale.ndim and bias.size > scale.size:  # all groups of a transposed convolution share their scales
        smallest = smallest.reshape(-1, scale.size).max(axis=0)
    grown: Floats = np.maximum(scale, smallest if scale.ndim else smallest.max(initial=0.0))
    return grown


def smallest_scale(bias: Floats, input_scale: float) -> Floats:
    """The smallest weight scales with which biases fit int32 in steps of ``input_scale * scale``, and those float32."""
    needed = np.abs(bias).astype(np.float64) / (input_scale * _BIAS_MAX)
    smallest: Floats = np.maximum(needed, 2 * float(np.finfo(np.float32).tiny) / min(input_scale, 1.0))
    return smallest


def quantize_bias(bias: Floats, weight: QuantParams, input_scale: float) -> QuantizedTensor:
    """``bias [channels]`` as int32 of scale ``input_scale * weight.scale``."""
    scale = np.float32(input_scale) * weight.scale
    if scale.ndim and bias.size > scale.size:
        scale = np.tile(scale, bias.size // scale.size)
    integers = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    integers = np.clip(integers, -_INT32_MAX, _INT32_MAX).astype(np.int32)
    granularity = PerChannel(0) if scale.ndim else PerTensor()
    # int32 has no QuantType of its own: it is what the products accumulate in, never a stored precision
    params = QuantParams(scale, np.zeros(scale.shape, np.int32), QuantScheme(granularity=granularity, symmetric=True))
    return QuantizedTensor(integers, params)


def check_weights(graph: Graph, plan: QuantPlan) -> None:
    """Check the weights and biases that ``plan`` quantizes.

    Raises:
        ModelError: one holds NaN or infinity.
    """
    constants = graph.model.graph.initializers
    for node in plan.nodes:
        for name in filter(None, (node.weight, node.bias)):
            finite(constant(constants[name]), name)

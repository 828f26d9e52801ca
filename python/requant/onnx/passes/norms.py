"""Even out the gains of normalization layers that some channels stand far out of.

An activation has one scale for all channels, so a channel that is fifty times the others leaves them few steps. Behind
a normalization the size of a channel is known without data: normalized values have unit variance, so gain g and bias b
give about ``a = sqrt(g^2 + b^2)``. Where the products that read it alone have weights W, the function stays the same
when g and b are divided by s and the rows of W multiplied by s; ``s_j = sqrt(a_j / max|W_j|)`` makes activations and
weights vary alike (Xiao et al., SmoothQuant, 2023, with alpha = 0.5 and the gain in place of measured maxima).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.blocks import largest_terms
from requant.onnx.mapped import changed
from requant.onnx.nodes import constant, int_attribute, is_transposed, set_constant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_NORMS = ("LayerNormalization", "RMSNormalization")
_OUTSTANDING = 8.0  # times the median channel


def even_out_norms(model: ir.Model) -> int:
    """Move outstanding gains of normalizations into the products behind them; returns how many were moved."""
    return sum(_even_out(node, gains) for node in model.graph if (gains := _gains(node)))


def _gains(node: ir.Node) -> list[tuple[ir.Node, int]]:
    """Where the gain and bias stand of a normalization that ends with ``node``; nothing where none does.

    As an op of its own, or spelled ``x / Sqrt(...) * gain (+ bias)``.
    """
    if node.domain != "":
        return []
    if node.op_type in _NORMS:
        return [(node, index) for index, value in enumerate(node.inputs) if index and value is not None]
    if node.op_type not in ("Mul", "Add"):
        return []
    for index in (0, 1):
        before = node.inputs[1 - index]
        producer = None if before is None or constant(node.inputs[index]) is None else before.producer()
        if producer is None or producer.domain != "":
            continue
        if node.op_type == "Mul" and producer.op_type == "Div" and _is_root(producer.inputs[1]):
            return [(node, index)]
        if node.op_type == "Add" and producer.op_type == "Mul" and len(producer.outputs[0].uses()) == 1:
            gain = [] if producer.outputs[0].is_graph_output() else _gains(producer)
            return [*gain, (node, index)] if gain else []
    return []


def _is_root(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.domain == "" and producer.op_type == "Sqrt"


def _even_out(norm: ir.Node, places: list[tuple[ir.Node, int]]) -> bool:
    readers = [use for use in norm.outputs[0].uses() if use.node.op_type != "Shape"]
    products = [use.node for use in readers]
    weights = [w for w in map(_weight, products) if w is not None]
    if not readers or len(weights) < len(readers) or any(use.idx != 0 for use in readers):
        return False
    elsewhere = any(reader not in products for node in products for reader in _weight_readers(node))
    if norm.outputs[0].is_graph_output() or elsewhere:
        return False
    gains = [gain for node, index in places if (gain := constant(node.inputs[index])) is not None]
    if len(gains) < len(places) or any(g.shape != weights[0].shape[:1] or g.dtype != np.float32 for g in gains):
        return False
    size = np.sqrt(sum(np.square(gain.astype(np.float64)) for gain in gains))
    if size.max() < _OUTSTANDING * np.min(size, where=size > 0, initial=np.inf):
        return False  # whatever the weights are
    rows = np.max([largest_terms(w) for w in weights], axis=0)
    step = _steps(size, rows) if np.isfinite(rows).all() else None
    if step is None or np.max([step, rows * step]) > np.finfo(np.float32).max:
        return False
    for (node, index), gain in zip(places, gains, strict=True):
        set_constant(node, index, (gain / step).astype(np.float32), "evened")
    evened: dict[ir.Value | None, ir.Value | None] = {}
    for node in products:
        shared = node.inputs[1]
        if shared in evened:
            node.replace_input_with(1, evened[shared])
            continue
        tensor = ir.convenience.get_const_tensor(shared)  # type: ignore[arg-type]  # it is a weight
        assert tensor is not None
        factors = step.astype(np.float32).reshape((1, -1) if is_transposed(node) else (-1, 1))
        set_constant(node, 1, changed(tensor, lambda w, by=factors: w * by, tensor.dtype), "evened")  # type: ignore[misc]
        evened[shared] = node.inputs[1]
    return True


def _steps(size: NDArray[np.float64], rows: NDArray[Any]) -> NDArray[np.float64] | None:
    """What to divide each channel by, 1 on average: powers of two, so that no result changes; None if all are alike."""
    live = np.isfinite(size) & (size > 0) & (rows > 0)
    if not live.any() or not np.isfinite(size).all() or size.max() < _OUTSTANDING * np.median(size[live]):
        return None
    logs = np.log2(np.where(live, size, 1.0)) / 2 - np.log2(np.where(live, rows, 1.0)) / 2
    steps: NDArray[np.float64] = np.exp2(np.where(live, np.rint(logs - logs[live].mean()), 0.0))
    return steps


def _weight_readers(product: ir.Node) -> Iterable[ir.Node]:
    weight = product.inputs[1]
    return () if weight is None else (use.node for use in weight.uses())


def _weight(node: ir.Node) -> NDArray[Any] | None:
    """The weight [terms, outputs] of a product with a constant matrix, else None."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or int_attribute(node, "transA", 0):
        return None
    array = constant(node.inputs[1])
    if array is None or array.ndim != 2 or array.dtype != np.float32:
        return None
    return array.T if is_transposed(node) else array

"""Make constants what kernels want: without factors beside them, and without subnormal numbers in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from requant.onnx.blocks import holds_subnormals
from requant.onnx.nodes import constant, set_constant

if TYPE_CHECKING:
    from typing import Any

_TINY = np.finfo(np.float32).tiny


def fold_factors(model: ir.Model) -> int:
    """Multiply Gemm's alpha into its weight and beta into its bias; returns how many were left with neither."""
    folded = 0
    for node in model.graph:
        if node.op_type != "Gemm" or node.domain != "":
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        alpha = node.attributes.get_float("alpha", 1.0) or 0.0
        beta = node.attributes.get_float("beta", 1.0) or 0.0
        scaled = [_scaled(node.inputs[1], alpha), _scaled(bias, beta)]
        if (alpha, beta) == (1.0, 1.0) or scaled[0] is None or (bias is not None and scaled[1] is None):
            continue
        set_constant(node, 1, scaled[0], "scaled")
        if scaled[1] is not None:
            set_constant(node, 2, scaled[1], "bias")
        for name in ("alpha", "beta"):
            node.attributes.pop(name, None)
        folded += 1
    return folded


def _scaled(value: ir.Value | None, factor: float) -> np.ndarray[Any, Any] | None:
    """A float32 constant times ``factor``; None where it is none, or the product leaves float32."""
    array = constant(value)
    if array is None or array.dtype != np.float32:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.asarray(array.astype(np.float64) * factor).astype(np.float32)
    return product if np.isfinite(product).all() else None


def flush_subnormals(model: ir.Model) -> int:
    """Set float32 constants below 2^-126 in magnitude to zero; returns how many tensors held some.

    They stand for nothing, and each product with one takes a CPU a hundred cycles: models full of them run twenty times
    slower.
    """
    flushed = 0
    for value in model.graph.initializers.values():
        array = constant(value)
        if array is None or array.dtype != np.float32:
            continue
        if holds_subnormals(array):
            clean = np.where(np.abs(array) < _TINY, np.float32(0), array)
            value.const_value = ir.tensor(clean, name=value.name)
            flushed += 1
    return flushed

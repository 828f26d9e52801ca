"""The ranges that a quantized model was given for good: scale and zero point of each QuantizeLinear."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.onnx.graph import constant, constant_params

if TYPE_CHECKING:
    from requant.onnx.graph import Graph
    from requant.types import QuantType


#: What the metadata of a model calls the upper bound, or both, of a Clip that quantizing a tensor took over.
CLAMP_KEY = "requant.clamp."


@dataclass(frozen=True, slots=True)
class FrozenRange:
    """A float tensor that a model quantizes with one constant scale and zero point.

    What is computed may go beyond ``low`` and ``high`` on purpose: quantizing took over the Relu or Clip that stood
    there. They are None where it did not.
    """

    name: str
    scale: float
    zero_point: int
    dtype: QuantType
    low: float | None = None
    high: float | None = None

    @property
    def lo(self) -> float:
        """The real of the first integer."""
        return (self.dtype.min - self.zero_point) * self.scale

    @property
    def hi(self) -> float:
        """The real of the last integer."""
        return (self.dtype.max - self.zero_point) * self.scale


def frozen_ranges(graph: Graph) -> dict[str, FrozenRange]:
    """By name, every float tensor of the main graph that is quantized so, in execution order; constants are left out.

    A computed tensor whose range begins at 0 is taken for one that a Relu stood behind: whatever the quantizer, the
    model has none left to tell by.
    """
    found: dict[str, FrozenRange] = {}
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None or constant(node.inputs[0]) is not None:
            continue
        params = constant_params(node)
        if params is None:
            continue
        name = node.inputs[0].name or ""
        scale, zero_point, dtype = params
        clamp = graph.model.metadata_props.get(f"{CLAMP_KEY}{name}") or ""
        *lows, high = map(_finite, clamp.split() or [""])
        if not lows:
            lows = [0.0 if zero_point == dtype.min and node.inputs[0].producer() is not None else None]
        low = lows[0]
        found.setdefault(name, FrozenRange(name, scale, zero_point, dtype, low, high))
    return found


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""The ranges that a quantized model was given for good: scale and zero point of each QuantizeLinear."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.onnx.bodies import Surroundings
from requant.onnx.names import name_of
from requant.onnx.nodes import constant, constant_params

if TYPE_CHECKING:
    import onnx_ir as ir

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


def frozen_ranges(graph: Graph) -> tuple[dict[str, FrozenRange], dict[str, str]]:
    """By name, every float tensor that is quantized so and can be seen, and why others cannot; constants are left out.

    They come in execution order, those of bodies (If, Loop, Scan) where these stand. A computed tensor whose range
    begins at 0 is taken for one that a Relu stood behind: whatever the quantizer, the model has none left to tell by.
    """
    found: dict[str, FrozenRange] = {}
    hidden: dict[str, str] = {}
    names: dict[str, ir.Value] = {}
    surroundings = Surroundings(graph)
    for node in graph.all_nodes():
        value = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if value is None or constant(value) is not None:
            continue
        params = constant_params(node)
        if params is None:
            continue
        name = name_of(value)
        same = names.setdefault(name, value) is value
        reason = surroundings.hidden(value.graph) if same else "another tensor in another body has its name"
        if reason:
            hidden.setdefault(name, reason)
            found.pop(name, None)
            continue
        scale, zero_point, dtype = params
        clamp = graph.model.metadata_props.get(f"{CLAMP_KEY}{name}") or ""
        *lows, high = map(_finite, clamp.split() or [""])
        if not lows:
            lows = [0.0 if zero_point == dtype.min and value.producer() is not None else None]
        found.setdefault(name, FrozenRange(name, scale, zero_point, dtype, lows[0], high))
    return found, hidden


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""Which tensor of a quantized model stands for which of the float model it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from requant.onnx.names import name_of
from requant.onnx.nodes import constant, constant_params
from requant.onnx.terse import given_by

if TYPE_CHECKING:
    from requant.onnx.graph import Graph


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor of the float model, the one of the quantized model that stands for it, and the reals its integers reach.

    What lies beyond ``lo`` and ``hi``, half a step outside of the first and last integer, is clipped. They are None
    where the tensor did not become integer.
    """

    name: str
    stand_in: str
    lo: float | None = None
    hi: float | None = None


def match_tensors(reference: Graph, quantized: Graph) -> tuple[Match, ...]:
    """The inner tensors that both models have, in the float model's order.

    A tensor that feeds QuantizeLinear is stood for by what DequantizeLinear makes of it; else by its namesake, but an
    input that was not quantized by nothing. One whose name went is known by the node that gives it.

    Outputs are left out.
    """
    known, brief = ir.convenience.create_value_mapping(quantized.model.graph), given_by(quantized, reference)
    outputs = {value.name for value in reference.model.graph.outputs}
    inputs = {value.name for value in reference.model.graph.inputs}
    computed = [value for node in reference.nodes for value in node.outputs if constant(value) is None]
    found = []
    for value in (*reference.model.graph.inputs, *computed):
        name = name_of(value)
        giver = value.producer()
        place = (name_of(giver) if giver is not None else "", value.index() or 0)
        other = known.get(brief.get(place, "") if name not in known else name)
        if other is None or name in outputs or not _may_be_float(value) or not _may_be_float(other):
            continue
        dequantize = _dequantized(other)
        if dequantize is not None:
            found.append(Match(name, name_of(dequantize.outputs[0]), *_reach(dequantize)))
        elif name not in inputs and other.producer() is not None:
            found.append(Match(name, name_of(other)))
    return tuple(found)


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _dequantized(value: ir.Value) -> ir.Node | None:
    """The DequantizeLinear that gives ``value`` back after it was quantized."""
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear" and use.idx == 0:
            for inner in use.node.outputs[0].uses():
                if inner.node.op_type == "DequantizeLinear" and inner.idx == 0:
                    return inner.node
    return None


def _reach(dequantize: ir.Node) -> tuple[float | None, float | None]:
    """The ends of the reals that its integers reach; None where it has several scales, or one that is computed."""
    params = constant_params(dequantize)
    if params is None:
        return None, None
    scale, zero_point, dtype = params
    return (dtype.min - zero_point - 0.5) * scale, (dtype.max - zero_point + 0.5) * scale

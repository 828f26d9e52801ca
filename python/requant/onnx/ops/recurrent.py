"""Ops that run over a sequence: a product with the input and one with their own last output at each step."""

from __future__ import annotations

from requant.onnx.ops.spec import Kind, OpSpec, Role, WeightAxis

ROWS = (
    OpSpec(
        ("LSTM", "GRU", "RNN"),
        Kind.RECURRENT,
        {0: Role.ACTIVATION, 1: Role.WEIGHT, 2: Role.WEIGHT, 3: Role.BIAS},
        weight_axis=WeightAxis(1),
    ),
)

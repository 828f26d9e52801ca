"""Ops that multiply and add: where the time and the weights are."""

from __future__ import annotations

from requant.onnx.ops.spec import Kind, OpSpec, Role, WeightAxis

_LINEAR = {0: Role.ACTIVATION, 1: Role.WEIGHT, 2: Role.BIAS}

ROWS = (
    OpSpec(("Conv",), Kind.COMPUTE, _LINEAR, weight_axis=WeightAxis(0)),
    OpSpec(("ConvTranspose",), Kind.COMPUTE, _LINEAR, weight_axis=WeightAxis(1)),
    OpSpec(("Gemm",), Kind.COMPUTE, _LINEAR, weight_axis=WeightAxis(1, flag="transB", transposed=0)),
    OpSpec(("MatMul",), Kind.COMPUTE, {0: Role.ACTIVATION, 1: Role.WEIGHT}, weight_axis=WeightAxis(-1)),
)

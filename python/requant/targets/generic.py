"""No runtime in particular: whatever has a row is quantized, and any type and symmetry goes."""

from __future__ import annotations

from requant.onnx.ops import OPS, Kind
from requant.targets.spec import Target

TARGET = Target(
    name="generic",
    fused=frozenset(t for t, row in OPS.items() if row.kind in (Kind.COMPUTE, Kind.FOLLOW)),
    moves=frozenset(t for t, row in OPS.items() if row.kind is Kind.MOVE),
    everything=True,
    operators=True,
    requantizes=frozenset({"Conv", "ConvTranspose", "Gemm"}),
    dynamic={"Conv": 0, "Gemm": 0, "MatMul": 0},
)

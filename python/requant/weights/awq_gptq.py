"""GPTQ on what AWQ has scaled."""

from __future__ import annotations

from requant.weights.gptq import quantize
from requant.weights.spec import WeightAlgorithm

ALGORITHM = WeightAlgorithm("awq+gptq", needs_data=True, quantize=quantize, scales=True)

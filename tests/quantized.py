"""A model quantized with the ranges of its own samples: all stages but calibration, and nothing measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from tests.models import Array, run, samples

from requant.building.resolve import Resolved, resolve
from requant.config import QuantConfig
from requant.onnx.export import insert_qdq
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.planning.build import build_plan
from requant.types import Range

if TYPE_CHECKING:
    from collections.abc import Iterable

    from requant.planning.plan import QuantPlan


class Quantized:
    """A model quantized with the ranges that the float model shows on ``feeds``."""

    def __init__(self, model: onnx.ModelProto, *, count: int = 8, **options: Any) -> None:
        self.model = model
        self.feeds = samples(model, count)
        self.config = QuantConfig().with_options(**options)
        self.graph = prepare(Graph.load(model))[0]
        self.plan: QuantPlan = build_plan(self.graph, self.config)
        self.resolved: Resolved = resolve(self.graph, self.plan, self._ranges(), self.config)
        before = self.graph.to_bytes()
        self.data = insert_qdq(self.graph, self.plan, self.resolved).to_bytes()
        assert self.graph.to_bytes() == before, "exporting has changed the float graph"
        self.proto = onnx.load_from_string(self.data)

    def _ranges(self) -> dict[str, Range]:
        inner = [name for name in self.plan.calibrated if name not in self.feeds]
        values = dict(self.feeds)
        if inner:
            values |= dict(zip(inner, run(self.graph.to_bytes(inner), self.feeds), strict=True))
        heads = [tensor for tensor in self.plan.tensors.values() if tensor.is_calibrated]
        return {head.name: _hull(values[name] for name in (head.name, *head.joined)) for head in heads}

    def count(self, op_type: str) -> int:
        return sum(node.op_type == op_type for node in self.proto.graph.node)

    def steps(self) -> list[float]:
        """For each output the scale it is quantized with, or what one step of each input of its op can do."""
        reals = run(self.graph.to_bytes(), self.feeds)
        return [
            float(self.resolved.activations[o.name].scale)
            if o.name in self.resolved.activations
            else float(np.abs(real).max()) / 100
            for o, real in zip(self.graph.outputs, reals, strict=True)
        ]


def _hull(arrays: Iterable[Any]) -> Range:
    ends = [(float(array.min()), float(array.max())) for array in arrays]
    return Range(min(lo for lo, _ in ends), max(hi for _, hi in ends))


def sqnr(real: Array, got: Array) -> float:
    """The power of ``real`` over that of the error, in dB."""
    noise = float(np.sum((real - got) ** 2))
    return 10 * math.log10(float(np.sum(real**2)) / noise) if noise else math.inf

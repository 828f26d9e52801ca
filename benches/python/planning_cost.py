"""What a model of 4,000 nodes costs before any data is seen: loading, preparing, planning, inserting; seconds of CPU.

    .venv/bin/python benches/python/planning_cost.py [blocks]

A block is a convolution with BatchNormalization and Relu, a second convolution, and the residual Add: five nodes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.models import Net

from requant.building.dynamic import plan_whole, resolve_dynamic
from requant.building.resolve import resolve
from requant.config import QuantConfig
from requant.onnx.dynamic import insert_dynamic
from requant.onnx.export import insert_qdq
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.types import Range

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def network(blocks: int) -> bytes:
    net = Net()
    x = net.input("x", [1, 8, 8, 8])
    for _ in range(blocks):
        y = net.op("Relu", net.batch_norm(net.conv(x, 8, 8, 1), 8))
        x = net.op("Add", x, net.conv(y, 8, 8, 1))
    return bytes(net.model(x).SerializeToString())


def timed(stage: str, work: Callable[[], T]) -> T:
    start = time.process_time()
    result = work()
    print(f"{stage:<12}{time.process_time() - start:8.2f} s")
    return result


def main() -> None:
    blocks = int(sys.argv[1]) if len(sys.argv) > 1 else 800
    data, config = network(blocks), QuantConfig()
    print(f"{5 * blocks} nodes")
    graph = timed("load", lambda: Graph.load(data))
    prepared, _ = timed("prepare", lambda: prepare(graph))
    plan = timed("plan", lambda: plan_whole(prepared, config))
    ranges = {name: Range(-1.0, 1.0) for name in plan.calibrated}
    resolved = timed("resolve", lambda: resolve(prepared, plan, ranges, config))
    weights = resolve_dynamic(prepared, plan, config)
    inserted = timed("insert", lambda: insert_dynamic(insert_qdq(prepared, plan, resolved), plan, weights))
    timed("serialize", inserted.serialize)


if __name__ == "__main__":
    main()

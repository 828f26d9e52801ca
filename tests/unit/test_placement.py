"""Which nodes pay in integers, from times that are made up; and that measuring leads to a model that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.models import Net, run, samples

import requant
from requant import QuantConfig
from requant.onnx.passes import prepare
from requant.planning import placement
from requant.planning.build import build_plan
from requant.runtime import Event
from requant.stages import load_float

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from requant.onnx.graph import Graph

BYTES = 40_000  # of every activation


def chain(convolutions: int) -> tuple[Graph, list[str]]:
    """Convolutions with Relu in a row, prepared, and the names of their nodes."""
    net = Net()
    x = net.input("x", ["n", 4, 8, 8])
    for _ in range(convolutions):
        x = net.op("Relu", net.conv(x, 4, 4))
    graph, _ = prepare(load_float(net.model(x).SerializeToString()))
    return graph, [node.name or "" for node in graph.nodes if node.op_type == "Conv"]


def slower(in_float: Sequence[float], quantized: Sequence[float], price: float = 1.0) -> list[int]:
    """Positions in a chain that the cut leaves in float.

    Names are those that onnxruntime gives: a float convolution fused with its Relu is named by what the Relu gives, a
    quantized one with a number.
    """
    graph, names = chain(len(in_float))
    relus = [node.outputs[0].name for node in graph.nodes if node.op_type == "Relu"]
    before = [Event(f"{relu}_nchwc", t, BYTES) for relu, t in zip(relus, in_float, strict=True)]
    numbered = [f"{name}_token_{3 * i}" for i, name in enumerate(names)]
    after = [Event(name, t, BYTES // 4) for name, t in zip(numbered, quantized, strict=True)]
    plan = build_plan(graph, QuantConfig())
    feeds = {"x": np.zeros((1, 4, 8, 8), np.float32)}
    times = placement._Times(graph, before, after)
    left = placement._slower_nodes(graph, plan, times, feeds, price)
    return [names.index(name) for name in left]


def test_all_stay_integer_where_integers_are_faster() -> None:
    assert slower([100, 100, 100], [30, 30, 30]) == []


def test_all_become_float_where_integers_are_slower() -> None:
    assert slower([30, 30, 30], [100, 100, 100]) == [0, 1, 2]


def test_one_slow_node_is_left_out_only_where_that_pays_for_its_conversions() -> None:
    assert slower([100, 20, 100], [30, 90, 30]) == [1]
    assert slower([100, 20, 100], [30, 25, 30]) == []  # 5 us gained, two conversions lost
    assert slower([100, 20, 100], [30, 90, 30], price=20) == []


def test_a_slow_region_pays_for_its_borders_once() -> None:
    gains = [4.0] * 6  # each too little on its own, not together
    in_float, quantized = [100, *([20] * 6), 100], [30, *(20 + g for g in gains), 30]
    assert slower(in_float, quantized) == [1, 2, 3, 4, 5, 6]
    assert slower([100, 20, 100], [30, 24, 30]) == []


@pytest.mark.usefixtures("quick_latency")
def test_a_measured_plan_is_part_of_the_whole_one_and_runs() -> None:
    net = Net()
    x = net.input("x", ["n", 4, 16, 16])
    a = net.op("Relu", net.conv(x, 4, 8))
    b = net.op("Relu", net.conv(a, 8, 8, group=8))
    y = net.op("GlobalAveragePool", net.op("Add", a, net.conv(b, 8, 8, 1)))
    model = net.model(y).SerializeToString()
    data = samples(net.model(y), 12)
    whole = requant.quantize(model, data)
    placed = requant.quantize(model, data, optimize="latency")
    kept = {node.name for node in placed.plan.nodes}
    assert kept or placed.plan.dynamic  # weights may be all that is integer
    assert kept <= {node.name for node in whole.plan.nodes}
    assert set(placed.plan.tensors) <= set(whole.plan.tensors)
    assert any("--optimize latency tried" in note for note in placed.report.notes)
    left = {skip.node for skip in placed.plan.skipped if "slower in integers" in skip.reason}
    assert kept | left >= {node.name for node in whole.plan.nodes if node.op_type == "Conv"}
    (got,) = run(placed.data, data)
    (expected,) = run(model, data)
    assert np.max(np.abs(got - expected)) < 0.1 * np.max(np.abs(expected))


@pytest.mark.usefixtures("quick_latency")
def test_a_plan_is_kept_only_if_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, names = chain(3)
    plan = build_plan(graph, QuantConfig())

    def build(left_out: Mapping[str, str]) -> placement.Candidate:
        part = build_plan(graph, QuantConfig(), left_out)
        return placement.Candidate(part, None, {}, graph.serialize())  # type: ignore[arg-type]  # not looked at

    feeds = {"x": np.zeros((1, 4, 8, 8), np.float32)}
    monkeypatch.setattr(placement, "_slower_nodes", lambda *_: {names[0]: "slow"})
    for speeds, kept in (([1.0, 1.01], len(plan.nodes)), ([1.0, 1.1], len(plan.nodes) - 1)):
        races = [placement.Race(1.0, speed) for speed in speeds]
        monkeypatch.setattr(placement, "run_races", lambda *_, races=races: races)
        chosen, note = placement.place(graph, graph.serialize(), build, feeds)
        assert len(chosen.plan.nodes) == kept
        assert note.endswith(f"kept {kept} nodes")
    races = [placement.Race(1.0, speed) for speed in (1.0, 1.1, 1.2)]
    monkeypatch.setattr(placement, "run_races", lambda *_: races)
    chosen, _ = placement.place(graph, graph.serialize(), build, feeds, {names[1]: "presumed", names[2]: "presumed"})
    assert {skip.node for skip in chosen.plan.skipped if skip.reason == "presumed"} == set(names[1:3])

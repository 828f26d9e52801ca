"""What a search leaves in float for the sake of speed: the target's costs say so, whatever one measurement says."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from tests.models import Net, samples

import requant
from requant.planning.placement import Race
from requant.search import floats, keeping, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import onnx

    #: Sets the speeds against float that races give, one after another and again from the first.
    Racing = Callable[..., None]

pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> Racing:
    """Speeds are made up."""

    def set_speeds(*speeds: float) -> None:
        given = cycle(speeds)

        def race(models: Sequence[Any], feeds: Any, **_: Any) -> list[Race]:
            return [Race(1.0, next(given)) for _ in models[1:]]

        monkeypatch.setattr(walk, "run_races", race)

    return set_speeds


def keep(digits: Path, **options: Any) -> requant.Kept:
    return requant.quantize_to_keep(digits / "digits.onnx", digits / "calib.npz", 0.99, threads=1, **options)


def depthwise(count: int, *last: int) -> onnx.ModelProto:
    """Depthwise convolutions, which cost more in integers than in float, and a dense one: its channels and kernel."""
    net = Net()
    x = net.input("x", [1, 64, 28, 28])
    for _ in range(count):
        x = net.op("Relu", net.conv(x, 64, 64, group=64))
    return net.model(net.conv(x, 64, *last, name="last"))


def dense() -> onnx.ModelProto:
    """Convolutions that integers make faster, by costs of any kind of CPU."""
    net = Net()
    x = net.input("x", [1, 64, 14, 14])
    for _ in range(3):
        x = net.op("Relu", net.conv(x, 64, 64))
    return net.model(net.conv(x, 64, 64, name="last"))


@pytest.mark.parametrize(
    "speeds", [(2.0,), (0.5, 1.3, 0.6, 0.98), (0.98, 0.2), (0.97,), (0.6, 0.7, 0.8, 0.9, 0.97), (1.0, 0.0)]
)
def test_contradictory_races_change_nothing(speeds: tuple[float, ...], races: Racing) -> None:
    races(*speeds)
    model = dense()
    data = samples(model, 32)
    kept = requant.quantize_to_keep(model, data, 0.9, threads=1)
    assert kept.met
    assert not kept.measured
    assert [step.in_float for step in kept.steps] == [()]
    assert kept.model.data == requant.quantize(model, data, threads=1).data


def test_a_model_of_calls_goes_to_float_by_costs_where_these_are_known(digits: Path, races: Racing) -> None:
    """Of a few microseconds each, which the costs of kind ``vnni`` have."""
    races(9.0)
    kept = keep(digits, cpu="vnni")
    assert kept.met
    assert not kept.measured
    assert kept.steps[kept.chosen].integer_nodes == 0


@pytest.mark.parametrize("speeds", [(9.0,), (0.1,), (0.1, 9.0)])
def test_what_the_costs_say_is_done_whatever_races_say(speeds: tuple[float, ...], races: Racing) -> None:
    races(*speeds)
    model = depthwise(3, 4, 1)
    data = samples(model, 32)
    kept = requant.quantize_to_keep(model, data, 0.9, threads=1)
    assert kept.met
    assert not kept.measured
    assert [step.integer_nodes > 0 for step in kept.steps] == [True, False]
    reasons = {skip.node: skip.reason for skip in kept.model.plan.skipped}
    assert all("by the costs of the target" in reasons[name] for name in kept.config.in_float)
    assert requant.quantize(model, data, kept.config).data == kept.model.data


def test_only_what_is_faster_in_float_goes_there_where_the_rest_pays(races: Racing) -> None:
    races(9.0)
    model = depthwise(14, 48, 3)
    kept = requant.quantize_to_keep(model, samples(model, 32), 0.9, threads=1)
    assert [node.name for node in kept.model.plan.nodes] == ["last"]


def test_what_keeps_too_little_is_not_said_to_be_slower(races: Racing, monkeypatch: pytest.MonkeyPatch) -> None:
    races(9.0)
    meets = walk.ModelWalk.meets
    monkeypatch.setattr(walk.ModelWalk, "meets", lambda self, step: step.in_float != ("last",) and meets(self, step))
    monkeypatch.setattr(floats, "is_presumably_slower", lambda graph, plan, *_: len(plan.nodes) > 3)
    monkeypatch.setattr(floats, "presumably_slower", lambda *_, **__: ("last",))
    model = dense()
    kept = requant.quantize_to_keep(model, samples(model, 32), 0.9, threads=1)
    assert kept.met
    assert kept.steps[kept.chosen].integer_nodes == 0
    reasons = {skip.node: skip.reason for skip in kept.model.plan.skipped}
    assert all("keeps enough" in reasons[name] for name in kept.config.in_float)


def test_a_model_that_is_slower_in_every_race_is_left_in_float(races: Racing) -> None:
    races(0.9, 0.96, 0.8, 0.96, 0.95)
    model = dense()
    data = samples(model, 32)
    kept = requant.quantize_to_keep(model, data, 0.9, threads=1)
    assert kept.met
    assert kept.measured
    assert kept.to_dict()["measured"] is True
    assert kept.steps[kept.chosen].integer_nodes == 0
    reasons = {skip.node: skip.reason for skip in kept.model.plan.skipped}
    assert all("slower in integers on this machine" in reasons[name] for name in kept.config.in_float)
    assert "another run may choose another one" in kept.to_html()
    assert requant.quantize(model, data, kept.config).data == kept.model.data


@pytest.mark.parametrize("kind", ["avx2", "vnni", None])
def test_the_costs_of_this_kind_of_cpu_decide_and_the_recipe_names_it(
    kind: str | None, races: Racing, monkeypatch: pytest.MonkeyPatch
) -> None:
    races(9.0)
    monkeypatch.setattr(keeping, "cpu_kind", lambda: kind)
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", [1, 128, 7, 7]), 128, 128, name="first"))
    model = net.model(net.conv(net.op("Relu", net.conv(x, 128, 128, name="it", group=16)), 128, 128, name="last"))
    data = samples(model, 32)
    kept = requant.quantize_to_keep(model, data, 0.9, threads=1)
    assert kept.config.cpu == kind
    assert ("it" in {node.name for node in kept.model.plan.nodes}) == (kind == "vnni")
    monkeypatch.undo()
    assert requant.quantize(model, data, kept.config).data == kept.model.data
    named = requant.quantize_to_keep(model, data, 0.9, threads=1, cpu="vnni")
    assert named.config.cpu == "vnni"
    assert requant.quantize_to_keep(model, data, 0.9, threads=1, target="generic").config.cpu is None


def test_latency_may_be_asked_for(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are made up; those of the race in which all run in turn count."""

    def race(models: Sequence[Any], feeds: Any, **_: Any) -> list[Race]:
        return [Race(1.0, 9.0)] if len(models) == 2 else [Race(1.0, 1.5 + 0.2 * i) for i in range(len(models) - 1)]

    monkeypatch.setattr(walk, "run_races", race)
    kept = keep(digits, optimize="latency")
    assert len(kept.steps) > 1
    assert kept.measured
    assert kept.steps[kept.chosen].speedup == max(s.speedup for s in kept.steps)
    assert kept.config.optimize == "none"
    assert requant.quantize(digits / "digits.onnx", digits / "calib.npz", kept.config).data == kept.model.data

"""What stays float because integers would be slower, and that the runtime leaves it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.models import Net

from requant.config import QuantConfig
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.passes.shapes import assumed
from requant.planning.build import build_plan
from requant.planning.worth import estimate, is_presumably_slower, presumably_slower, whole_times
from requant.targets import CPUS, Cost, get_target

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

FASTER, NO_FASTER = "it is faster in float", "integers make it no faster"
TOGETHER = "the model is faster with it and others in float"


def skipped(model: onnx.ModelProto, **options: object) -> dict[str, str]:
    plan = build_plan(prepare(Graph.load(model))[0], QuantConfig().with_options(**options))
    return {skip.node: skip.reason for skip in plan.skipped}


def stem(size: int | str, channels: int = 3, out: int = 16) -> onnx.ModelProto:
    """A convolution of few channels before two of many."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", ["n", channels, size, size]), channels, out, name="stem"))
    x = net.op("Relu", net.conv(x, out, 64, name="next", strides=[2, 2]))
    return net.model(net.conv(x, 64, 64, name="last"))


@pytest.mark.parametrize(
    ("shape", "options", "stays"),
    [
        ({"size": 96}, {}, True),
        ({"size": 96, "channels": 1}, {}, True),
        ({"size": 8}, {}, False),
        ({"size": "h"}, {}, True),
        ({"size": 96, "channels": 16}, {}, False),
        ({"size": 96, "out": 96}, {}, False),
        ({"size": 96}, {"target": "generic"}, False),
        ({"size": 96}, {"optimize": "latency"}, False),
        ({"size": 96}, {"include": ("Conv",)}, False),
        ({"size": 96}, {"rules": ({"match": "stem", "quantize": True},)}, False),
        ({"size": 96}, {"rules": ({"match": "next", "quantize": True},)}, True),
    ],
)
def test_a_first_convolution_of_few_channels_over_many_places_stays_float(
    shape: dict[str, Any], options: dict[str, Any], *, stays: bool
) -> None:
    assert skipped(stem(**shape), **options).get("stem") == (FASTER if stays else None)


def test_where_nothing_else_is_to_be_quantized_it_is_integer_all_the_same() -> None:
    net = Net()
    model = net.model(net.op("Exp", net.conv(net.input("x", ["n", 3, 96, 96]), 3, 16, name="stem")))
    assert "stem" not in skipped(model)


def between_convolutions(op: Callable[[Net, str], str], size: int = 56, channels: int = 64) -> onnx.ModelProto:
    """What ``op`` adds between two convolutions that are worth their integers."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", [1, channels, size, size]), channels, channels))
    return net.model(net.conv(op(net, x), channels, channels, name="after"))


def averaged(net: Net, x: str) -> str:
    return net.op("AveragePool", x, name="it", kernel_shape=[3, 3], pads=[1] * 4)


def narrowed(net: Net, x: str) -> str:
    """Through four channels over large windows, and back."""
    return net.op("Relu", net.conv(net.op("Relu", net.conv(x, 64, 4, 5, name="it")), 4, 64, name="back"))


def chained(net: Net, x: str) -> str:
    """Depthwise convolutions, each a little slower in integers than in float, and between much that is faster."""
    return net.op("Relu", net.conv(x, 64, 64, name="it", group=64))


def grouped(net: Net, x: str) -> str:
    """A convolution of many groups, which an integer kernel takes one after the other."""
    return net.op("Relu", net.conv(x, 64, 64, name="it", group=16))


def multiplied(net: Net, x: str) -> str:
    """Two outputs to each channel: no depthwise kernel has that."""
    return net.op("Relu", net.conv(net.op("Relu", net.conv(x, 64, 128, name="it", group=64)), 128, 64))


@pytest.mark.parametrize(
    ("op", "size", "in_float"),
    [
        (averaged, 56, True),
        (averaged, 2, False),
        (narrowed, 56, False),
        (chained, 56, False),
        (grouped, 56, True),
        (multiplied, 56, True),
    ],
)
def test_what_loses_more_than_its_conversions_cost_stays_float(
    op: Callable[[Net, str], str], size: int, *, in_float: bool
) -> None:
    assert ("it" in skipped(between_convolutions(op, size))) == in_float


def wide_groups(net: Net, x: str) -> str:
    """A convolution of few groups, whose products weigh more before VNNI than what is done group by group."""
    return net.op("Relu", net.conv(x, 64, 64, name="it", group=8))


@pytest.mark.parametrize(
    ("options", "in_float"), [({}, True), ({"cpu": "avx2"}, True), ({"cpu": "vnni"}, False), ({"cpu": None}, True)]
)
def test_what_is_faster_in_float_depends_on_the_kind_of_cpu_that_was_named(
    options: dict[str, Any], *, in_float: bool
) -> None:
    assert ("it" in skipped(between_convolutions(wide_groups, 12), **options)) == in_float


@pytest.mark.parametrize(("cpu", "reason"), [("avx2", FASTER), ("vnni", NO_FASTER), (None, FASTER)])
def test_integers_must_save_something_where_they_are_cheapest(cpu: str | None, reason: str) -> None:
    """Of images a bit larger an integer convolution of eight groups is no faster with VNNI either."""
    model = between_convolutions(wide_groups, 14)
    assert skipped(model, cpu=cpu)["it"] == reason
    assert "it" not in skipped(model, cpu=cpu, include=("Conv",))


@pytest.mark.parametrize(("cpu", "in_float"), [("avx2", True), ("vnni", False), (None, False)])
def test_what_saves_on_some_cpus_and_loses_little_on_others_is_integer_on_all(
    cpu: str | None, *, in_float: bool
) -> None:
    assert ("it" in skipped(between_convolutions(wide_groups, 7), cpu=cpu)) == in_float


@pytest.mark.parametrize("features", [["avx2"], ["avx2", "avxvnni"]])
def test_where_no_cpu_is_named_that_of_this_machine_does_not_matter(
    features: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [between_convolutions(wide_groups, 14), between_convolutions(chained), stem(96)]
    here = [build_plan(prepare(Graph.load(model))[0], QuantConfig()) for model in models]
    monkeypatch.setattr("requant.ops.cpu_info", lambda: {"arch": "x86_64", "features": features})
    assert [build_plan(prepare(Graph.load(model))[0], QuantConfig()) for model in models] == here


def test_all_kinds_have_costs_of_the_same_ops_at_least() -> None:
    costs = get_target("ort-cpu").costs
    assert tuple(costs) == CPUS
    assert costs["avx2"].ops.keys() <= costs["vnni"].ops.keys()


def test_a_plan_for_any_cpu_costs_the_average() -> None:
    model = between_convolutions(wide_groups, 14)
    graph, target = prepare(Graph.load(model))[0], get_target("ort-cpu")
    plan, fed = build_plan(graph, QuantConfig(optimize="latency")), {"x": (1, 64, 14, 14)}
    times = [whole_times(graph, plan, target, cpu, fed) for cpu in (*CPUS, None)]
    for first, second, mean in zip(*times, strict=True):
        assert mean == pytest.approx((first + second) / 2)


def test_a_part_never_has_more_than_the_whole() -> None:
    model = stem(96, out=8)
    graph = prepare(Graph.load(model))[0]
    whole = build_plan(graph, QuantConfig())
    planned = {node.name for node in whole.nodes}
    assert planned
    assert "stem" not in planned
    for name in ("next", "last"):
        part = build_plan(graph, QuantConfig(), {name: "a test"})
        assert {node.name for node in part.nodes} < planned
    assert not build_plan(graph, QuantConfig(), dict.fromkeys(planned, "a test")).nodes


def test_costs_are_those_of_the_shapes() -> None:
    """By hand: 8 x 8 places, 9 taps, 6 input channels to each of 2 groups, 5 outputs each, taken 8 at a time."""
    net = Net()
    model = net.model(net.conv(net.input("x", ["n", 12, 8, 8]), 12, 10, group=2))
    graph = prepare(Graph.load(model))[0]
    (node,) = graph.nodes
    places, taps = 64, 9
    expected = places * (10 * 2.0 + taps * (3.0 + 2 * 4.0 + 12 * 0.5 + 6 * 16 * 0.25))
    cost, sizes = Cost(output=2.0, tap=3.0, group=4.0, window=0.5, product=0.25, lanes=8), assumed(graph.model)
    assert estimate(node, cost, sizes) == pytest.approx(expected / 1e3)


@pytest.mark.parametrize(
    ("channels", "out", "group", "cost", "expected"),
    [
        (12, 10, 2, Cost(call=500.0), 500.0),
        (12, 10, 2, Cost(row=2.0), 2.0 * 8 * 9 * 12),
        (20, 20, 20, Cost(rest=0.5, lanes=16), 0.5 * 64 * 9 * 4),
        (32, 32, 32, Cost(rest=0.5, lanes=16), 0.0),
    ],
)
def test_costs_of_calls_rows_and_channels_beside_whole_lanes(
    channels: int, out: int, group: int, cost: Cost, expected: float
) -> None:
    """By hand: 8 rows of 8 places, 9 taps."""
    net = Net()
    graph = prepare(Graph.load(net.model(net.conv(net.input("x", ["n", channels, 8, 8]), channels, out, group=group))))[
        0
    ]
    (node,) = graph.nodes
    assert estimate(node, cost, assumed(graph.model)) == pytest.approx(expected / 1e3)


def test_places_along_one_axis_are_computed_together() -> None:
    """By hand: 5 places of each of 2 samples count 16 each."""
    net = Net()
    graph = prepare(Graph.load(net.model(along(net, net.input("x", [2, 12, 5]), 12, 10, 3, pads=[1, 1]))))[0]
    (node,) = graph.nodes
    expected = 2 * 16 * 3 * 12 * 10 * 0.25
    assert estimate(node, Cost(product=0.25, places=16), assumed(graph.model)) == pytest.approx(expected / 1e3)


@pytest.mark.parametrize("cpu", [None, *CPUS])
def test_a_first_convolution_over_a_wave_is_integer(cpu: str | None) -> None:
    """Unlike one over an image: its windows lie in one piece, and the float kernel copies them as well."""
    net = Net()
    x = net.op("Relu", along(net, net.input("x", ["n", 1, 4000]), 1, 32, 80))
    x = net.op("Relu", along(net, x, 32, 128, 3, strides=[2]))
    model = net.model(along(net, x, 128, 128, 3))
    assert FASTER not in skipped(model, cpu=cpu).values()


def along(net: Net, x: str, channels: int, out: int, kernel: int, **attrs: Any) -> str:
    """A convolution along one axis."""
    return net.op("Conv", x, net.normal(out, channels, kernel, scale=0.1), **attrs)


def test_a_product_costs_its_products() -> None:
    net = Net()
    graph = prepare(Graph.load(net.model(net.gemm(net.input("x", ["n", 48]), 48, 20))))[0]
    (node,) = graph.nodes
    for rows in (1, 5):
        sizes = assumed(graph.model, {"x": (rows, 48)})
        assert estimate(node, Cost(output=2.0, product=0.25), sizes) == pytest.approx(rows * 20 * (2 + 48 / 4) / 1e3)


def test_a_plan_is_slower_where_its_parts_lose_more_than_they_gain() -> None:
    """Depthwise convolutions lose, a product gains the more the more rows it is fed."""
    net = Net()
    x = net.input("x", ["n", 32, 28, 28])
    for _ in range(3):
        x = net.op("Relu", net.conv(x, 32, 32, group=32))
    rows = net.op("Reshape", x, net.const(np.array([-1, 32 * 28], np.int64)))
    graph = prepare(Graph.load(net.model(net.op("MatMul", rows, net.const(net.rng.standard_normal((32 * 28, 8)))))))[0]
    target, config = get_target("ort-cpu"), QuantConfig(include=("Conv", "MatMul"))
    plan = build_plan(graph, config)
    assert {node.op_type for node in plan.nodes} >= {"Conv", "MatMul"}
    fed = {"x": (1, 32, 28, 28)}
    assert is_presumably_slower(graph, plan, target, "avx2", fed)
    assert not is_presumably_slower(graph, plan, get_target("generic"), "avx2", fed)
    left = presumably_slower(graph, plan, target, "avx2", fed, certain=False, products=True)
    assert {node.name for node in plan.nodes if node.op_type == "Conv"} <= set(left)
    part = build_plan(graph, config, dict.fromkeys(left, "a test"))
    assert not is_presumably_slower(graph, part, target, "avx2", fed)
    none = build_plan(graph, config, dict.fromkeys((node.name for node in plan.nodes), "a test"))
    assert not is_presumably_slower(graph, none, target, "avx2", fed)


def tiny_blocks(wide: int = 32, blocks: int = 8, *, free: bool = False) -> onnx.ModelProto:
    """Convolutions that gain by integers, and blocks of others that each lose less than an estimate can be wrong."""
    net = Net()
    x = net.input("x", ["n", 8, 16, 16])
    for name, channels in (("first", 8), ("second", wide)):
        x = net.op("Relu", net.conv(x, channels, wide, name=name))
    x = net.op("Relu", net.conv(x, wide, 8, strides=[4, 4], name="down"))
    for i in range(blocks):
        y = net.op("HardSwish", net.conv(x, 8, 16, 1, name=f"wider{i}"))
        y = net.op("HardSwish", net.conv(y, 16, 16, group=16, name=f"alone{i}"))
        x = net.op("Add", x, net.conv(y, 16, 8, 1, name=f"back{i}"))
    return net.model(x, *([net.op("Neg", net.input("other", ["n", "free"]))] if free else []))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (tiny_blocks(), TOGETHER),
        (tiny_blocks(blocks=4), None),
        (tiny_blocks(64), NO_FASTER),
        (tiny_blocks(free=True), None),
        (tiny_blocks(64, free=True), None),
    ],
)
def test_small_losses_count_where_they_can_be_told(model: onnx.ModelProto, *, reason: str | None) -> None:
    """Not where they are a few microseconds in all, nor where sizes are free, which estimates can only assume."""
    graph = prepare(Graph.load(model))[0]
    plan = build_plan(graph, QuantConfig())
    planned = {node.name for node in plan.nodes}
    small = {"wider0", "alone0", "back0"}
    assert planned >= {"first", "second", "down"}
    assert small <= planned if reason is None else not small & planned
    assert {skip.reason for skip in plan.skipped if skip.node in small} == ({reason} if reason else set())


@pytest.mark.parametrize("cpu", [*CPUS, None])
def test_what_saves_nothing_costs_no_time_in_float(cpu: str | None) -> None:
    graph, target = prepare(Graph.load(tiny_blocks(64)))[0], get_target("ort-cpu")
    whole = build_plan(graph, QuantConfig(optimize="latency"))
    left = {skip.node for skip in build_plan(graph, QuantConfig(cpu=cpu)).skipped} & {node.name for node in whole.nodes}
    on = cpu or CPUS[-1]
    assert whole_times(graph, whole, target, on, {}, left=left)[1] < whole_times(graph, whole, target, on, {})[1]


def test_layers_in_float_cost_what_they_do_in_float() -> None:
    graph, target = prepare(Graph.load(tiny_blocks()))[0], get_target("ort-cpu")
    plan = build_plan(graph, QuantConfig(optimize="latency"))
    in_float, whole = whole_times(graph, plan, target, "vnni", {})
    names = {node.name for node in plan.nodes}
    assert whole_times(graph, plan, target, "vnni", {}, left=names) == pytest.approx((in_float, in_float))
    assert whole_times(graph, plan, target, "vnni", {}, left={"alone0"})[1] > whole


@pytest.mark.parametrize("cpu", CPUS)
def test_convolutions_of_signals_are_presumed_slower_in_float(cpu: str) -> None:
    """Floats have fast kernels for images, if only of one row, not for signals."""

    def slower(*size: int) -> int:
        net = Net()
        x = net.input("x", ["n", 64, *size])
        kernel, pads = [1] * (len(size) - 1) + [3], [0] * (len(size) - 1) + [1]
        for _ in range(3):
            x = net.op("Relu", net.op("Conv", x, net.normal(64, 1, *kernel), group=64, pads=pads * 2))
        graph = prepare(Graph.load(net.model(x)))[0]
        return len(presumably_slower(graph, build_plan(graph, QuantConfig()), get_target("ort-cpu"), cpu))

    assert slower(400) == 0
    assert slower(1, 400) == 3


def between_norms(op_type: str) -> onnx.ModelProto:
    """Products of 64 rows between float ops, as in a transformer; or convolutions of one place, which cost the same."""
    net = Net()
    x = net.input("x", ["n", 64, 40] if op_type == "MatMul" else ["n", 40, 8, 8])
    for inner, outer in ((40, 160), (160, 40), (40, 160), (160, 40)):
        shape = (inner, outer) if op_type == "MatMul" else (outer, inner, 1, 1)
        x = net.op("Erf", net.op(op_type, x, net.normal(*shape)))
    return net.model(x)


@pytest.mark.parametrize(("op_type", "slower"), [("MatMul", False), ("Conv", True)])
def test_quantizing_for_products_costs_no_layout(op_type: str, *, slower: bool) -> None:
    graph = prepare(Graph.load(between_norms(op_type)))[0]
    config = QuantConfig(cpu="vnni", include=(op_type,))
    plan = build_plan(graph, config)
    assert len(plan.nodes) == 4
    shape = (1, 64, 40) if op_type == "MatMul" else (1, 40, 8, 8)
    assert is_presumably_slower(graph, plan, get_target("ort-cpu"), "vnni", {"x": shape}) == slower

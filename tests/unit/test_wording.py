"""One of a thing is no plural."""

from __future__ import annotations

from tests.models import Net

from requant.onnx.graph import Graph
from requant.onnx.passes import PASSES, Preparation, prepare
from requant.wording import counted, times


def test_one_is_no_plural() -> None:
    words = "bias(es) of linear layer(s) corrected"
    assert counted(1, words) == "1 bias of linear layer corrected"
    assert [counted(n, words) for n in (0, 2)] == [f"{n} biases of linear layers corrected" for n in (0, 2)]


def test_what_rounds_to_once_is_as_much() -> None:
    told = [times(ratio, "faster", "slower", "as fast") for ratio in (3.314, 0.25, 1.004, 0.996)]
    assert told == ["3.31 x faster", "4.00 x slower", "as fast", "as fast"]


def test_every_pass_can_tell_of_one() -> None:
    for what, _ in PASSES:
        assert "(" in what
        assert "(" not in str(Preparation(what, 1, {}))


def test_a_report_tells_of_one_node() -> None:
    net = Net()
    x = net.input("x", ["n", 8])
    model = net.model(net.op("Relu", net.op("Identity", net.op("MatMul", x, net.normal(8, 4)))))
    _, changes = prepare(Graph.load(model))
    assert any(str(change).startswith("1 node simplified away") for change in changes)

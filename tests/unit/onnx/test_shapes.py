"""Shapes that a model leaves free are presumed where something depends on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.models import Net

from requant.config import QuantConfig
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.passes.shapes import assumed
from requant.planning.build import build_plan

if TYPE_CHECKING:
    import onnx


def shrinking(*shape: int | str) -> onnx.ModelProto:
    """Convolutions with stride, and a Resize back to the input's size."""
    net = Net()
    x = net.input("x", shape)
    for channels in (3, 8, 32):
        x = net.op("Relu", net.conv(x, channels, 4 * channels if channels > 3 else 8, strides=[2, 2]))
    scales = net.const([1.0, 1.0, 8.0, 8.0])
    return net.model(net.conv(net.op("Resize", x, "", scales, mode="nearest", name="back"), 128, 8, name="last"))


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), (-1, 3, -1, -1), ("n", 3, 256, "w")])
def test_free_sizes_are_those_of_an_image_at_the_input_and_shrink_with_the_layers(shape: tuple[int | str, ...]) -> None:
    fixed, free = (prepare(Graph.load(model))[0] for model in (shrinking(1, 3, 256, 256), shrinking(*shape)))
    shapes = {value.name: value.shape for node in free.nodes for value in node.outputs}
    assert assumed(free.model) == assumed(fixed.model)
    assert assumed(free.model)[free.nodes[2].outputs[0].name or ""] == (1, 32, 64, 64)
    assert {value.name: value.shape for node in free.nodes for value in node.outputs} == shapes
    assert build_plan(free, QuantConfig()).skipped == build_plan(fixed, QuantConfig()).skipped


def test_other_free_sizes_count_64_and_so_do_those_that_nobody_can_tell() -> None:
    net = Net()
    x = net.input("x", ["n", "time", 8])
    y = net.op("NonZero", x)
    graph = prepare(Graph.load(net.model(net.op("Exp", x), y)))[0]
    sizes = assumed(graph.model)
    assert sizes["x"] == (1, 64, 8)
    assert sizes[y] == (3, 64)

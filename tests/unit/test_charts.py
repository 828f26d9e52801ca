"""Charts are well-formed, to scale, and say what they were given."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from requant.pages.bars import bar_chart
from requant.pages.charts import frontier

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_to_scale_and_inside() -> None:
    root = ET.fromstring(bar_chart("Noise", [("a", 4.0, "four"), ("b", 1.0, "one"), ("c", 0.0, "none")]))
    width, height = (float(root.attrib[key]) for key in ("width", "height"))
    background, *bars = root.findall(f"{SVG}rect")
    assert (float(background.attrib["width"]), float(background.attrib["height"])) == (width, height)
    lengths = [float(bar.attrib["width"]) for bar in bars]
    assert lengths[0] == 4 * lengths[1] > 0 == lengths[2]
    for bar in bars:
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) < width
        assert float(bar.attrib["y"]) + float(bar.attrib["height"]) <= height
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert texts == ["Noise", "a", "four", "b", "one", "c", "none"]


@pytest.mark.parametrize("bars", [[], [("only", 0.0, "")]])
def test_nothing_to_draw_is_drawn(bars: list[tuple[str, float, str]]) -> None:
    assert ET.fromstring(bar_chart("t", bars)).tag == f"{SVG}svg"


def test_names_are_escaped_and_long_ones_shortened() -> None:
    name = "<script>&" + "x" * 100
    chart = bar_chart("a < b & c", [(name, 1.0, '"')])
    root = ET.fromstring(chart)
    label = root.findall(f"{SVG}text")[1]
    assert label.text is not None
    assert label.text.startswith("…x")
    assert len(label.text) < 50
    whole = label.find(f"{SVG}title")
    assert whole is not None
    assert whole.text == name
    assert "<script>" not in chart


def test_a_chart_asks_for_nothing() -> None:
    chart = bar_chart("t", [("a", 1.0, "")])
    assert "href" not in chart
    assert chart.count("http") == 1  # the name space


@pytest.mark.parametrize("target", [0.0, 0.5, 0.99, 1.0])
def test_no_text_lies_over_a_point_of_the_frontier(target: float) -> None:
    points = [(cost, share) for cost in (1.0, 2.0, 3.0) for share in (0.0, 0.5, 0.98, 0.99, 1.0)]
    root = ET.fromstring(frontier(points, 0, target, "ms"))
    dots = [(float(dot.attrib["cy"]), float(dot.attrib["r"])) for dot in root.findall("circle")]
    assert len(dots) == len(points)
    told = next(text for text in root.findall("text") if text.text == f"target {target:g}")
    baseline = float(told.attrib["y"])
    assert baseline + 3 < min(y - r for y, r in dots)
    line = max(float(line.attrib["y1"]) for line in root.findall("line"))
    assert all(y <= line + 1e-6 for (_, share), (y, _) in zip(points, dots, strict=True) if share >= target)

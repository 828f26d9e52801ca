"""Charts are well-formed, to scale, and say what they were given."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from requant.pages.bars import bar_chart

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

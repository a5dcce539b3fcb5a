"""Lines and histograms: drawn where their values are, told apart by a legend."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from taciturn.reports.html.plots import Axes, Line, Series, histogram, line_chart
from taciturn.reports.html.scales import linear_scale, span_scale

AXES = Axes(linear_scale([100.0]), linear_scale([4.0]), "step", "epsilon")


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{chart}</div>")


def places(root: ElementTree.Element, style: str) -> list[tuple[float, float]]:
    """The points of the line of that style, in percent from the lower left."""
    (line,) = (each for each in root.iter("polyline") if each.attrib["class"] == f"line {style}")
    pairs = (pair.split(",") for pair in line.attrib["points"].split())
    return [(float(x), 100 - float(y)) for x, y in pairs]


def test_a_line_goes_through_its_points_and_its_end_is_named() -> None:
    line = Line("spent", [(0.0, 0.0), (50.0, 2.0), (100.0, 3.0)], "private")
    root = parsed(line_chart("e", "Rises to 3.", [line], AXES, end="3 & more"))
    assert places(root, "private") == [(0, 0), (50, 50), (100, 75)]
    assert root.findtext("svg/title") == "Rises to 3."
    words = [each.text for each in root.iter("text")]
    assert {"3 & more", "step →", "↑ epsilon"} <= set(words)
    assert not list(root.iter("ul"))


def test_several_lines_have_a_legend_that_names_each() -> None:
    lines = [Line(name, [(0.0, 0.0), (100.0, 4.0)], name) for name in ("base", "private")]
    root = parsed(line_chart("e", "Two.", lines, AXES))
    names = ["".join(item.itertext()) for item in root.iter("li")]
    assert sorted(names) == ["base", "private"]
    swatches = [each.attrib["class"] for each in root.iter("span")]
    assert sorted(swatches) == ["swatch line base", "swatch line private"]


def test_columns_are_as_high_as_their_counts_and_stand_in_their_bins() -> None:
    series = [Series("in", [0, 4], "private"), Series("out", [2, 1], "base")]
    axes = Axes(span_scale(-1.0, 1.0), linear_scale([4.0]), "score", "canaries")
    root = parsed(histogram("h", "Counts.", [-1.0, 0.0, 1.0], series, axes))
    columns = {
        (rect.attrib["class"], float(rect.attrib["x"])): float(rect.attrib["height"])
        for rect in root.iter("rect")
    }
    assert columns == {
        ("private", 50.0): pytest.approx(100),
        ("base", 25.0): pytest.approx(50),
        ("base", 75.0): pytest.approx(25),
    }

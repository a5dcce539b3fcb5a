"""Bars: as long as their values, named, escaped."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from taciturn.reports.html.bars import Bar, bar_chart
from taciturn.reports.html.scales import linear_scale


def test_bars_are_as_long_as_their_values() -> None:
    bars = [Bar("one", 50.0, "50", "base"), Bar("two", 100.0, "100", "private")]
    chart = ElementTree.fromstring(bar_chart("c", "Lengths", bars, linear_scale([50.0, 100.0])))
    widths = {
        rect.attrib["class"]: float(rect.attrib["width"].rstrip("%"))
        for rect in chart.iter("rect")
        if rect.attrib["class"] != "track"
    }
    assert widths == {"base": pytest.approx(50), "private": pytest.approx(100)}
    assert chart.findtext("title") == "Lengths: one 50; two 100."


def test_a_whisker_spans_the_margin_and_an_exact_value_has_none() -> None:
    bars = [Bar("noised", 50.0, "50 ± 20", "private", 20.0), Bar("exact", 50.0, "50", "base")]
    chart = ElementTree.fromstring(bar_chart("c", "Lengths", bars, linear_scale([100.0])))
    whiskers = [line for line in chart.iter("line") if line.attrib["class"] == "whisker"]
    ends = {(line.attrib["x1"], line.attrib["x2"]) for line in whiskers}
    assert ends == {("30.00%", "70.00%"), ("30.00%", "30.00%"), ("70.00%", "70.00%")}


def test_labels_are_escaped() -> None:
    chart = bar_chart("c", "A & B", [Bar("<b>", 1.0, "1 < 2", "base")], linear_scale([1.0]))
    assert "<b>" not in chart
    assert "A &amp; B" in chart

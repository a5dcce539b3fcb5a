"""The charts: scales, ticks, and places that stay inside the picture."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.demo.charts import Bar, bar_chart, curve_chart, linear_scale, log10_scale


@given(st.lists(st.floats(-300, 0), min_size=1, max_size=5))
def test_a_logarithmic_scale_ends_at_one_and_holds_every_value(values: list[float]) -> None:
    scale = log10_scale(values)
    assert scale.high == 0
    assert scale.low < min(values)
    assert all(0 < scale.place(value) <= 1 for value in values)
    assert scale.ticks[-1] == (0.0, "1")
    assert 2 <= len(scale.ticks) <= 6


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=5))
def test_a_linear_scale_starts_at_zero_with_even_ticks(values: list[float]) -> None:
    scale = linear_scale(values)
    assert scale.low == 0
    assert scale.high >= max(values) * (1 - 1e-9)
    assert all(0 <= scale.place(value) <= 1 for value in values)
    gaps = {round((high[0] - low[0]) / scale.high, 9) for low, high in pairwise(scale.ticks)}
    assert len(gaps) == 1
    assert 2 <= len(scale.ticks) <= 7


def test_ticks_are_written_in_powers_of_ten() -> None:
    assert [label for _, label in log10_scale([-12.8]).ticks][-2:] == ["10⁻³", "1"]
    assert [label for _, label in linear_scale([220.0]).ticks] == [
        "0",
        "50",
        "100",
        "150",
        "200",
        "250",
    ]


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


def test_labels_are_escaped() -> None:
    chart = bar_chart("c", "A & B", [Bar("<b>", 1.0, "1 < 2", "base")], linear_scale([1.0]))
    assert "<b>" not in chart
    assert "A &amp; B" in chart


def test_a_curve_goes_through_its_points_and_names_its_end() -> None:
    points = [(1.0, 0.5), (50.0, 2.0), (100.0, 2.5)]
    chart = curve_chart("e", "Epsilon", points, ("step", "epsilon"))
    found = re.search(r'points="([^"]+)"', chart)
    assert found
    places = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    assert [x for x, _ in places] == pytest.approx([1, 50, 100])
    assert places == sorted(places, key=lambda place: -place[1])
    assert "ε = 2.5 after 100 steps" in chart

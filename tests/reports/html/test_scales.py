"""The scales: ticks are round and even, and every value has a place."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from taciturn.reports.html.scales import (
    linear_scale,
    log10_scale,
    log10_share_scale,
    share_scale,
    span_scale,
)


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


@given(st.floats(-50, 50), st.floats(1e-3, 100))
def test_a_span_is_kept_as_it_is_with_round_ticks_inside(low: float, width: float) -> None:
    scale = span_scale(low, low + width)
    assert (scale.place(low), scale.place(low + width)) == (0, 1)
    assert 1 <= len(scale.ticks) <= 7
    assert all(low - 1e-9 <= value <= low + width + 1e-9 for value, _ in scale.ticks)


def test_shares_are_written_as_percentages() -> None:
    assert [label for _, label in share_scale().ticks] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert [label for _, label in log10_share_scale(-3).ticks] == ["0.1%", "1%", "10%", "100%"]

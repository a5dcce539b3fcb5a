"""Numbers in words; a bound is never rounded below itself."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taciturn.reports.html.numbers import (
    at_most,
    number,
    optional,
    percent,
    probability,
    scientific,
)


@given(st.floats(1e-9, 1))
@example(0.0466)
@example(0.999999)
@example(0.1)
def test_at_most_is_no_less_and_hardly_more(share: float) -> None:
    shown = float(at_most(share).rstrip("%")) / 100
    assert share * (1 - 1e-9) <= shown <= min(1.0, share * 1.0101)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (0.0466, "4.66%"), (0.04651, "4.66%"), (0.232, "23.2%"), (1.0, "100%"),
     (0.00123, "0.123%"), (0.9999, "100%")],
)  # fmt: skip
def test_at_most_has_three_digits(share: float, text: str) -> None:
    assert at_most(share) == text


def test_other_numbers() -> None:
    assert [number(value) for value in (251.3, 3.267, 12345.0)] == ["251", "3.27", "12,345"]
    assert [percent(share) for share in (0.17, 0.9977)] == ["17%", "99.77%"]
    assert [optional(value) for value in (None, 1.23456)] == ["none", "1.235"]
    assert [scientific(value) for value in (-5.0, -12.824)] == ["10⁻⁵", "1.5 × 10⁻¹³"]
    assert [probability(value) for value in (-0.0757, -3.745)] == ["84%", "1.8 × 10⁻⁴"]

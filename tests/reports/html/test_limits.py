"""The limits as they are drawn: the lines are the functions, the table is not below them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from taciturn.accounting.events import event_from_dict
from taciturn.accounting.tradeoff import Tradeoff, from_epsilon_delta, tradeoff
from taciturn.reports.html.limits import (
    Limits,
    limit_rows,
    limits,
    limits_chart,
    small_limits_chart,
)
from taciturn.reports.privacy import Audit, PrivacyReport


@pytest.fixture
def found(report: PrivacyReport, audit: Audit) -> Limits:
    known = limits(report, audit)
    assert known is not None
    return known


def drawn(chart: str) -> dict[str, list[tuple[float, float]]]:
    """The points of each line, in [0, 1] from the lower left, by its style."""
    root = ElementTree.fromstring(f"<div>{chart}</div>")
    return {
        line.attrib["class"].removeprefix("line "): [
            (float(x) / 100, 1 - float(y) / 100)
            for x, y in (pair.split(",") for pair in line.attrib["points"].split())
        ]
        for line in root.iter("polyline")
    }


def test_every_line_is_drawn_from_its_function(found: Limits, report: PrivacyReport) -> None:
    assert report.dp_event is not None
    assert report.epsilon is not None
    assert report.delta is not None
    functions: dict[str, Tradeoff | None] = {
        "private": tradeoff(event_from_dict(report.dp_event)),
        "base": from_epsilon_delta(report.epsilon, report.delta),
        "non_private": found.audit,
    }
    lines = drawn(limits_chart(found))
    assert set(lines) == {*functions, "guess"}
    for style, function in functions.items():
        assert function is not None
        assert len(lines[style]) > 90
        for fpr, tpr in lines[style]:
            # A point is written to 1e-4 of an axis; the curve is steep at its left end.
            low, high = (
                function.true_positive_rate(min(1.0, max(0.0, fpr + side * 6e-5)))
                for side in (-1, 1)
            )
            assert low - 6e-5 <= tpr <= high + 6e-5, (style, fpr)


def test_the_logarithmic_chart_shows_the_same_functions(found: Limits) -> None:
    for style, points in drawn(small_limits_chart(found)).items():
        for x, y in points[::10]:
            fpr, tpr = 10 ** (4 * x - 4), 10 ** (4 * y - 4)
            expected = {
                "private": found.events.true_positive_rate,
                "base": found.pair.true_positive_rate,
                "guess": lambda rate: rate,
            }
            if style in expected:
                assert tpr == pytest.approx(expected[style](min(fpr, 1.0)), rel=2e-3)


def test_the_table_is_rounded_upwards(found: Limits) -> None:
    for row in limit_rows(found):
        rate, shown = (float(text.rstrip("%")) / 100 for text in (row.false_alarms, row.events))
        exact = found.events.true_positive_rate(rate)
        assert exact <= shown <= exact * 1.01
        assert shown <= float(row.pair.rstrip("%")) / 100


def test_the_audits_line_has_the_epsilon_that_the_audit_found(
    found: Limits, report: PrivacyReport
) -> None:
    assert found.audit is not None
    assert report.delta is not None
    # One of its tangents is that of (epsilon, delta): it touches the line and does not cross it.
    gaps = [
        report.delta + math.exp(1.3) * fpr - found.audit.true_positive_rate(fpr)
        for fpr in (10 ** (-n / 50) for n in range(50, 400))
    ]
    assert -1e-6 < min(gaps) < 1e-5


@pytest.mark.parametrize("bound", [0.0, 1e-3, math.inf])
def test_an_audit_without_a_curve_is_left_out(
    report: PrivacyReport, audit: Audit, bound: float
) -> None:
    known = limits(report, audit.model_copy(update={"gaussian_epsilon_lower_bound": bound}))
    assert known is not None
    assert known.audit is None
    assert "audit" not in limits_chart(known)


def test_no_promise_no_limits(unlimited: PrivacyReport, audit: Audit) -> None:
    assert limits(unlimited, audit) is None

"""What was spent on what: sums and curves are the accountant's."""

from __future__ import annotations

from itertools import pairwise

import pytest

from taciturn.accounting.compose import epsilon, epsilon_curve
from taciturn.accounting.events import event_from_dict
from taciturn.reports.html.spending import spending, spending_chart, spending_curve
from taciturn.reports.privacy import PrivacyReport


def test_steps_add_up_to_the_reports_epsilon(spent_more: PrivacyReport) -> None:
    fit, evaluation, further = spending(spent_more)
    assert [each.step.purpose for each in (fit, evaluation, further)] == ["fit", "evaluate", "fit"]
    assert [each.releases for each in (fit, evaluation, further)] == [60, 1, 60]
    assert fit.total == fit.own
    assert fit.total < evaluation.total < further.total == spent_more.epsilon
    assert spent_more.delta is not None
    for each in (fit, evaluation, further):
        assert each.own == epsilon(event_from_dict(each.step.dp_event), spent_more.delta)
        assert each.total <= fit.own + evaluation.own + further.own


def test_the_curve_of_a_fit_is_the_accountants(report: PrivacyReport) -> None:
    points = spending_curve(report)
    assert points[0] == (0, 0.0)
    assert points[-1] == (60, report.epsilon)
    assert report.delta is not None
    expected = epsilon_curve(
        sampling_probability=0.12,
        noise_multiplier=1.6,
        steps=[step for step, _ in points[1:]],
        delta=report.delta,
    )
    assert [spent for _, spent in points[1:]] == expected


def test_the_curve_goes_on_through_what_follows(spent_more: PrivacyReport) -> None:
    points = spending_curve(spent_more)
    assert all(low[0] < high[0] and low[1] <= high[1] for low, high in pairwise(points))
    assert points[-1] == (121, pytest.approx(spent_more.epsilon, rel=1e-9))
    totals = {each.total for each in spending(spent_more)}
    assert totals <= {spent for _, spent in points}


def test_no_promise_spends_nothing(unlimited: PrivacyReport) -> None:
    assert spending(unlimited) == []
    assert spending_curve(unlimited) == []


def test_the_chart_names_its_end() -> None:
    chart = spending_chart([(0, 0.0), (1, 0.5), (1200, 2.5)])
    assert "ε\u00a0=\u00a02.5 after 1,200 steps" in chart
    assert "Epsilon spent by step: 0 after step 0, 2.5 after step 1200." in chart

"""report.html: what is promised of a model, what isn't, and what was found; for people.

The first screen is for whoever answers for the data, the rest for whoever wants to know how. Only
public values enter: the privacy report, released figures, and an audit's result.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from markupsafe import Markup

from taciturn.reports.figures import ReleasedFigures
from taciturn.reports.html.audit import bound_chart, scores_chart
from taciturn.reports.html.limits import (
    Limits,
    limit_rows,
    limits,
    limits_chart,
    small_limits_chart,
)
from taciturn.reports.html.numbers import at_most, number, scientific
from taciturn.reports.html.spending import Spent, spending, spending_chart, spending_curve
from taciturn.reports.html.templates import fill
from taciturn.reports.html.utility import utilities
from taciturn.reports.privacy import Audit, PrivacyReport

_WEAK = 0.5  # an edge over guessing from which a promise is called weak
_LONG_NAME = 40
_WORDS_UP_TO = 7.0  # an epsilon from which e^epsilon is written as a power of ten


def report_page(
    report: PrivacyReport,
    figures: ReleasedFigures | None = None,
    audit: Audit | None = None,
) -> str:
    """The whole report as one HTML file that loads nothing.

    Args:
        report: what is promised.
        figures: what evaluations released.
        audit: what an audit found.
    """
    bounds = limits(report, audit)
    spent = spending(report)
    return fill(
        Path(__file__).with_name("report.html"),
        report=report,
        private=report.guarantee != "none",
        unit=_unit(report),
        epsilon=_epsilon(report),
        delta=_delta(report),
        factor=_factor(report),
        left_out=None if report.delta is None else f"{report.delta * report.n_units:.2g}",
        edge=None if bounds is None else at_most(bounds.events.advantage),
        weak=bounds is not None and bounds.events.advantage >= _WEAK,
        limit_rows=[] if bounds is None else limit_rows(bounds),
        limit_charts=_limit_charts(bounds),
        audit_is_drawn=bounds is not None and bounds.audit is not None,
        spent=spent,
        spending_chart=_spending_chart(report, spent),
        utilities=utilities(figures or ReleasedFigures(), report),
        audit=audit,
        refuted=audit is not None and audit.refuted,
        audit_bound=None if audit is None else bound_chart(audit, report.epsilon),
        audit_scores=None if audit is None else scores_chart(audit.histogram),
        mechanism=_mechanism(report),
        events=[json.dumps(step.dp_event, ensure_ascii=False) for step in report.spent],
    )


def _unit(report: PrivacyReport) -> str:
    """Name of what is protected, as a noun of a sentence; a long expression stands in the table
    only."""
    if report.privacy_unit == "one record":
        return "record"
    return "unit" if len(report.privacy_unit) > _LONG_NAME else f"“{report.privacy_unit}”"


def _epsilon(report: PrivacyReport) -> str | None:
    return None if report.epsilon is None else f"{report.epsilon:.4g}"


def _delta(report: PrivacyReport) -> str | None:
    return None if report.delta is None else scientific(math.log10(report.delta))


def _factor(report: PrivacyReport) -> str | None:
    """e^epsilon."""
    if report.epsilon is None:
        return None
    if report.epsilon < _WORDS_UP_TO:
        return number(math.exp(report.epsilon))
    return scientific(report.epsilon / math.log(10))


def _limit_charts(bounds: Limits | None) -> tuple[Markup, ...]:
    return () if bounds is None else (limits_chart(bounds), small_limits_chart(bounds))


def _spending_chart(report: PrivacyReport, spent: list[Spent]) -> Markup | None:
    return spending_chart(spending_curve(report)) if spent else None


def _mechanism(report: PrivacyReport) -> list[tuple[str, str]]:
    """The parameters of the last fit, those that it has."""
    values: list[tuple[str, float | None]] = [
        ("Noise multiplier", report.noise_multiplier),
        ("Sampling probability", report.sampling_probability),
        ("Steps", report.steps),
        ("Clip norm (l2)", report.l2_clip_norm),
        ("Expected batch size (units)", report.expected_batch_size),
        ("Trained parameters", report.trainable_parameters),
    ]
    rows = [
        (name, f"{value:,}" if isinstance(value, int) else f"{value:.6g}")
        for name, value in values
        if value is not None
    ]
    accountant = [] if report.accountant is None else [("Accountant", report.accountant)]
    return [("Mechanism", report.mechanism), *rows, *accountant]

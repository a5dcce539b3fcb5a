"""Limits of what an attacker can find out, drawn and in a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dp_accounting.dp_event import GaussianDpEvent
from markupsafe import Markup

from taciturn.accounting.calibrate import MAX_EPSILON, MIN_EPSILON, noise_multiplier
from taciturn.accounting.events import event_from_dict
from taciturn.accounting.gaussian import Floats
from taciturn.accounting.tradeoff import Tradeoff, from_epsilon_delta, tradeoff
from taciturn.reports.html.numbers import at_most, percent
from taciturn.reports.html.plots import Axes, Line, line_chart
from taciturn.reports.html.scales import log10_share_scale, share_scale
from taciturn.reports.privacy import Audit, PrivacyReport

FALSE_ALARMS = (0.001, 0.01, 0.05, 0.1)
_LOWEST = -4  # the power of ten at which the logarithmic chart begins


@dataclass(frozen=True)
class Limits:
    """Bounds on an attacker.

    Attributes:
        events: from what was run.
        pair: from (epsilon, delta) alone, which says less.
        audit: what an audit has found to be possible; None without one.
    """

    events: Tradeoff
    pair: Tradeoff
    audit: Tradeoff | None = None


@dataclass(frozen=True)
class LimitRow:
    """Percentages of non-members that are accused, and of members that are found at most."""

    false_alarms: str
    guessing: str
    events: str
    pair: str


def limits(report: PrivacyReport, audit: Audit | None) -> Limits | None:
    """The limits of what `report` promises; None if it promises nothing."""
    if report.epsilon is None or report.delta is None or report.dp_event is None:
        return None
    return Limits(
        tradeoff(event_from_dict(report.dp_event)),
        from_epsilon_delta(report.epsilon, report.delta),
        None if audit is None else _reached(audit.gaussian_epsilon_lower_bound, report.delta),
    )


def limit_rows(bounds: Limits) -> list[LimitRow]:
    """The limits at a few shares of false alarms, none rounded down."""
    return [
        LimitRow(
            f"{100 * rate:g}%",
            f"{100 * rate:g}%",
            at_most(bounds.events.true_positive_rate(rate)),
            at_most(bounds.pair.true_positive_rate(rate)),
        )
        for rate in FALSE_ALARMS
    ]


def limits_chart(bounds: Limits) -> Markup:
    """All of the curve, on linear axes."""
    places = np.union1d(np.logspace(-6, 0, 61), np.linspace(0, 1, 41))
    axes = Axes(share_scale(), share_scale(), "non-members accused", "members found, at most")
    return line_chart("limits", _described(bounds), _lines(bounds, places), axes)


def small_limits_chart(bounds: Limits) -> Markup:
    """Chart of the range where few are accused, on logarithmic axes."""
    scale = log10_share_scale(_LOWEST)
    lines = [
        Line(line.label, [(math.log10(x), math.log10(y)) for x, y in line.points], line.style)
        for line in _lines(bounds, np.logspace(_LOWEST, 0, 81))
    ]
    axes = Axes(scale, scale, "non-members accused", "members found, at most")
    described = "The same on logarithmic axes, for few false alarms. " + _described(bounds)
    return line_chart("small-limits", described, lines, axes)


def _lines(bounds: Limits, places: Floats) -> list[Line]:
    def line(label: str, bound: Tradeoff, style: str) -> Line:
        points = [(float(x), bound.true_positive_rate(float(x))) for x in places]
        return Line(label, points, style)

    guessing = Line("blind guessing", [(float(x), float(x)) for x in places], "guess")
    lines = [guessing, line("limit known from ε and δ alone", bounds.pair, "base")]
    if bounds.audit is not None:
        lines.append(line("reached in the audit", bounds.audit, "non_private"))
    return [*lines, line("limit of every attacker", bounds.events, "private")]


def _reached(gaussian_lower_bound: float, delta: float) -> Tradeoff | None:
    """The curve of one Gaussian step of that epsilon.

    An epsilon bound alone gives no curve: it says that some attack lies above two lines, and not
    where, and most of a true curve may lie below them.
    """
    if not MIN_EPSILON <= gaussian_lower_bound <= MAX_EPSILON:
        return None
    noise = noise_multiplier(
        target_epsilon=gaussian_lower_bound, delta=delta, sampling_probability=1.0, steps=1
    )
    return tradeoff(GaussianDpEvent(noise))


def _described(bounds: Limits) -> str:
    parts = [
        f"with {row.false_alarms} of non-members accused, at most {row.events} of members found"
        for row in limit_rows(bounds)
    ]
    text = (
        f"Limit of every attacker: {'; '.join(parts)}; largest edge over guessing "
        f"{at_most(bounds.events.advantage)}."
    )
    if bounds.audit is not None:
        text += f" An audit reached an edge of {percent(bounds.audit.advantage)}."
    return text

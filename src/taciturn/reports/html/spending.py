"""Spending by purpose, and the rise of epsilon over steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dp_accounting import dp_event
from dp_accounting.dp_event import DpEvent
from markupsafe import Markup

from taciturn.accounting.compose import epsilon, epsilon_curve
from taciturn.accounting.events import event_from_dict
from taciturn.reports.html.numbers import NBSP
from taciturn.reports.html.plots import Axes, Line, line_chart
from taciturn.reports.html.scales import linear_scale
from taciturn.reports.privacy import PrivacyReport, PrivateStep

_MARKS = 40
_FURTHER_MARKS = 8  # of what follows the first fit: each costs a composition of its own

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Spent:
    """One private step: its own epsilon, and that of all steps up to it."""

    step: PrivateStep
    releases: int
    own: float
    total: float


def spending(report: PrivacyReport) -> list[Spent]:
    """Each private step of `report` at its delta; empty without a guarantee."""
    if report.delta is None:
        return []
    events = [event_from_dict(step.dp_event) for step in report.spent]
    return [
        Spent(
            step,
            _releases(event),
            epsilon(event, report.delta),
            epsilon(dp_event.ComposedDpEvent(events[: number + 1]), report.delta),
        )
        for number, (step, event) in enumerate(zip(report.spent, events, strict=True))
    ]


def spending_curve(report: PrivacyReport) -> Points:
    """Points (noised releases so far, epsilon so far), from (0, 0) to the report's own epsilon."""
    if report.delta is None:
        return []
    points: Points = [(0, 0.0)]
    before: list[DpEvent] = []
    for step in report.spent:
        event = event_from_dict(step.dp_event)
        points += _after(points[-1], before, event, report.delta)
        before.append(event)
    return points


def spending_chart(points: Sequence[tuple[int, float]]) -> Markup:
    """The curve, with its end in words."""
    (first, low), (last, high) = (points[0], points[-1])
    described = (
        f"Epsilon spent by step: {low:.3g} after step {first}, {high:.3g} after step {last}."
    )
    line = Line("ε so far", [(float(step), spent) for step, spent in points], "private")
    axes = Axes(
        linear_scale([float(step) for step, _ in points]),
        linear_scale([spent for _, spent in points]),
        "step",
        "ε spent so far",
    )
    end = f"ε{NBSP}={NBSP}{high:.3g} after {last:,} {'step' if last == 1 else 'steps'}"
    return line_chart("epsilon", described, [line], axes, end=end)


def _after(
    start: tuple[int, float], before: Sequence[DpEvent], event: DpEvent, delta: float
) -> Points:
    """The points of one more event, none below the one before it."""
    count = _releases(event)
    marks = _marks(count, _FURTHER_MARKS if before else _MARKS)
    match event:
        case dp_event.SelfComposedDpEvent() if not before and _plain(event.event):
            spent = _run(event.event, marks, delta)
        case dp_event.SelfComposedDpEvent():
            parts = (dp_event.SelfComposedDpEvent(event.event, mark) for mark in marks)
            spent = [epsilon(dp_event.ComposedDpEvent([*before, part]), delta) for part in parts]
        case _:
            marks, spent = [count], [epsilon(dp_event.ComposedDpEvent([*before, event]), delta)]
    rising = np.maximum.accumulate([start[1], *spent])[1:]
    return [(start[0] + mark, float(value)) for mark, value in zip(marks, rising, strict=True)]


def _run(step: DpEvent, marks: Sequence[int], delta: float) -> list[float]:
    sampled = isinstance(step, dp_event.PoissonSampledDpEvent)
    return epsilon_curve(
        sampling_probability=step.sampling_probability if sampled else 1.0,
        noise_multiplier=(step.event if sampled else step).noise_multiplier,
        steps=marks,
        delta=delta,
    )


def _plain(step: DpEvent) -> bool:
    """True if it is one Gaussian step, sampled or not."""
    inner = step.event if isinstance(step, dp_event.PoissonSampledDpEvent) else step
    return isinstance(inner, dp_event.GaussianDpEvent)


def _releases(event: DpEvent) -> int:
    """Number of noised values that an event stands for."""
    match event:
        case dp_event.SelfComposedDpEvent():
            return int(event.count) * _releases(event.event)
        case dp_event.ComposedDpEvent():
            return sum(_releases(part) for part in event.events)
        case dp_event.NoOpDpEvent():
            return 0
    return 1


def _marks(count: int, points: int) -> list[int]:
    return [int(mark) for mark in np.unique(np.linspace(1, count, min(points, count)).astype(int))]

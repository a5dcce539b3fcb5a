"""Pages that a dataset's owner watches: its budget's course, what has left, what attacks showed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from taciturn.server.catalog.spending import BudgetHistory, SpentCurve
from taciturn.server.console.data.datasets import is_owned
from taciturn.server.console.rendering import PageRoute, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.datasets import DisclosureView
from taciturn.wire.values import Name

router = APIRouter(prefix="/datasets/{name}", route_class=PageRoute)
Overseer = Annotated[Principal, Depends(Requires(Action.LEDGER_READ))]
_LEAST_AHEAD_S = 28 * 86_400.0


@router.get("/spending")
def read_spending(
    request: Request, caller: Overseer, services: Svc, name: Name, paging: PageQuery
) -> Response:
    """Show where a budget went; its charts come after the page."""
    dataset = services.datasets.read(name, caller)
    items = services.spending.jobs(dataset.namespace, caller, paging)
    return page(
        request,
        "dataset_spending.html",
        caller,
        dataset=dataset,
        owned=is_owned(dataset, caller),
        budget=services.budgets.read(dataset.namespace, caller),
        items=items,
    )


@router.get("/spending/history")
def read_history(request: Request, caller: Overseer, services: Svc, name: Name) -> Response:
    """Show the course of a budget and who spent it."""
    dataset = services.datasets.read(name, caller)
    history = services.spending.history(dataset.namespace, caller)
    return page(
        request,
        "dataset_history.html",
        caller,
        dataset=dataset,
        history=history,
        spec=_history_chart(history),
    )


@router.get("/spending/curve")
def read_curve(request: Request, caller: Overseer, services: Svc, name: Name) -> Response:
    """Show what everything that ran comes to together."""
    dataset = services.datasets.read(name, caller)
    curve = services.spending.curve(dataset.namespace, caller)
    return page(
        request,
        "dataset_curve.html",
        caller,
        curve=curve,
        budget=services.budgets.read(dataset.namespace, caller),
        spec=_curve_chart(curve),
    )


@router.get("/disclosures")
def read_disclosures(
    request: Request, caller: Overseer, services: Svc, name: Name, paging: PageQuery
) -> Response:
    """Show everything of a dataset that has left, and to whom."""
    dataset = services.datasets.read(name, caller)
    items = services.disclosures.page(name, caller, paging)
    return page(
        request,
        "disclosures.html",
        caller,
        dataset=dataset,
        owned=is_owned(dataset, caller),
        lines=_lines(items.items),
        next_cursor=items.next_cursor,
        models=services.models.among(caller, [item.model for item in items.items if item.model]),
        tracked=services.gateway.settings.mlflow_url is not None,
    )


@router.get("/checks")
def read_checks(request: Request, caller: Overseer, services: Svc, name: Name) -> Response:
    """Show promises beside what audits found, and failures whose logs are kept."""
    dataset = services.datasets.read(name, caller)
    findings = services.disclosures.audits(name, caller)
    figures = [finding.epsilon_lower_bound for finding in findings]
    figures += [finding.promised_epsilon or 0.0 for finding in findings]
    return page(
        request,
        "dataset_checks.html",
        caller,
        dataset=dataset,
        owned=is_owned(dataset, caller),
        findings=findings,
        models=services.models.among(caller, [item.model for item in findings if item.model]),
        most=max(figures, default=0.0) or 1.0,
        incidents=services.disclosures.incidents(name, caller),
        kept_days=services.gateway.settings.incident_days,
    )


def _lines(items: Iterable[DisclosureView]) -> list[tuple[DisclosureView, int]]:
    """Return disclosures, each with how often it came in a row, for pages read a job often."""
    lines: list[tuple[DisclosureView, int]] = []
    for item in items:
        newest = lines[-1][0] if lines else None
        if (
            newest is not None
            and item.step != "released"
            and item.model_copy(update={"at": newest.at}) == newest
        ):
            lines[-1] = (newest, lines[-1][1] + 1)
        else:
            lines.append((item, 1))
    return lines


def _history_chart(history: BudgetHistory) -> dict[str, Any] | None:
    points = history.points
    if len(points) < 2:
        return None
    times = [point.at_ms / 1000 for point in points]
    series = [
        {
            "label": "Spent, %",
            "kind": "band",
            "values": [round(100 * point.charged, 3) for point in points],
        },
        {
            "label": "Spent or held, %",
            "kind": "band",
            "values": [round(100 * point.used, 3) for point in points],
        },
    ]
    forecast = history.forecast
    if forecast is not None and forecast.at is not None:
        for one in series:
            one["values"] = [*one["values"], None]
        # No further ahead than there is history, lest that becomes too small to read.
        now_s, end_s = times[-1], forecast.at.timestamp()
        until_s = min(end_s, now_s + max(now_s - times[0], _LEAST_AHEAD_S))
        used = 100 * points[-1].used
        reached = used + (100 - used) * (until_s - now_s) / (end_s - now_s)
        ahead: list[float | None] = [None] * (len(times) - 1)
        series.append(
            {
                "label": "At this pace, %",
                "kind": "dashed",
                "values": [*ahead, round(used, 3), round(reached, 3)],
            }
        )
        times.append(until_s)
    return {
        "x": {"label": "Time", "time": True, "values": times},
        "y": {"label": "Share of the budget, %", "max": 100},
        "series": series,
        "marks": [
            {"at": change.at_ms / 1000, "label": f"budget {change.epsilon:g}"}
            for change in history.changes[1:]
        ],
    }


def _curve_chart(curve: SpentCurve) -> dict[str, Any] | None:
    if not any(curve.epsilons):
        return None
    return {
        "x": {
            "label": "Delta, as a power of ten",
            "time": False,
            "whole": True,
            "values": [round(math.log10(delta), 3) for delta in curve.deltas],
        },
        "y": {"label": "Epsilon"},
        "series": [
            {"label": "Epsilon", "values": [round(value, 4) for value in curve.epsilons]},
        ],
    }

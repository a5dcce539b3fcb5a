"""Datasets: what they are, what their budget is, and rows in the shape of the private ones."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.problems import ProblemError
from taciturn.server.services import Services
from taciturn.wire.datasets import BudgetView, DatasetView, PreviewView
from taciturn.wire.ledger import LedgerJobView
from taciturn.wire.values import Name

router = APIRouter(prefix="/datasets", route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.DATASETS_READ))]

_JOBS_SHOWN = 50


@router.get("")
def read_datasets(request: Request, caller: Reader, services: Svc, paging: PageQuery) -> Response:
    """Show the datasets that the caller may know of."""
    rows = services.datasets.page(caller, paging.name(), paging.fetch)
    items = paging.page(rows, lambda view: view, lambda view: view.name)
    return page(request, "datasets.html", caller, items=items)


@router.get("/{name}")
def read_dataset(request: Request, caller: Reader, services: Svc, name: Name) -> Response:
    """Show one dataset."""
    dataset = services.datasets.read(name, caller)
    return page(
        request,
        "dataset.html",
        caller,
        dataset=dataset,
        budget=_budget(services, dataset, caller),
        preview=_preview(services, dataset, caller),
        spending=_spending(services, dataset, caller),
    )


@router.post("/{name}/selections")
def try_selection(
    request: Request,
    caller: Reader,
    services: Svc,
    name: Name,
    select: Annotated[str, Form(min_length=1, max_length=10_000)],
) -> Response:
    """Show what a selection makes of the preview's rows."""
    preview = services.previews.select(name, select, caller)
    return page(request, "rows.html", caller, preview=preview)


def _budget(services: Services, dataset: DatasetView, caller: Principal) -> BudgetView | None:
    if Action.BUDGETS_READ not in caller.actions:
        return None
    return services.budgets.read(dataset.namespace, caller)


def _preview(services: Services, dataset: DatasetView, caller: Principal) -> PreviewView | None:
    try:
        return services.previews.read(dataset.name, caller)
    except ProblemError as problem:
        if problem.code != "not_ready":
            raise
        return None


def _spending(services: Services, dataset: DatasetView, caller: Principal) -> list[LedgerJobView]:
    """Return what jobs took of the budget, for those who may read the ledger about it."""
    if Action.LEDGER_READ not in caller.actions:
        return []
    try:
        return list(services.ledger_view.jobs(dataset.namespace, caller, "", _JOBS_SHOWN))
    except ProblemError:
        return []

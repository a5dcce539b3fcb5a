"""Datasets: what they are, what is left of their budget, and rows in the shape of private ones."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from taciturn.server.catalog.disclosures import Probe
from taciturn.server.console.rendering import PageRoute, page, problem_page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery, Paging
from taciturn.server.problems import ProblemError
from taciturn.server.services import Services
from taciturn.wire.datasets import BudgetView, DatasetState, DatasetView, PreviewView
from taciturn.wire.values import Name

router = APIRouter(prefix="/datasets", route_class=PageRoute)
_PUBLIC = 10
Reader = Annotated[Principal, Depends(Requires(Action.DATASETS_READ))]


@router.get("")
def read_datasets(
    request: Request,
    caller: Reader,
    services: Svc,
    paging: PageQuery,
    search: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Show the datasets that the caller may know of."""
    rows = services.datasets.page(caller, paging.name(), paging.fetch, search)
    items = paging.page(rows, lambda view: view, lambda view: view.name)
    left = services.budgets.left({view.namespace for view in items.items})
    # Few, and without a page of their own here: their own list goes on.
    public = () if search else services.public_datasets.page(caller, Paging(limit=_PUBLIC)).items
    values: dict[str, Any] = {"items": items, "search": search, "left": left, "public": public}
    return page(request, "datasets.html", caller, **values)


@router.get("/{name}")
def read_dataset(request: Request, caller: Reader, services: Svc, name: Name) -> Response:
    """Show one dataset."""
    dataset = services.datasets.read(name, caller)
    return page(
        request,
        "dataset.html",
        caller,
        dataset=dataset,
        owned=is_owned(dataset, caller),
        now=services.gateway.clock(),
        budget=_budget(services, dataset, caller),
        preview=_preview(services, dataset, caller),
        probe=_probe(services, dataset, caller),
        columns_json=_columns_json(dataset),
    )


@router.get("/{name}/probe")
def read_probe(request: Request, caller: Reader, services: Svc, name: Name) -> Response:
    """Show how far a worker's look at a dataset is; its page asks again until that is over."""
    dataset = services.datasets.read(name, caller)
    probe = _probe(services, dataset, caller)
    owned = is_owned(dataset, caller)
    answer = page(request, "register_probe.html", caller, dataset=dataset, probe=probe, owned=owned)
    if dataset.state is not DatasetState.PROBING:
        answer.headers["HX-Refresh"] = "true"
    return answer


@router.post("/{name}/selections")
def try_selection(
    request: Request,
    caller: Reader,
    services: Svc,
    name: Name,
    select: Annotated[str, Form(min_length=1, max_length=10_000)],
) -> Response:
    """Show what a selection makes of the preview's rows, or why it is refused, beside it."""
    try:
        preview = services.previews.select(name, select, caller)
    except ProblemError as problem:
        answer = problem_page(request, problem)
        if problem.code == "invalid":
            answer.headers["HX-Retarget"] = "#refusal"
        return answer
    return page(request, "rows.html", caller, preview=preview, tried=True)


def is_owned(dataset: DatasetView, caller: Principal) -> bool:
    """Return whether a page offers what owners alone do; the services decide again."""
    return dataset.owner == caller.name and Action.DATASETS_WRITE in caller.actions


def _columns_json(dataset: DatasetView) -> str:
    """Return the columns that are to be confirmed as the form sends them back: what was shown is
    what is confirmed, whatever was found meanwhile."""
    if dataset.found is None:
        return ""
    return json.dumps([column.model_dump() for column in dataset.found.columns])


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


def _probe(services: Services, dataset: DatasetView, caller: Principal) -> Probe | None:
    """Return the newest look of a worker, for those who may read of it."""
    if dataset.state is DatasetState.READY or Action.LEDGER_READ not in caller.actions:
        return None
    try:
        return services.disclosures.probe(dataset.name, caller)
    except ProblemError as problem:
        if problem.code != "not_found":
            raise
        return None

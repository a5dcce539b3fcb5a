"""Registration of datasets by forms: a reference, what a worker has found, what may change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from taciturn.server.console.data.datasets import is_owned
from taciturn.server.console.forms import built, json_lines, lines, rows
from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import MAX_LIMIT
from taciturn.server.problems import ProblemError
from taciturn.server.services import Services
from taciturn.wire.datasets import (
    BudgetTerms,
    DatasetChange,
    DatasetView,
    NewDataset,
    StatedColumns,
)
from taciturn.wire.values import Name

router = APIRouter(route_class=PageRoute)
Writer = Annotated[Principal, Depends(Requires(Action.DATASETS_WRITE))]

_LONG = 600_000


@dataclass(frozen=True, slots=True)
class RegistrationForm:
    """The fields of a registration."""

    name: Annotated[str, Form(max_length=64)] = ""
    source: Annotated[str, Form(max_length=2000)] = ""
    namespace: Annotated[str, Form(max_length=64)] = ""
    unit: Annotated[str, Form(max_length=2000)] = ""
    units: Annotated[str, Form(max_length=12)] = ""
    epsilon: Annotated[str, Form(max_length=30)] = ""
    delta: Annotated[str, Form(max_length=30)] = ""
    description: Annotated[str, Form(max_length=200)] = ""
    names: Annotated[str, Form(max_length=_LONG)] = ""
    first_line: Annotated[str, Form(max_length=10)] = "names"
    mock: Annotated[str, Form(max_length=_LONG)] = ""

    def new(self) -> NewDataset:
        """Return the request; raises ProblemError `invalid`."""
        budget = None
        if self.epsilon or self.delta:
            budget = built(BudgetTerms, epsilon=self.epsilon, delta=self.delta)
        return built(
            NewDataset,
            name=self.name,
            source=self.source,
            namespace=self.namespace,
            unit=self.unit,
            units=self.units.replace(",", ""),
            budget=budget,
            description=self.description,
            columns=lines(self.names) or None,
            header=self.first_line == "names",
            mock=rows(self.mock),
        )


@router.get("/register")
def read_form(
    request: Request,
    caller: Writer,
    services: Svc,
    namespace: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Show the form in which a dataset is registered."""
    return page(
        request,
        "register.html",
        caller,
        prefixes=services.registrations.prefixes(caller),
        namespaces=_namespaces(services, caller),
        **_budget_fields(services, caller, namespace),
    )


@router.get("/register/budget")
def read_budget_fields(
    request: Request,
    caller: Writer,
    services: Svc,
    namespace: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Show the fields that depend on the namespace: a budget where it is a new one."""
    fields = _budget_fields(services, caller, namespace)
    return page(request, "register_budget.html", caller, **fields)


@router.post("/register")
def register(
    caller: Writer, services: Svc, form: Annotated[RegistrationForm, Depends()]
) -> Response:
    """Register a dataset, and open the page on which its owner follows the probe."""
    dataset = services.registrations.register(form.new(), caller)
    return go_to(f"/datasets/{dataset.name}")


@router.post("/datasets/{name}/columns")
def state_columns(
    caller: Writer,
    services: Svc,
    name: Name,
    columns: Annotated[str, Form(max_length=9_000_000)] = "",
    names: Annotated[str, Form(max_length=_LONG)] = "",
    first_line: Annotated[str, Form(max_length=10)] = "names",
) -> Response:
    """Confirm the columns that the page has shown, or state other ones."""
    stated_columns: Any = [{"name": column} for column in lines(names)] or None
    if columns:
        try:
            stated_columns = json.loads(columns)
        except (ValueError, RecursionError):
            raise ProblemError(
                "invalid", "columns: open the page again, and confirm again"
            ) from None
    request = built(StatedColumns, columns=stated_columns, header=first_line == "names")
    services.registrations.state_columns(name, request, caller)
    return go_to(f"/datasets/{name}")


@router.post("/datasets/{name}/probes")
def probe(caller: Writer, services: Svc, name: Name) -> Response:
    """Have a worker look again."""
    services.registrations.probe(name, caller)
    return go_to(f"/datasets/{name}")


@router.get("/datasets/{name}/change")
def read_change(request: Request, caller: Writer, services: Svc, name: Name) -> Response:
    """Show the form in which description and invented rows are changed, or a dataset removed."""
    dataset = _owned(services, caller, name)
    mock = services.registrations.mock(name, caller)
    return page(request, "dataset_change.html", caller, dataset=dataset, mock=json_lines(mock))


@router.post("/datasets/{name}/change")
def change(
    caller: Writer,
    services: Svc,
    name: Name,
    description: Annotated[str, Form(max_length=200)] = "",
    mock: Annotated[str, Form(max_length=_LONG)] = "",
) -> Response:
    """Change description and invented rows."""
    request = built(DatasetChange, description=description, mock=rows(mock))
    services.registrations.change(name, request, caller)
    return go_to(f"/datasets/{name}")


@router.post("/datasets/{name}/removal")
def remove(
    caller: Writer, services: Svc, name: Name, sure: Annotated[str, Form(max_length=64)] = ""
) -> Response:
    """Remove a dataset whose name was written out."""
    if sure != name:
        raise ProblemError("invalid", f"sure: write {name!r} to remove it")
    services.registrations.remove(name, caller)
    return go_to("/datasets")


@router.post("/datasets/{name}/preview/removal")
def drop_preview(caller: Writer, services: Svc, name: Name) -> Response:
    """Show invented rows again in place of synthetic ones."""
    services.previews.drop_synthetic(name, caller)
    return go_to(f"/datasets/{name}")


def _owned(services: Services, caller: Principal, name: str) -> DatasetView:
    dataset = services.datasets.read(name, caller)
    if not is_owned(dataset, caller):
        raise ProblemError("forbidden", f"{name!r} is {dataset.owner}'s; only its owner changes it")
    return dataset


def _namespaces(services: Services, caller: Principal) -> list[str]:
    policies = services.policies.page(caller, "", MAX_LIMIT)
    return [policy.namespace for policy in policies if policy.owner_id == caller.user_id]


def _budget_fields(services: Services, caller: Principal, namespace: str) -> dict[str, Any]:
    """Return what is known of a namespace: its budget if it is the caller's, and whose it is."""
    policy, left = None, None
    if namespace:
        try:
            policy = services.policies.read(namespace, caller)
            left = services.budgets.left([namespace]).get(namespace)
        except ProblemError as problem:
            if problem.code != "not_found":
                raise
    return {"namespace": namespace, "policy": policy, "left": left}

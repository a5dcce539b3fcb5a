"""Pages of auditors and administrators: ledger, audit log, everybody's jobs, people, bases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, page, when
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import MAX_LIMIT, PageQuery
from taciturn.wire.values import Page

router = APIRouter(route_class=PageRoute)
LedgerReader = Annotated[Principal, Depends(Requires(Action.LEDGER_READ))]
LogReader = Annotated[Principal, Depends(Requires(Action.AUDIT_LOG_READ))]
Operator = Annotated[Principal, Depends(Requires(Action.JOBS_OPERATE))]
PeopleReader = Annotated[Principal, Depends(Requires(Action.USERS_READ))]
BaseReader = Annotated[Principal, Depends(Requires(Action.BASE_MODELS_READ))]
IncidentReader = Annotated[Principal, Depends(Requires(Action.INCIDENTS_READ))]

T = TypeVar("T")


@router.get("/ledger")
def read_ledger(request: Request, caller: LedgerReader, services: Svc) -> Response:
    """Show the balances, and a way to check the chains behind them."""
    policies = services.policies.page(caller, "", MAX_LIMIT)
    budgets = [services.budgets.view(policy, caller) for policy in policies]
    return page(request, "ledger.html", caller, budgets=budgets)


@router.post("/ledger/verifications")
def verify_ledger(request: Request, caller: LedgerReader, services: Svc) -> Response:
    """Derive every balance again, and show whether the chains are in order."""
    verdict = services.ledger_view.verify((), caller)
    return page(request, "verdict.html", caller, verdict=verdict)


@router.get("/audit-log")
def read_audit_log(
    request: Request,
    caller: LogReader,
    services: Svc,
    paging: PageQuery,
    actor: Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = None,
) -> Response:
    """Show every request and its answer."""
    items = services.audit_log.list(paging, actor=actor or None)
    return _table(
        request,
        caller,
        items,
        ("When", "Who", "Action", "What", "Answer", "From"),
        lambda entry: (
            when(entry.at),
            entry.actor,
            entry.action,
            entry.resource,
            f"{entry.status} {entry.code or ''}",
            entry.address or "",
        ),
        title="Audit log",
        lead="Every request and its answer, newest first; each was on disk before the answer left.",
        empty="Nothing was asked yet.",
    )


@router.get("/operations")
def read_operations(
    request: Request, caller: Operator, services: Svc, paging: PageQuery
) -> Response:
    """Show everybody's jobs, without what they are about."""
    return _table(
        request,
        caller,
        services.jobs.operated(paging, None),
        ("Job", "Kind", "State", "By", "Workers", "Asked for", "Started"),
        lambda job: (
            job.id,
            job.kind.value,
            job.state.value.replace("_", " "),
            job.requester,
            job.attempt,
            when(job.created_at),
            "not yet" if job.started_at is None else when(job.started_at),
        ),
        title="Operations",
        lead="Everybody's jobs, without what they are about.",
        empty="Nobody has asked for a job yet.",
    )


@router.get("/people")
def read_people(
    request: Request, caller: PeopleReader, services: Svc, paging: PageQuery
) -> Response:
    """Show everybody who may come in."""
    return _table(
        request,
        caller,
        services.users.list(paging),
        ("Name", "Roles", "Groups", "Where their data may be", "Since", "State"),
        lambda user: (
            user.name,
            ", ".join(role.value for role in user.roles) or "none",
            ", ".join(user.groups) or "none",
            ", ".join(user.sources) or "nowhere",
            when(user.created_at),
            "disabled" if user.disabled else "active",
        ),
        title="People",
        lead="Everybody who may come in, and as what.",
        empty="Nobody may come in yet.",
    )


@router.get("/base-models")
def read_base_models(
    request: Request, caller: BaseReader, services: Svc, paging: PageQuery
) -> Response:
    """Show the base models that may be fitted."""
    return _table(
        request,
        caller,
        services.base_models.list(paging),
        ("Name", "Parameters", "Context in tokens", "Vocabulary", "Since"),
        lambda base: (
            base.name,
            f"{base.parameters:,}",
            f"{base.context_length:,}",
            f"{base.vocabulary:,}",
            when(base.created_at),
        ),
        title="Base models",
        lead="Models that may be fitted. A worker that finds other figures refuses to run.",
        empty="No base model is registered.",
    )


@router.get("/incidents/{incident_id}")
def read_incident(
    request: Request, caller: IncidentReader, services: Svc, incident_id: str
) -> Response:
    """Show the full log of a failure to the owner of the data."""
    item = services.incidents.get(caller, incident_id)
    return page(request, "incident.html", caller, item=item)


def _table(
    request: Request,
    caller: Principal,
    items: Page[T],
    columns: Sequence[str],
    cells: Callable[[T], Sequence[Any]],
    **texts: Any,
) -> Response:
    rows = [cells(item) for item in items.items]
    return page(request, "table.html", caller, items=items, columns=columns, rows=rows, **texts)

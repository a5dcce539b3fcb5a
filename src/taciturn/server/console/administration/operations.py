"""Operations: everybody's jobs without what they are about, the queue, workers and machines."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.jobs.operations import COST_DAYS
from taciturn.server.paging import PageQuery
from taciturn.wire.jobs import JobKind, JobState

router = APIRouter(prefix="/operations", route_class=PageRoute)
Operator = Annotated[Principal, Depends(Requires(Action.JOBS_OPERATE))]


@router.get("")
def read_operations(
    request: Request,
    caller: Operator,
    services: Svc,
    paging: PageQuery,
    state: Annotated[JobState | Literal[""], Query()] = "",
    kind: Annotated[JobKind | Literal[""], Query()] = "",
    requester: Annotated[str, Query(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")] = "",
) -> Response:
    """Show the queue, the workers, and everybody's jobs."""
    requester = requester.strip()
    items = services.jobs.operated(paging, state or None, kind or None, requester or None)
    return page(
        request,
        "operations.html",
        caller,
        items=items,
        load=services.operations.load(),
        workers=services.operations.workers(),
        states=[name.value for name in JobState],
        kinds=[name.value for name in JobKind],
        state=str(state),
        kind=str(kind),
        requester=requester,
        first=paging.after is None,
    )


@router.get("/machines")
def read_machines(request: Request, caller: Operator, services: Svc) -> Response:
    """Show the workers that the launcher knows, and what machines have cost: a part of the page
    that comes when the launcher has answered."""
    machines = services.operations.machines()
    return page(request, "machines.html", caller, machines=machines, days=COST_DAYS)


@router.post("/cancellations")
def cancel_job(
    caller: Operator, services: Svc, job: Annotated[str, Form(max_length=40)]
) -> Response:
    """End anybody's job."""
    services.jobs.stop(job)
    return go_to("/operations")

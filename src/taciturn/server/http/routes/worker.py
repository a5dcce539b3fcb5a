"""Messages of a worker about its own job; see `wire.worker`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header

from taciturn.server.http.access import Svc, worker
from taciturn.server.http.blocking import Route
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.wire.worker import (
    LEASE_HEADER,
    Assignment,
    Charge,
    EventBatch,
    Incident,
    IncidentId,
    JobsAsked,
    JobsOver,
    LeaseRequest,
    Orders,
    Outcome,
    SourceMarks,
)

router = APIRouter(prefix="/worker/jobs/{job_id}", tags=["worker"], route_class=Route)

Worker = Annotated[WorkerPrincipal, Depends(worker)]
Token = Annotated[
    int, Header(alias=LEASE_HEADER, ge=1, lt=2**31, description="The fencing token of the lease.")
]


@router.post("/lease")
def lease(message: LeaseRequest, caller: Worker, svc: Svc) -> Assignment:
    """Take the job. Whoever held it before is fenced off."""
    return svc.work.lease(caller, message)


@router.post("/heartbeat")
def heartbeat(caller: Worker, token: Token, svc: Svc) -> Orders:
    """A sign of life, every few seconds."""
    return svc.work.heartbeat(caller, token)


@router.post("/source", status_code=204)
def source(message: SourceMarks, caller: Worker, token: Token, svc: Svc) -> None:
    """Say what the source is, before rows are read; refused where another budget has the same."""
    svc.work.source(caller, token, message)


@router.post("/charges", status_code=204)
def charge(message: Charge, caller: Worker, token: Token, svc: Svc) -> None:
    """Spend a block of steps; only then may it run."""
    svc.work.charge(caller, token, message)


@router.post("/events", status_code=204)
def events(batch: EventBatch, caller: Worker, token: Token, svc: Svc) -> None:
    """Say how far the job is, in words of the allow-list."""
    svc.work.say(caller, token, batch)


@router.post("/incidents", status_code=201)
def incident(message: Incident, caller: Worker, token: Token, svc: Svc) -> IncidentId:
    """Leave the full log of a failure, for the owner of the data alone."""
    return svc.work.incident(caller, token, message)


@router.post("/over")
def over(message: JobsAsked, caller: Worker, token: Token, svc: Svc) -> JobsOver:
    """Return the jobs that are over, whose checkpoints can go from the store that workers share."""
    return svc.work.over(caller, token, message)


@router.post("/outcome", status_code=204)
def outcome(message: Outcome, caller: Worker, token: Token, svc: Svc) -> None:
    """The last message: how the job ended."""
    svc.work.outcome(caller, token, message)

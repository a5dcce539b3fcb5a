"""Jobs: asked for, seen, cancelled."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.identity import UserName
from taciturn.wire.jobs import (
    ApprovalView,
    JobKind,
    JobRequest,
    JobState,
    JobView,
    OperatedJob,
)
from taciturn.wire.values import Page

router = APIRouter(tags=["jobs"], route_class=Route)

Reader = Annotated[Principal, Depends(Requires(Action.JOBS_READ))]
Creator = Annotated[Principal, Depends(Requires(Action.JOBS_CREATE))]
Canceller = Annotated[Principal, Depends(Requires(Action.JOBS_CANCEL))]
OPERATE = Depends(Requires(Action.JOBS_OPERATE))
Approvals = Annotated[Principal, Depends(Requires(Action.APPROVALS_READ))]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=8,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="Stands for this request: repeated, it makes no second job. Needed for jobs "
        "that spend budget.",
    ),
]


@router.post("/jobs", status_code=201)
def create_job(job: JobRequest, caller: Creator, svc: Svc, idempotency_key: Key = None) -> JobView:
    """Ask for a job. It is checked, priced and held in the budget before this returns."""
    return svc.jobs.submit(caller, job, idempotency_key)


@router.get("/jobs")
def list_jobs(
    caller: Reader,
    svc: Svc,
    page: PageQuery,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    kind: Annotated[JobKind | None, Query(description="Only jobs of this kind.")] = None,
) -> Page[JobView]:
    """One's own jobs; owners see those of their namespaces, auditors all. Newest first."""
    return svc.jobs.page(caller, page, state, kind)


@router.get("/jobs/{job_id}")
def read_job(job_id: str, caller: Reader, svc: Svc) -> JobView:
    """A job, and where it stands."""
    return svc.jobs.view(caller, job_id)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, caller: Canceller, svc: Svc) -> JobView:
    """End a job. What it has charged stays spent, what it has not is free again."""
    return svc.jobs.cancel(caller, job_id)


@router.get("/operations/jobs", dependencies=[OPERATE])
def list_everybodys_jobs(
    svc: Svc,
    page: PageQuery,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    kind: Annotated[JobKind | None, Query(description="Only jobs of this kind.")] = None,
    requester: Annotated[UserName | None, Query(description="Only jobs of this person.")] = None,
) -> Page[OperatedJob]:
    """Everybody's jobs for administrators, newest first, without what they are about."""
    return svc.jobs.operated(page, state, kind, requester)


@router.post("/operations/jobs/{job_id}/cancel", dependencies=[OPERATE])
def stop_job(job_id: str, svc: Svc) -> OperatedJob:
    """End anybody's job. What it has charged stays spent, what it has not is free again."""
    return svc.jobs.stop(job_id)


@router.get("/jobs/{job_id}/approval")
def read_job_approval(job_id: str, caller: Approvals, svc: Svc) -> ApprovalView:
    """The approval that a job waits for, or had."""
    return svc.jobs.approval_of(caller, job_id)

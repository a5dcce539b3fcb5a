"""Plans: what a job would be and cost."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.wire.jobs import JobRequest, PlanView

router = APIRouter(tags=["plans"], route_class=Route)

Creator = Annotated[Principal, Depends(Requires(Action.JOBS_CREATE))]


@router.post("/plans")
def create_plan(job: JobRequest, caller: Creator, svc: Svc) -> PlanView:
    """Plan and price a job as `POST /v1/jobs` would; nothing is held and nothing runs."""
    return svc.jobs.plan(caller, job)

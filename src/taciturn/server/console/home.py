"""The start page: what waits for its reader, by what they may do."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import Paging
from taciturn.server.services import Services
from taciturn.wire.datasets import BudgetView
from taciturn.wire.jobs import ApprovalView, JobState, JobView

router = APIRouter(route_class=PageRoute)

_FEW = Paging(limit=8)
_UNFINISHED = (JobState.RUNNING, JobState.PROVISIONING, JobState.QUEUED, JobState.AWAITING_APPROVAL)


@router.get("/")
def read_home(
    request: Request,
    caller: Annotated[Principal, Depends(Requires(Action.SELF_READ))],
    services: Svc,
) -> Response:
    """Show what waits for the caller."""
    return page(
        request,
        "home.html",
        caller,
        approvals=_to_decide(services, caller),
        running=_jobs(services, caller, *_UNFINISHED),
        failed=_jobs(services, caller, JobState.FAILED)[:3],
        budgets=_budgets(services, caller),
    )


def _to_decide(services: Services, caller: Principal) -> list[ApprovalView]:
    if Action.APPROVALS_DECIDE not in caller.actions:
        return []
    items = services.approvals.page(caller, _FEW, "open").items
    return [item for item in items if caller.name not in (item.requester, *item.approved_by)]


def _jobs(services: Services, caller: Principal, *states: JobState) -> list[JobView]:
    if Action.JOBS_READ not in caller.actions:
        return []
    return [job for state in states for job in services.jobs.page(caller, _FEW, state, None).items]


def _budgets(services: Services, caller: Principal) -> list[BudgetView]:
    if Action.BUDGETS_READ not in caller.actions:
        return []
    policies = services.policies.page(caller, "", 6)
    return [services.budgets.view(policy, caller) for policy in policies]

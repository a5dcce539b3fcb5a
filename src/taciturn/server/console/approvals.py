"""Approvals: what waits for two people, what it would leave, and what they say."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.problems import ProblemError
from taciturn.wire.jobs import Decision, Withdrawal

router = APIRouter(prefix="/approvals", route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.APPROVALS_READ))]
Decider = Annotated[Principal, Depends(Requires(Action.APPROVALS_DECIDE))]


@router.get("")
def read_approvals(request: Request, caller: Reader, services: Svc, paging: PageQuery) -> Response:
    """Show what the caller asked for or may decide."""
    items = services.approvals.page(caller, paging, None)
    return page(request, "approvals.html", caller, items=items)


@router.get("/{approval_id}")
def read_approval(request: Request, caller: Reader, services: Svc, approval_id: str) -> Response:
    """Show one request, and what it would leave of the budget."""
    item = services.approvals.view(caller, approval_id)
    return page(request, "approval.html", caller, item=item)


@router.post("/{approval_id}/decisions")
def decide(
    caller: Decider,
    services: Svc,
    approval_id: str,
    decision: Annotated[Literal["approve", "reject"], Form()],
    comment: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Approve or reject."""
    try:
        answer = Decision(decision=decision, comment=comment or None)
    except ValueError:
        raise ProblemError("invalid", "comment: one line of 200 characters at most") from None
    services.jobs.decide(caller, approval_id, answer)
    return go_to(f"/approvals/{approval_id}")


@router.post("/{approval_id}/withdrawals")
def withdraw(caller: Decider, services: Svc, approval_id: str) -> Response:
    """Take one's own approval back."""
    services.approvals.withdraw(caller, approval_id, Withdrawal())
    return go_to(f"/approvals/{approval_id}")

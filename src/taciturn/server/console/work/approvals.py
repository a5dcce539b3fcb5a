"""Approvals: what waits for two people, what it would leave, and what they say."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from taciturn.server.console.forms import checked
from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.timestamps import moment
from taciturn.wire.jobs import ApprovalView, Decision, Withdrawal

router = APIRouter(prefix="/approvals", route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.APPROVALS_READ))]
Decider = Annotated[Principal, Depends(Requires(Action.APPROVALS_DECIDE))]
Comment = Annotated[str, Form(max_length=200)]


@router.get("")
def read_approvals(
    request: Request,
    caller: Reader,
    services: Svc,
    paging: PageQuery,
    tab: Annotated[Literal["open", "decided"], Query()] = "open",
) -> Response:
    """Show what the caller asked for or may decide: what is open, or what is over."""
    items = services.approvals.page(caller, paging, tab)
    return page(
        request,
        "approvals.html",
        caller,
        items=items,
        tab=tab,
        first=paging.after is None,
        states={item.id: _state(item, services.gateway.now_ms()) for item in items.items},
    )


@router.get("/{approval_id}")
def read_approval(request: Request, caller: Reader, services: Svc, approval_id: str) -> Response:
    """Show one request, what it would leave of the budget, and who has said what."""
    item = services.approvals.view(caller, approval_id)
    own = [decision for decision in item.decisions if decision.approver == caller.name]
    return page(
        request,
        "approval.html",
        caller,
        item=item,
        state_text=_state(item, services.gateway.now_ms()),
        own=own[-1].decision if own else None,
    )


@router.post("/{approval_id}/decisions")
def decide(
    caller: Decider,
    services: Svc,
    approval_id: str,
    decision: Annotated[Literal["approve", "reject"], Form()],
    comment: Comment = "",
) -> Response:
    """Approve or reject."""
    answer = checked(Decision, decision=decision, comment=comment.strip() or None)
    services.jobs.decide(caller, approval_id, answer)
    return go_to(f"/approvals/{approval_id}")


@router.post("/{approval_id}/withdrawals")
def withdraw(caller: Decider, services: Svc, approval_id: str, comment: Comment = "") -> Response:
    """Take one's own approval back."""
    withdrawal = checked(Withdrawal, comment=comment.strip() or None)
    services.approvals.withdraw(caller, approval_id, withdrawal)
    return go_to(f"/approvals/{approval_id}")


def _state(item: ApprovalView, now_ms: int) -> str:
    """Return the state; a request whose job was ended before its time was over is `withdrawn`."""
    if item.state == "expired" and item.expires_at > moment(now_ms):
        return "withdrawn"
    return "open" if item.state == "open" else item.state

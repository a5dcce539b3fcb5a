"""Approvals: what waits for two people."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.jobs import ApprovalView, Decision, Withdrawal
from taciturn.wire.values import Page

router = APIRouter(tags=["approvals"], route_class=Route)

Reader = Annotated[Principal, Depends(Requires(Action.APPROVALS_READ))]
Decider = Annotated[Principal, Depends(Requires(Action.APPROVALS_DECIDE))]
State = Literal["open", "decided", "approved", "rejected", "expired", "used"]


@router.get("/approvals")
def list_approvals(
    caller: Reader,
    svc: Svc,
    page: PageQuery,
    state: Annotated[
        State | None,
        Query(description="Only approvals in this state; `decided`: all that are open no more."),
    ] = None,
) -> Page[ApprovalView]:
    """Requests that the caller made or may decide, newest first; all for auditors."""
    return svc.approvals.page(caller, page, state)


@router.get("/approvals/{approval_id}")
def read_approval(approval_id: str, caller: Reader, svc: Svc) -> ApprovalView:
    """One request for approval: the job, its requester and purpose, the decisions, and the budget
    that would remain."""
    return svc.approvals.view(caller, approval_id)


@router.post("/approvals/{approval_id}/decisions", status_code=201)
def decide(approval_id: str, answer: Decision, caller: Decider, svc: Svc) -> ApprovalView:
    """Approve or reject. Two approvals let the job go on, one rejection ends it."""
    return svc.jobs.decide(caller, approval_id, answer)


@router.post("/approvals/{approval_id}/withdrawals", status_code=201)
def withdraw(approval_id: str, withdrawal: Withdrawal, caller: Decider, svc: Svc) -> ApprovalView:
    """Take one's own yes back, until the job makes use of it: when the last of two has approved."""
    return svc.approvals.withdraw(caller, approval_id, withdrawal)

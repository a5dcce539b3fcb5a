"""One's own tokens and sessions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response

from taciturn.server.console.forms import checked
from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.identity import NewToken

router = APIRouter(prefix="/account", route_class=PageRoute)
Manager = Annotated[Principal, Depends(Requires(Action.TOKENS_MANAGE))]

SCOPES = {
    Action.SELF_READ: "say who it acts for",
    Action.TOKENS_MANAGE: "make and revoke tokens of yours",
    Action.NOTIFICATIONS_MANAGE: "say what you are told, and where",
    Action.USERS_READ: "see who may come in",
    Action.USERS_WRITE: "let people in, change and lock them out",
    Action.DATASETS_READ: "see datasets and their previews",
    Action.DATASETS_WRITE: "register and change datasets",
    Action.PUBLIC_DATASETS_READ: "see what is declared public",
    Action.PUBLIC_DATASETS_WRITE: "declare text public",
    Action.POLICIES_READ: "see the terms of budgets",
    Action.POLICIES_WRITE: "change the terms of budgets",
    Action.GRANTS_READ: "see grants",
    Action.GRANTS_WRITE: "give and revoke grants",
    Action.BUDGETS_READ: "see what is left of budgets",
    Action.JOBS_READ: "see jobs and how far they are",
    Action.JOBS_CREATE: "ask for jobs, which spend budget",
    Action.JOBS_CANCEL: "end jobs",
    Action.JOBS_OPERATE: "see and end everybody's jobs",
    Action.MODELS_READ: "see models and download what is yours",
    Action.MODELS_USE: "have models write text",
    Action.MODELS_WRITE: "remove models",
    Action.BASE_MODELS_READ: "see what may be fitted",
    Action.BASE_MODELS_WRITE: "change what may be fitted",
    Action.APPROVALS_READ: "see requests for approval",
    Action.APPROVALS_DECIDE: "approve and reject in your name",
    Action.INCIDENTS_READ: "read logs of failures, which may quote rows",
    Action.LEDGER_READ: "read and check the ledger",
    Action.AUDIT_LOG_READ: "read the audit log",
    Action.GATEWAY_READ: "see settings, versions and backups",
    Action.RETENTION_READ: "see how long logs are kept",
    Action.RETENTION_PRUNE: "remove logs whose time is over",
}
"""What each scope lets a token do, in words."""


@router.get("")
def read_account(request: Request, caller: Manager, services: Svc, paging: PageQuery) -> Response:
    """Show one's own tokens and sessions."""
    items = services.tokens.list(caller, paging)
    _, links = services.links.history(caller)
    return page(
        request,
        "account.html",
        caller,
        items=items,
        first=paging.after is None,
        scopes={action: SCOPES.get(action, "") for action in Action if action in caller.actions},
        now=services.gateway.clock(),
        links=links,
    )


@router.post("/tokens")
def make_token(
    request: Request,
    caller: Manager,
    services: Svc,
    name: Annotated[str, Form(max_length=200)],
    expires_in_days: Annotated[int, Form(ge=1, le=366)] = 30,
    scope: Annotated[list[str] | None, Form(max_length=100)] = None,
) -> Response:
    """Make a token, shown this once."""
    fields = {"name": name.strip(), "expires_in_days": expires_in_days}
    new = checked(NewToken, **fields, scopes=tuple(scope or ()))
    return page(request, "token.html", caller, token=services.tokens.create(caller, new))


@router.post("/tokens/{token_id}/revocations")
def revoke_token(caller: Manager, services: Svc, token_id: str) -> Response:
    """End a token or a session of one's own."""
    services.tokens.revoke(caller, token_id)
    return go_to("/account")

"""One's own tokens and sessions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.problems import ProblemError
from taciturn.wire.identity import NewToken

router = APIRouter(prefix="/account", route_class=PageRoute)
Manager = Annotated[Principal, Depends(Requires(Action.TOKENS_MANAGE))]


@router.get("")
def read_account(request: Request, caller: Manager, services: Svc, paging: PageQuery) -> Response:
    """Show one's own tokens and sessions."""
    items = services.tokens.list(caller, paging)
    return page(request, "account.html", caller, items=items)


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
    scopes = {"scopes": tuple(scope)} if scope else {}
    try:
        new = NewToken(name=name, expires_in_days=expires_in_days, **scopes)
    except ValueError:
        raise ProblemError("invalid", "name: one line of 1 to 200 characters") from None
    return page(request, "token.html", caller, token=services.tokens.create(caller, new))


@router.post("/tokens/{token_id}/revocations")
def revoke_token(caller: Manager, services: Svc, token_id: str) -> Response:
    """End a token or a session of one's own."""
    services.tokens.revoke(caller, token_id)
    return go_to("/account")

"""One's own tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.identity import NewToken, TokenSecret, TokenView
from taciturn.wire.values import Page

router = APIRouter(prefix="/tokens", tags=["identity"], route_class=Route)

Holder = Annotated[Principal, Depends(Requires(Action.TOKENS_MANAGE))]


@router.get("")
def list_tokens(caller: Holder, services: Svc, page: PageQuery) -> Page[TokenView]:
    """One's own tokens, newest first, without their secrets."""
    return services.tokens.list(caller, page)


@router.post("", status_code=201)
def create_token(caller: Holder, services: Svc, new: NewToken) -> TokenSecret:
    """Make a token for oneself. Its secret is shown this once."""
    return services.tokens.create(caller, new)


@router.delete("/{token_id}", status_code=204)
def revoke_token(
    caller: Holder, services: Svc, token_id: Annotated[str, Path(pattern=r"^tok_[0-9a-z]{20}$")]
) -> None:
    """End one of one's own tokens, at once."""
    services.tokens.revoke(caller, token_id)

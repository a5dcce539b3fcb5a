"""Logins and logouts: local passwords, browser sessions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from taciturn.server.http.access import Requires, Svc, entrance
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.timestamps import moment
from taciturn.wire.identity import (
    LinkRedemption,
    Login,
    LoginAnswer,
    LoginLook,
    LoginRequest,
    LoginState,
    NewLoginRequest,
    NewPassword,
    Redeemed,
    Session,
    TokenSecret,
)

router = APIRouter(tags=["identity"], route_class=Route)

Self = Annotated[Principal, Depends(Requires(Action.SELF_READ))]


@router.post("/login", status_code=201, dependencies=[Depends(entrance)])
def log_in(request: Request, services: Svc, login: Login) -> TokenSecret:
    """Exchange a local password for a token that lasts for hours; for command line and SDK."""
    token = services.logins.log_in(login, address_of(request), kind="api")
    request.state.actor = f"user:{login.name}"
    return services.tokens.with_text(token.id, token.text)


@router.post("/login-requests", status_code=201, dependencies=[Depends(entrance)])
def begin_login_request(request: Request, services: Svc, new: NewLoginRequest) -> LoginRequest:
    """Ask somebody who is signed in to the console to let this program act as them."""
    return services.login_requests.begin(new, address_of(request))


@router.post("/login-requests/answers", dependencies=[Depends(entrance)])
def read_login_answer(request: Request, services: Svc, look: LoginLook) -> LoginAnswer:
    """Look whether they have; every few seconds, until they have or the request is over. A look
    that finds no answer yet is not on record."""
    state, token = services.login_requests.redeem(look.secret.get_secret_value())
    if token is None:
        request.state.unrecorded = state is LoginState.OPEN
        return LoginAnswer(state=state)
    return LoginAnswer(state=state, token=services.tokens.with_text(token.id, token.text))


@router.post("/sessions", status_code=201, dependencies=[Depends(entrance)])
def begin_session(request: Request, response: Response, services: Svc, login: Login) -> Session:
    """Log a browser in: sets a cookie that scripts cannot read."""
    services.sessions.check_origin(request)
    token = services.logins.log_in(login, address_of(request), kind="session")
    request.state.actor = f"user:{login.name}"
    token_secret = services.tokens.with_text(token.id, token.text)
    csrf = services.sessions.begin(response, token.text)
    return Session(csrf=csrf, expires_at=token_secret.expires_at)


@router.get("/sessions/current")
def read_session(request: Request, caller: Self, services: Svc) -> Session:
    """The browser's session: what a page of ours needs for its writes."""
    csrf = services.sessions.proof(request)
    return Session(csrf=csrf, expires_at=moment(caller.expires_at_ms))


@router.post("/logout", status_code=204)
def log_out(response: Response, caller: Self, services: Svc) -> None:
    """Revoke the token or session in hand."""
    services.directory.revoke(caller.token_id)
    services.sessions.end(response)


@router.put("/self/password", status_code=204)
def change_password(request: Request, caller: Self, services: Svc, change: NewPassword) -> None:
    """Another password for oneself; every other token and session of one's own ends."""
    services.logins.change_password(caller, change, address_of(request))


@router.post("/password-links/redemptions", dependencies=[Depends(entrance)])
def redeem_link(request: Request, services: Svc, redemption: LinkRedemption) -> Redeemed:
    """Set one's password through a link; every token and session that one had ends."""
    name = services.links.redeem(redemption, address_of(request))
    request.state.actor = f"user:{name}"
    return Redeemed(name=name)


def address_of(request: Request) -> str:
    """Address that the request comes from."""
    return request.client.host if request.client else "unknown"

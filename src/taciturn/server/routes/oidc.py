"""Logging in through an OpenID provider.

GET  /v1/oidc/login                      a browser; comes back with a session
GET  /v1/oidc/login?challenge=&port=     a command line that listens on 127.0.0.1:port
GET  /v1/oidc/login?challenge=           a command line elsewhere: the code is shown, to paste
POST /v1/oidc/tokens                     the command line's code, for a token
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from taciturn.server.access import Svc, entrance
from taciturn.server.identity.oidc import FLOW_S, Asker
from taciturn.server.problems import ProblemError
from taciturn.server.routes.blocking import Route
from taciturn.server.services import Services
from taciturn.wire.identity import CodeExchange, TokenSecret

router = APIRouter(
    prefix="/oidc", tags=["identity"], dependencies=[Depends(entrance)], route_class=Route
)

_PATH = "/v1/oidc"
_COOKIE = "taciturn-oidc"

Challenge = Annotated[
    str | None,
    Query(pattern=r"^[A-Za-z0-9_-]{43}$", description="SHA-256 of a verifier, as in PKCE."),
]


@router.get("/login", status_code=302, response_class=RedirectResponse)
def begin_login(
    services: Svc,
    challenge: Challenge = None,
    port: Annotated[
        int | None, Query(ge=1024, le=65535, description="Where a command line listens.")
    ] = None,
) -> RedirectResponse:
    """Send a browser to the provider."""
    if port is not None and challenge is None:
        raise ProblemError("invalid", "port: give a challenge too")
    url, sealed = services.oidc.begin(Asker(challenge, port))
    answer = RedirectResponse(url, status_code=302)
    answer.set_cookie(
        _COOKIE,
        sealed,
        max_age=FLOW_S,
        path=_PATH,
        secure=services.sessions.secure,
        httponly=True,
        samesite="lax",
    )
    return answer


@router.get("/callback", status_code=302, response_class=RedirectResponse)
def finish_login(
    request: Request,
    services: Svc,
    state: Annotated[str, Query(max_length=200)],
    code: Annotated[str | None, Query(max_length=4000)] = None,
) -> Response:
    """Where the provider sends the browser back to."""
    sealed = request.cookies.get(_COOKIE)
    if sealed is None or code is None:
        raise ProblemError("unauthenticated", "the login was not completed; begin again")
    user_id, asker = services.oidc.finish(sealed, state, code)
    answer = _answer(services, user_id, asker)
    answer.delete_cookie(
        _COOKIE, path=_PATH, secure=services.sessions.secure, httponly=True, samesite="lax"
    )
    return answer


@router.post("/tokens", status_code=201)
def redeem_code(services: Svc, exchange: CodeExchange) -> TokenSecret:
    """Trade a command line's one-time code for a token."""
    made = services.oidc.redeem(
        exchange.code.get_secret_value(), exchange.verifier.get_secret_value()
    )
    return services.tokens.shown(made.id, made.text)


def _answer(services: Services, user_id: str, asker: Asker) -> Response:
    if asker.challenge is None:
        answer = RedirectResponse("/", status_code=302)
        services.sessions.begin(answer, services.logins.start(user_id, kind="session").text)
        return answer
    code = services.oidc.one_time_code(user_id, asker.challenge)
    if asker.port is not None:
        return RedirectResponse(f"http://127.0.0.1:{asker.port}/?code={code}", status_code=302)
    return HTMLResponse(_PAGE.format(code=code))


# The code's alphabet is base64's: there is nothing to escape.
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>taciturn</title>
<p>Paste this code where you ran <b>taciturn login</b>, within two minutes, and nowhere else:</p>
<pre>{code}</pre></html>
"""

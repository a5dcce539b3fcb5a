"""Login through an OpenID provider.

GET  /v1/oidc/login                      a browser; comes back with a session
GET  /v1/oidc/login?challenge=&port=     a command line that listens on 127.0.0.1:port
GET  /v1/oidc/login?challenge=           a command line elsewhere: the code is shown, to paste
POST /v1/oidc/tokens                     the command line's code, for a token
"""

from __future__ import annotations

import hmac
from html import escape
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from taciturn.server.http.access import Svc, entrance
from taciturn.server.http.blocking import Route
from taciturn.server.http.routes.pages import fields_of, page
from taciturn.server.identity.oidc import FLOW_S, LoginOrigin
from taciturn.server.identity.sessions import csrf_proof
from taciturn.server.problems import ProblemError
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
    url, sealed = services.oidc.begin(LoginOrigin(challenge, port))
    answer = RedirectResponse(url, status_code=302)
    _keep(services, answer, sealed)
    return answer


@router.get("/callback", status_code=302, response_class=RedirectResponse)
def finish_login(
    request: Request,
    services: Svc,
    state: Annotated[str, Query(max_length=200)],
    code: Annotated[str | None, Query(max_length=4000)] = None,
) -> Response:
    """Finish a login when the provider sends the browser back. A command line gets its code only
    once the person has said yes on a page."""
    sealed = request.cookies.get(_COOKIE)
    if sealed is None or code is None:
        raise ProblemError("unauthenticated", "the login was not completed; begin again")
    user_id, origin = services.oidc.finish(sealed, state, code)
    if origin.challenge is None:
        answer = RedirectResponse("/", status_code=302)
        services.sessions.begin(answer, services.logins.start(user_id, kind="session").text)
        _forget(services, answer)
        return answer
    question = services.oidc.ask(user_id, origin)
    asking = _asking(services.oidc.name_of(user_id), origin, question)
    _keep(services, asking, question)
    return asking


@router.post("/confirmations", status_code=200, response_class=HTMLResponse)
async def confirm_login(request: Request, services: Svc) -> Response:
    """The person has said yes on that page: a command line gets its code, on its port or shown."""
    services.sessions.check_origin(request)
    sealed, fields = request.cookies.get(_COOKIE), await fields_of(request)
    if sealed is None or not hmac.compare_digest(
        fields.get("proof", "").encode(), csrf_proof(sealed).encode()
    ):
        raise ProblemError("unauthenticated", "no login was begun in this browser; begin again")
    user_id, origin = services.oidc.answered(sealed)
    assert origin.challenge is not None, "else nothing was asked"
    code = services.oidc.one_time_code(user_id, origin.challenge)
    answer = _code_answer(code, origin.port)
    _forget(services, answer)
    return answer


@router.post("/tokens", status_code=201)
def redeem_code(services: Svc, exchange: CodeExchange) -> TokenSecret:
    """Trade a command line's one-time code for a token."""
    token = services.oidc.redeem(
        exchange.code.get_secret_value(), exchange.verifier.get_secret_value()
    )
    return services.tokens.with_text(token.id, token.text)


def _asking(name: str, origin: LoginOrigin, question: str) -> HTMLResponse:
    """The page that asks. What the command line printed tells it from one that somebody else has
    begun: the challenge's first eight characters."""
    challenge = origin.challenge or ""
    redirect_origin = "" if origin.port is None else f" http://127.0.0.1:{origin.port}"
    return page(
        f"<h1>Let a command line act as {escape(name)}?</h1><p>Somebody has begun a login of "
        f"<code>taciturn</code> with the code <b>{escape(challenge[:8])}</b>. Go on only if that "
        "was you, just now, and your terminal shows the same code. Who has the token can do what "
        "you can do here.</p>"
        f'<form method="post" action="{_PATH}/confirmations"><input type="hidden" name="proof" '
        f'value="{csrf_proof(question)}"><button>Yes, log it in</button></form>'
        "<p>If it was not you, close this page: nothing happens.</p>",
        forms=f"'self'{redirect_origin}",  # and where a browser is sent on to from there
    )


def _code_answer(code: str, port: int | None) -> Response:
    """The code, for the command line alone. Its alphabet is base64's."""
    if port is None:
        return page(
            "<p>Paste this code where you ran <b>taciturn login</b>, within two minutes, and "
            f"nowhere else:</p><pre>{escape(code)}</pre>"
        )
    where = f"http://127.0.0.1:{port}/?{urlencode({'code': code})}"
    return RedirectResponse(where, status_code=303)


def _keep(services: Services, answer: Response, sealed: str) -> None:
    answer.set_cookie(
        _COOKIE,
        sealed,
        max_age=FLOW_S,
        path=_PATH,
        secure=services.sessions.secure,
        httponly=True,
        samesite="lax",
    )


def _forget(services: Services, answer: Response) -> None:
    answer.delete_cookie(
        _COOKIE, path=_PATH, secure=services.sessions.secure, httponly=True, samesite="lax"
    )

"""Signing in and out; the files that pages load."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from taciturn.server.console.rendering import (
    SIGN_IN,
    STATIC,
    PageRoute,
    compressed,
    go_to,
    page,
    public_address,
    static_files,
    takes_gzip,
)
from taciturn.server.http.access import Requires, Svc, entrance, public
from taciturn.server.http.routes.logins import address_of
from taciturn.server.http.routes.pages import fields_of
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.wire.identity import Login

router = APIRouter(route_class=PageRoute)

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_WRONG = "the name or the password is wrong"


@router.get(SIGN_IN, dependencies=[Depends(public)])
async def read_sign_in(
    request: Request,
    services: Svc,
    next: str = "/",
    session_over: Annotated[str, Query(alias="ended")] = "",
) -> Response:
    """Show the form, and to somebody whose session has ended, that it has."""
    return _form(request, services, next, session_over=bool(session_over))


@router.post(SIGN_IN, dependencies=[Depends(entrance)])
async def sign_in(request: Request, services: Svc) -> Response:
    """Begin a session, and open the page that was asked for first."""
    services.sessions.check_origin(request)
    fields = await fields_of(request)
    path = fields.get("next", "/")
    try:
        login = Login(name=fields.get("name", ""), password=fields.get("password", ""))  # type: ignore[arg-type]
    except ValidationError:
        return _form(request, services, path, ProblemError("unauthenticated", _WRONG))
    try:
        token = await run_in_threadpool(
            services.logins.log_in, login, address_of(request), kind="session"
        )
    except ProblemError as problem:
        return _form(request, services, path, problem)
    request.state.actor = f"user:{login.name}"
    answer = RedirectResponse(_local(path), status_code=303)
    services.sessions.begin(answer, token.text)
    return answer


@router.post("/sign-out")
def sign_out(
    caller: Annotated[Principal, Depends(Requires(Action.SELF_READ))], services: Svc
) -> Response:
    """End the session."""
    services.directory.revoke(caller.token_id)
    answer = go_to(SIGN_IN)
    services.sessions.end(answer)
    return answer


@router.get(STATIC + "/{digest}/{name:path}", dependencies=[Depends(public)])
async def read_static(request: Request, digest: str, name: str) -> Response:
    """Send a file that pages load; its address changes with its content, so browsers keep it."""
    current, content = static_files().get(name, ("", b""))
    if not content or current != digest:
        raise ProblemError("not_found", "there is no such file")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    if takes_gzip(request):
        content = compressed(name)
        headers["Content-Encoding"] = "gzip"
    return Response(content, media_type=_TYPES[name.rsplit(".", 1)[-1]], headers=headers)


def _form(
    request: Request,
    services: Svc,
    path: str,
    problem: ProblemError | None = None,
    *,
    session_over: bool = False,
) -> Response:
    body = None if problem is None else problem.problem()
    if problem is not None:
        request.state.code = problem.code
    answer = page(
        request,
        "sign_in.html",
        status=200 if body is None else body.status,
        provider=services.oidc.provider is not None,
        next=_local(path),
        address=public_address(services),
        problem=body,
        session_over=session_over,
    )
    if problem is not None:
        for name, value in problem.headers.items():
            answer.headers[name] = value
    return answer


def _local(path: str) -> str:
    """Return a path of this gateway's own pages; "/" for anything else."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if plain and all(character.isprintable() for character in path) else "/"

"""Programs that ask to act as somebody: the page where that person says yes or no."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.login_requests import PAGE, normal
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.timestamps import moment

router = APIRouter(prefix=PAGE, route_class=PageRoute)
Manager = Annotated[Principal, Depends(Requires(Action.TOKENS_MANAGE))]


@router.get("")
def read_code_form(request: Request, caller: Manager) -> Response:
    """Show the form for a code that was typed off another screen."""
    return page(request, "login_code.html", caller)


@router.post("")
def open_request(caller: Manager, code: Annotated[str, Form(max_length=40)]) -> Response:
    """Open the page of a code."""
    return go_to(f"{PAGE}/{normal(code)}")


@router.get("/{code}")
def read_request(request: Request, caller: Manager, services: Svc, code: str) -> Response:
    """Ask whether a program may act as the caller."""
    question = services.login_requests.question(code)
    return page(
        request,
        "login_request.html",
        caller,
        question=question,
        asked_at=moment(question.created_at_ms),
        expires_at=moment(question.expires_at_ms),
        hours=services.gateway.settings.session_s / 3600,
    )


@router.post("/{code}/answers")
def answer_request(
    caller: Manager, services: Svc, code: str, answer: Annotated[Literal["allow", "deny"], Form()]
) -> Response:
    """Take the answer."""
    question = services.login_requests.answer(caller, code, allow=answer == "allow")
    return go_to(f"{PAGE}/{question.code}")

"""A playground: prompts for one model, answered as they are written.

Its script asks the OpenAI-compatible API as the reader of the page, so nothing is allowed here
that is not allowed there.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from taciturn.server.console.models.models import usable
from taciturn.server.console.rendering import PageRoute, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.wire.openai import BASE

router = APIRouter(prefix="/models", route_class=PageRoute)
User = Annotated[Principal, Depends(Requires(Action.MODELS_USE))]


@router.get("/{model_id}/playground")
def read_playground(request: Request, caller: User, services: Svc, model_id: str) -> Response:
    """Show the form; answers come to it from the API."""
    item = usable(services, caller, model_id)
    return page(
        request,
        "playground.html",
        caller,
        item=item,
        base=BASE,
        most=longest_answer(item.context_length),
        chats=services.chats.is_templated(item.job),
    )


def longest_answer(context_length: int | None) -> int:
    """Most tokens of an answer: some of a prompt have to fit into the model's context, too."""
    return 2048 if context_length is None else max(1, context_length - 2)

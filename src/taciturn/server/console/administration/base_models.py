"""Base models: what may be fitted, as it is declared."""

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
from taciturn.wire.models import NewBaseModel

router = APIRouter(prefix="/base-models", route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.BASE_MODELS_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.BASE_MODELS_WRITE))]
_Count = Annotated[str, Form(max_length=20)]


@router.get("")
def read_base_models(
    request: Request, caller: Reader, services: Svc, paging: PageQuery
) -> Response:
    """Show the base models that may be fitted."""
    items = services.base_models.list(paging)
    return page(request, "base_models.html", caller, items=items)


@router.post("")
def add_base_model(
    caller: Writer,
    services: Svc,
    name: Annotated[str, Form(max_length=300)],
    parameters: _Count,
    context_length: _Count,
    vocabulary: _Count,
) -> Response:
    """Declare one."""
    new = checked(
        NewBaseModel,
        name=name.strip(),
        parameters=_digits(parameters),
        context_length=_digits(context_length),
        vocabulary=_digits(vocabulary),
    )
    services.base_models.add(caller, new)
    return go_to("/base-models")


@router.post("/removals")
def remove_base_model(
    caller: Writer, services: Svc, name: Annotated[str, Form(max_length=300)]
) -> Response:
    """Let nobody fit it any more."""
    services.base_models.remove(name)
    return go_to("/base-models")


def _digits(text: str) -> int | str:
    """Return a number that people may have written with separators of thousands."""
    digits = "".join(character for character in text if character not in ",._ \u00a0'")
    return int(digits) if digits.isascii() and digits.isdecimal() else text

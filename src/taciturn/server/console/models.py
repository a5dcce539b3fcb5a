"""Fitted models: their reports, their files, and how to use them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, page, public_address
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery

router = APIRouter(prefix="/models", route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.MODELS_READ))]


@router.get("")
def read_models(request: Request, caller: Reader, services: Svc, paging: PageQuery) -> Response:
    """Show the models that the caller may know of."""
    return page(request, "models.html", caller, items=services.models.list(caller, paging))


@router.get("/{model_id}")
def read_model(request: Request, caller: Reader, services: Svc, model_id: str) -> Response:
    """Show one model."""
    item = services.models.get(caller, model_id)
    report = {
        name: value
        for name, value in item.report.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }
    return page(
        request,
        "model.html",
        caller,
        item=item,
        report=report,
        certificate="certificate.json" in item.files,
        address=public_address(services),
    )

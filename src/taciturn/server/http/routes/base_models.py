"""Base models that may be fitted."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.models import BaseModelView, NewBaseModel
from taciturn.wire.values import Page

router = APIRouter(tags=["base models"], route_class=Route)

Reader = Annotated[Principal, Depends(Requires(Action.BASE_MODELS_READ))]
Administrator = Annotated[Principal, Depends(Requires(Action.BASE_MODELS_WRITE))]


@router.get("/base-models")
def list_base_models(caller: Reader, services: Svc, paging: PageQuery) -> Page[BaseModelView]:
    """All of them; a namespace's policy may allow fewer."""
    return services.base_models.list(paging)


@router.post("/base-models", status_code=201)
def add_base_model(new: NewBaseModel, caller: Administrator, services: Svc) -> BaseModelView:
    """Declare one. Plans are priced by what is declared; a worker that finds other figures
    refuses to run."""
    return services.base_models.add(caller, new)


@router.get("/base-models/{name:path}")
def read_base_model(name: str, caller: Reader, services: Svc) -> BaseModelView:
    """One of them."""
    return services.base_models.get(name)


@router.delete("/base-models/{name:path}", status_code=204)
def delete_base_model(name: str, caller: Administrator, services: Svc) -> None:
    """Let nobody fit it any more; what was fitted stays."""
    services.base_models.remove(name)

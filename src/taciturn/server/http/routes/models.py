"""Fitted models and their files."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import JSONResponse, Response

from taciturn.reports.privacy import CERTIFICATE
from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.http.routes.openai import is_openai, model_list
from taciturn.server.http.sending import bounds, file_response, policy_header
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.jobs import ModelView
from taciturn.wire.values import Page

router = APIRouter(tags=["models"], route_class=Route)

Reader = Annotated[Principal, Depends(Requires(Action.MODELS_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.MODELS_WRITE))]
Range = Annotated[str | None, Header(description="bytes=FIRST-LAST")]

BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}},
    206: {"description": "The range that was asked for."},
}


@router.get("/models", response_model=Page[ModelView])
def list_models(
    request: Request, caller: Reader, services: Svc, paging: PageQuery
) -> Page[ModelView] | Response:
    """Models that you may know of, newest first. OpenAI's own clients get the list in their shape;
    see `/openai/v1`."""
    page = services.models.list(caller, paging)
    return JSONResponse(model_list(page.items)) if is_openai(request) else page


@router.get("/models/{model_id}")
def read_model(model_id: str, caller: Reader, services: Svc, response: Response) -> ModelView:
    """One model, with its policy and privacy report."""
    model = services.models.get(caller, model_id)
    response.headers.update(policy_header(model.policy))
    return model


@router.get("/models/{model_id}/certificate", response_class=Response, responses=BINARY)
def read_certificate(model_id: str, caller: Reader, services: Svc) -> Response:
    """The signed statement of what the model cost; auditors may have it of every model."""
    return file_response(*services.models.open(caller, model_id, CERTIFICATE))


@router.get("/models/{model_id}/files/{name}", response_class=Response, responses=BINARY)
def read_model_file(
    model_id: str, name: str, caller: Reader, services: Svc, range: Range = None
) -> Response:
    """A file of a model, for whoever has fitted it and the owners of its data."""
    byte_range = bounds(range)
    download, policy = services.models.open(caller, model_id, name, byte_range)
    return file_response(download, policy, part=byte_range != (None, None))


@router.delete("/models/{model_id}", status_code=204)
def delete_model(model_id: str, caller: Writer, services: Svc) -> None:
    """Remove a model and its files. What it has spent stays spent."""
    services.models.remove(caller, model_id)

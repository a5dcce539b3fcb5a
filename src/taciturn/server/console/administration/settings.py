"""Settings of the gateway with where each comes from; versions, backups, what is kept how long."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.settings import described

router = APIRouter(route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.GATEWAY_READ))]
RetentionReader = Annotated[Principal, Depends(Requires(Action.RETENTION_READ))]
Pruner = Annotated[Principal, Depends(Requires(Action.RETENTION_PRUNE))]
LogReader = Annotated[Principal, Depends(Requires(Action.AUDIT_LOG_READ))]


@router.get("/settings")
def read_settings(request: Request, caller: Reader, services: Svc) -> Response:
    """Show settings, versions and backups."""
    return page(
        request,
        "settings.html",
        caller,
        settings=described(services.gateway.settings),
        versions=services.operations.versions(),
        backup=services.operations.backup(),
    )


@router.get("/retention")
def read_retention(request: Request, caller: RetentionReader, services: Svc) -> Response:
    """Show how long logs are kept, and how many there are."""
    return page(request, "retention.html", caller, retention=services.retention.view())


@router.post("/retention/prunes")
def prune(request: Request, caller: Pruner, services: Svc) -> Response:
    """Remove now what the settings say is over."""
    pruned = services.retention.prune(f"user:{caller.name}")
    return page(request, "pruned.html", caller, pruned=pruned)


@router.get("/retention/exports")
def read_exports(request: Request, caller: LogReader, services: Svc, paging: PageQuery) -> Response:
    """Show the files into which old rows of the audit log went."""
    exports = services.retention.exports(paging)
    return page(request, "exports.html", caller, items=exports)

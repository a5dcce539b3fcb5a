"""Retention: how long things are kept, what was removed, and removing it now."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from fastapi.responses import StreamingResponse

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.identity import AuditLogExport, Pruned, Retention
from taciturn.wire.values import Page

router = APIRouter(prefix="/retention", tags=["audit log"], route_class=Route)

_AUDITOR = Depends(Requires(Action.AUDIT_LOG_READ))
_JSONL: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}
}


@router.get("", dependencies=[Depends(Requires(Action.RETENTION_READ))])
def read_retention(services: Svc) -> Retention:
    """Retention times of audit log and incidents, and how many of them there are."""
    return services.retention.view()


@router.post("/prunes")
def prune(
    caller: Annotated[Principal, Depends(Requires(Action.RETENTION_PRUNE))], services: Svc
) -> Pruned:
    """Remove now what the settings say is over, as the gateway does each hour by itself."""
    return services.retention.prune(f"user:{caller.name}")


@router.get("/exports", dependencies=[_AUDITOR])
def list_exports(services: Svc, page: PageQuery) -> Page[AuditLogExport]:
    """Exports of the audit log, oldest first, each chained to the one before."""
    return services.retention.exports(page)


@router.get(
    "/exports/{export_id}",
    dependencies=[_AUDITOR],
    response_class=StreamingResponse,
    responses=_JSONL,
)
def read_export(
    services: Svc, export_id: Annotated[int, Path(ge=1, le=2**31 - 1)]
) -> StreamingResponse:
    """The rows of an export, one JSON object a line."""
    return StreamingResponse(services.retention.content(export_id), media_type="application/jsonl")

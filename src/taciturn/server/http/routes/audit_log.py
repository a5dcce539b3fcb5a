"""The audit log: for auditors, and nobody else."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from taciturn.server.audit_log import AuditFilter
from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.paging import PageQuery
from taciturn.wire.identity import AuditEntry
from taciturn.wire.values import Page

router = APIRouter(prefix="/audit-log", tags=["audit log"], route_class=Route)

_NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"


@router.get("", dependencies=[Depends(Requires(Action.AUDIT_LOG_READ))])
def list_entries(
    services: Svc,
    page: PageQuery,
    actor: Annotated[
        str | None, Query(max_length=200, pattern=_NO_CONTROL, examples=["user:ada"])
    ] = None,
    action: Annotated[
        str | None, Query(max_length=60, pattern=_NO_CONTROL, examples=["datasets:read"])
    ] = None,
    resource: Annotated[
        str | None,
        Query(max_length=500, pattern=_NO_CONTROL, description="Beginning of the path."),
    ] = None,
    refusal: Annotated[
        bool | None, Query(description="Whether the answer refused, or failed.")
    ] = None,
    since: Annotated[datetime | None, Query(description="This moment or later.")] = None,
    until: Annotated[datetime | None, Query(description="Before this moment.")] = None,
) -> Page[AuditEntry]:
    """Every request and its answer, newest first."""
    condition = AuditFilter(actor, action, resource, refusal, since, until)
    return services.audit_log.page(page, condition)

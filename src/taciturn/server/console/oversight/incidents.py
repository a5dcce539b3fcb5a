"""Full logs of failures, for owners of the data alone."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal

router = APIRouter(prefix="/incidents", route_class=PageRoute)
IncidentReader = Annotated[Principal, Depends(Requires(Action.INCIDENTS_READ))]


@router.get("/{incident_id}")
def read_incident(
    request: Request, caller: IncidentReader, services: Svc, incident_id: str
) -> Response:
    """Show the full log of a failure to the owner of the data."""
    item = services.incidents.get(caller, incident_id)
    return page(request, "incident.html", caller, item=item)

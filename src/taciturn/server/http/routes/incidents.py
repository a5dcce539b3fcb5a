"""Full logs of failures, for the owner of the data."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.wire.worker import IncidentView

router = APIRouter(tags=["incidents"], route_class=Route)

Owner = Annotated[Principal, Depends(Requires(Action.INCIDENTS_READ))]


@router.get("/incidents/{incident_id}")
def read_incident(
    incident_id: str, caller: Owner, services: Svc, response: Response
) -> IncidentView:
    """The log of a failed job on data of yours. It may quote rows: it is not to be passed on."""
    response.headers["Cache-Control"] = "no-store"
    return services.incidents.get(caller, incident_id)

"""Liveness and readiness of the gateway, for load balancers and supervisors."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from sqlalchemy import text

from taciturn.errors import DatabaseError
from taciturn.server.http.access import Svc, public
from taciturn.server.http.blocking import Route
from taciturn.server.problems import ProblemError
from taciturn.server.schema import versions
from taciturn.server.timestamps import moment
from taciturn.wire.values import Health, Readiness

router = APIRouter(tags=["health"], dependencies=[Depends(public)], route_class=Route)


@router.get("/health")
async def read_health() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/ready")
def read_ready(services: Svc) -> Readiness:
    """Database and schema are there, and nobody has asked the gateway to stop. A launcher that does
    not answer is told, and is no reason to send requests elsewhere: workers' among them."""
    if services.background.stopping.is_set():
        raise ProblemError("unavailable", "the gateway is stopping", headers={"Retry-After": "5"})
    try:
        services.gateway.read(lambda connection: connection.execute(text("SELECT 1")).one())
        versions.check(services.gateway.engine)
    except DatabaseError:
        raise ProblemError(
            "unavailable",
            "the database cannot be reached, or is of another version; `taciturn serve --check` "
            "says which",
            headers={"Retry-After": "5"},
        ) from None
    since_ms = services.outage.since_ms
    if since_ms is None:
        return Readiness(status="ok")
    return Readiness(status="ok", launcher="away", away_since=moment(since_ms))

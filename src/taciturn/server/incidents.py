"""Full logs of failures. They may quote rows: the owner of the data reads them, nobody else."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from taciturn.server.gateway import Gateway
from taciturn.server.identity.principal import Principal
from taciturn.server.moments import moment
from taciturn.server.problems import ProblemError
from taciturn.server.sight import owns_namespace
from taciturn.server.tables import incidents
from taciturn.wire.worker import IncidentView


@dataclass(frozen=True, slots=True)
class Incidents:
    """Gives logs to whom they belong."""

    gateway: Gateway

    def get(self, caller: Principal, incident_id: str) -> IncidentView:
        """The log; raises ProblemError `not_found` for all but the namespace's owner."""
        wanted = select(incidents).where(
            incidents.c.id == incident_id, owns_namespace(caller, incidents.c.namespace)
        )
        row = self.gateway.read(lambda connection: connection.execute(wanted).first())
        if row is None:
            raise ProblemError(
                "not_found", f"there is no incident {incident_id!r} of data that is yours"
            )
        return IncidentView(
            id=row.id,
            job=row.job_id,
            namespace=row.namespace,
            log=row.log.decode("utf-8", "replace"),
            created_at=moment(row.created_at_ms),
        )

"""Full logs of failures. They may quote rows: the owner of the data reads them, nobody else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from taciturn.server.context import Gateway
from taciturn.server.identity.holders import check_access_is_settled
from taciturn.server.identity.job_access import owns_namespace
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import incidents
from taciturn.server.timestamps import moment
from taciturn.wire.worker import IncidentView


@dataclass(frozen=True, slots=True)
class Incidents:
    """Gives logs to whom they belong."""

    gateway: Gateway

    def get(self, caller: Principal, incident_id: str) -> IncidentView:
        """The log; raises ProblemError `not_found` for all but the namespace's owner, and
        `policy_refused` to an owner whose password was set through a link just now."""
        query = select(incidents).where(
            incidents.c.id == incident_id, owns_namespace(caller, incidents.c.namespace)
        )

        def work(connection: Connection) -> Row[Any] | None:
            row = connection.execute(query).first()
            if row is not None:
                check_access_is_settled(connection, caller, row.namespace, self.gateway.now_ms())
            return row

        row = self.gateway.read(work)
        if row is None:
            raise ProblemError(
                "not_found",
                f"there is no incident {incident_id!r} of data that is yours; they are kept for "
                f"{self.gateway.settings.incident_days} days",
            )
        return IncidentView(
            id=row.id,
            job=row.job_id,
            namespace=row.namespace,
            log=row.log.decode("utf-8", "replace"),
            created_at=moment(row.created_at_ms),
        )

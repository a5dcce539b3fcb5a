"""Events of jobs, from the status of their workers: each once, though a monitor that restarts
reports again what it had reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, select

from taciturn.server.context import Gateway
from taciturn.server.launchers.kubernetes.names import Worker
from taciturn.server.schema.tables import job_events, jobs
from taciturn.wire.events import JOB_EVENT, JobEvent, NodeEvent

Append = Callable[[Connection, str, JobEvent], None]
"""Adds an event to a job, in the caller's transaction."""

_NODES = "node."  # codes of what is said of a node once, however long ago


@dataclass(frozen=True, slots=True)
class StatusEvents:
    """Writes the reports of a monitor into the events of jobs."""

    gateway: Gateway
    append: Append

    def __call__(self, handle: str, event: NodeEvent) -> None:
        """Add the event to the worker's job, unless it is there."""
        job_id = Worker.of(handle).job_id

        def work(connection: Connection) -> None:
            query = select(jobs.c.id).where(jobs.c.id == job_id)
            if connection.execute(query).first() is None:
                return
            earlier = _node_events(connection, job_id)
            if event.code.startswith(_NODES):
                repeated = event in earlier
            else:
                statuses = (past for past in reversed(earlier) if not past.code.startswith(_NODES))
                repeated = next(statuses, None) == event
            if not repeated:
                self.append(connection, job_id, event)

        self.gateway.write(work)


def _node_events(connection: Connection, job_id: str) -> list[NodeEvent]:
    query = (
        select(job_events.c.data)
        .where(job_events.c.job_id == job_id)
        .order_by(job_events.c.sequence)
    )
    events = (JOB_EVENT.validate_json(data) for data in connection.execute(query).scalars())
    return [event for event in events if isinstance(event, NodeEvent)]

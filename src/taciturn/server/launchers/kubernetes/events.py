"""News of workers become events of their jobs, each once, though a monitor that restarts tells
again what it had told."""

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
class News:
    """Writes what a monitor reports."""

    gateway: Gateway
    append: Append

    def __call__(self, handle: str, event: NodeEvent) -> None:
        """Add the event to the worker's job, unless it was told before."""
        job_id = Worker.of(handle).job_id

        def work(connection: Connection) -> None:
            known = select(jobs.c.id).where(jobs.c.id == job_id)
            if connection.execute(known).first() is None:
                return
            told = _told(connection, job_id)
            if event.code.startswith(_NODES):
                repeated = event in told
            else:
                stories = [each for each in told if not each.code.startswith(_NODES)]
                repeated = bool(stories) and stories[-1] == event
            if not repeated:
                self.append(connection, job_id, event)

        self.gateway.write(work)


def _told(connection: Connection, job_id: str) -> list[NodeEvent]:
    wanted = (
        select(job_events.c.data)
        .where(job_events.c.job_id == job_id)
        .order_by(job_events.c.sequence)
    )
    events = (JOB_EVENT.validate_json(data) for data in connection.execute(wanted).scalars())
    return [event for event in events if isinstance(event, NodeEvent)]

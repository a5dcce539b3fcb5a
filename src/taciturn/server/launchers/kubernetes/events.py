"""Events of jobs, from the status of their workers: each once, though a monitor that restarts
reports again what it had reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from taciturn.server.context import Gateway
from taciturn.server.launchers.kubernetes.names import Worker
from taciturn.server.schema.tables import job_events, jobs
from taciturn.wire.events import JOB_EVENT, JobEvent, NodeEvent

Append = Callable[[Connection, str, JobEvent], None]
"""Adds an event to a job, in the caller's transaction."""

_BEGIN = '{"type":"node","code":'
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
            if event.code.startswith(_NODES):
                earlier = connection.execute(_news(job_id, event.code)).scalars()
            else:
                earlier = connection.execute(_newest_status(job_id)).scalars()
            if event not in [JOB_EVENT.validate_json(data) for data in earlier]:
                self.append(connection, job_id, event)

        self.gateway.write(work)


def _news(job_id: str, code: str) -> Select[Any]:
    """Query for the events of a job that have a code, or one that begins like it: a few of what
    may be thousands."""
    begins = JOB_EVENT.dump_json(NodeEvent(code=code, text="")).decode().partition('","text"')[0]
    return select(job_events.c.data).where(
        job_events.c.job_id == job_id, job_events.c.data.startswith(begins, autoescape=True)
    )


def _newest_status(job_id: str) -> Select[Any]:
    """Query for the newest status of a job's worker."""
    of_nodes = job_events.c.data.startswith(f'{_BEGIN}"{_NODES}', autoescape=True)
    statuses = select(job_events.c.data).where(
        job_events.c.job_id == job_id,
        job_events.c.data.startswith(_BEGIN, autoescape=True),
        ~of_nodes,
    )
    return statuses.order_by(job_events.c.sequence.desc()).limit(1)

"""Overview of what waits for a person and what goes on for them now: a few rows of each kind."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, select

from taciturn.server.context import Gateway
from taciturn.server.identity.namespace_access import owned_namespaces
from taciturn.server.identity.principal import Principal
from taciturn.server.jobs.views import job_view, visible_jobs
from taciturn.server.schema.tables import datasets, grant_terms, job_events, jobs
from taciturn.server.timestamps import moment
from taciturn.wire.datasets import DatasetState
from taciturn.wire.events import JOB_EVENT, CountEvent, ProgressEvent
from taciturn.wire.identity import Role
from taciturn.wire.jobs import JobState, JobView

_FEW = 8
_DAY_MS = 86_400_000
ENDING_DAYS, FAILED_DAYS = 30, 7
_UNFINISHED = tuple(state.value for state in JobState if not state.over)


@dataclass(frozen=True, slots=True)
class CurrentJob:
    """A job that is not over.

    Attributes:
        number, of: steps or texts, where its worker has said so.
    """

    view: JobView
    number: int | None = None
    of: int | None = None


@dataclass(frozen=True, slots=True)
class EndingGrant:
    """A grant that ends soon."""

    namespace: str
    holder: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Overview:
    """Finds them, by conditions of access that hold elsewhere too."""

    gateway: Gateway

    def current(self, caller: Principal) -> tuple[CurrentJob, ...]:
        """Return jobs that the caller may follow and that are not over, the newest first."""
        rows = self._jobs(caller, _UNFINISHED)
        return tuple(self._current(job_view(row)) for row in rows)

    def failed(self, caller: Principal) -> tuple[JobView, ...]:
        """Return the caller's own jobs that failed within the last week, the newest first."""
        since_ms = self.gateway.now_ms() - FAILED_DAYS * _DAY_MS
        is_recent = (jobs.c.requester_id == caller.user_id) & (jobs.c.updated_at_ms > since_ms)
        rows = self._jobs(caller, (JobState.FAILED.value,), is_recent)
        return tuple(job_view(row) for row in rows)

    def ending_grants(self, caller: Principal) -> tuple[EndingGrant, ...]:
        """Return live grants that end within 30 days: the caller's, and those of what they own."""
        now_ms = self.gateway.now_ms()
        visible: ColumnElement[bool] = grant_terms.c.holder.in_(caller.holders)
        if caller.has(Role.OWNER):
            visible |= grant_terms.c.namespace.in_(owned_namespaces(caller))
        query = (
            select(grant_terms)
            .where(
                visible,
                grant_terms.c.revoked_at_ms.is_(None),
                grant_terms.c.expires_at_ms > now_ms,
                grant_terms.c.expires_at_ms < now_ms + ENDING_DAYS * _DAY_MS,
            )
            .order_by(grant_terms.c.expires_at_ms)
            .limit(_FEW)
        )
        return tuple(
            EndingGrant(row.namespace, row.holder, moment(row.expires_at_ms))
            for row in self.gateway.rows(query)
        )

    def unconfirmed(self, caller: Principal) -> tuple[str, ...]:
        """Return datasets of the caller's whose columns wait for them to be confirmed."""
        if not caller.has(Role.OWNER):
            return ()
        query = (
            select(datasets.c.name)
            .where(
                datasets.c.namespace.in_(owned_namespaces(caller)),
                datasets.c.state == DatasetState.UNCONFIRMED.value,
                datasets.c.removed_at_ms.is_(None),
            )
            .order_by(datasets.c.name)
            .limit(_FEW)
        )
        return tuple(row.name for row in self.gateway.rows(query))

    def _jobs(self, caller: Principal, states: Collection[str], *where: Any) -> Any:
        query = visible_jobs(caller).where(jobs.c.state.in_(states), *where)
        ordered = query.order_by(jobs.c.created_at_ms.desc(), jobs.c.id.desc())
        return self.gateway.rows(ordered.limit(_FEW))

    def _current(self, view: JobView) -> CurrentJob:
        if view.state is not JobState.RUNNING:
            return CurrentJob(view)
        rows = self.gateway.rows(_last_progress(view.id, self.gateway.now_ms()))
        event = JOB_EVENT.validate_json(rows[0].data) if rows else None
        if isinstance(event, ProgressEvent):
            return CurrentJob(view, event.step, event.steps)
        if isinstance(event, CountEvent):
            return CurrentJob(view, event.done, event.of)
        return CurrentJob(view)


def _last_progress(job_id: str, now_ms: int) -> Select[Any]:
    """Query for the newest visible event that counts something."""
    data = job_events.c.data
    counts = data.startswith('{"type":"progress"') | data.startswith('{"type":"count"')
    return (
        select(data)
        .where(job_events.c.job_id == job_id, job_events.c.visible_at_ms <= now_ms, counts)
        .order_by(job_events.c.sequence.desc())
        .limit(1)
    )

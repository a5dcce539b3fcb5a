"""The states of a job, and the one way to go from one to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from taciturn.server.context import Gateway
from taciturn.server.jobs.durations import keep_speed
from taciturn.server.jobs.events import Events
from taciturn.server.schema.tables import jobs
from taciturn.wire.events import FailureCode, StateEvent
from taciturn.wire.jobs import JobKind, JobState

_S = JobState

ALLOWED: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        _S.VALIDATING: frozenset({_S.AWAITING_APPROVAL, _S.QUEUED, _S.FAILED, _S.CANCELLED}),
        _S.AWAITING_APPROVAL: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED}),
        _S.QUEUED: frozenset({_S.PROVISIONING, _S.FAILED, _S.CANCELLED}),
        _S.PROVISIONING: frozenset({_S.RUNNING, _S.QUEUED, _S.FAILED, _S.CANCELLED}),
        _S.RUNNING: frozenset({_S.QUEUED, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED}),
        _S.SUCCEEDED: frozenset(),
        _S.FAILED: frozenset(),
        _S.CANCELLED: frozenset(),
    }
)
"""Back to `queued` goes a job whose worker was lost, to get another one."""


@dataclass(frozen=True, slots=True)
class States:
    """Moves jobs."""

    gateway: Gateway
    events: Events

    def begin(
        self, connection: Connection, row: Mapping[str, Any], to: JobState = JobState.VALIDATING
    ) -> None:
        """Add a new job, in the caller's transaction: it is being validated, or has been, and is in
        the state that comes then."""
        passed = [JobState.VALIDATING]
        if to is not JobState.VALIDATING:
            assert to in ALLOWED[JobState.VALIDATING], to
            passed.append(to)
        connection.execute(insert(jobs).values({**row, "state": to.value}))
        self.events.begin(connection, row["id"], [StateEvent(state=state) for state in passed])

    def move(
        self,
        connection: Connection,
        job_id: str,
        to: JobState,
        values: Mapping[str, Any] | None = None,
        *,
        code: FailureCode | None = None,
        incident: str | None = None,
        shown_ms: int | None = None,
    ) -> bool:
        """Bring a job into a state, with its event, in the caller's transaction.

        Args:
            shown_ms: the tick at which this is shown; default: the next one.

        Returns:
            False, and nothing has changed, where the table does not allow it: somebody else has
            moved the job meanwhile.
        """
        row = job_row(connection, job_id)
        if row is None or to not in ALLOWED[JobState(row.state)]:
            return False
        change = {"state": to.value, "failure": code, "incident": incident, **(values or {})}
        change["updated_at_ms"] = self.gateway.now_ms()
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(change))
        event = StateEvent(state=to, code=code, incident=incident)
        self.events.append(connection, job_id, event, at_ms=shown_ms)
        if to is JobState.SUCCEEDED and row.kind == JobKind.FIT:
            keep_speed(connection, row)
        return True


def job_row(connection: Connection, job_id: str) -> Row[Any] | None:
    """A job as it stands."""
    return connection.execute(select(jobs).where(jobs.c.id == job_id)).first()

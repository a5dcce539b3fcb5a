"""A job's events: numbered, kept, and shown at the ticks of a public clock.

When a worker says something depends on rows: a step that drew many units takes longer. So nothing
is shown before the next multiple of `settings.tick_s`, and whoever watches the stream learns no
time finer than a tick. Of what says how far a job is, a message's newest is kept (`newest_only`),
and a worker sends one message a tick. A row is never rewritten: a transaction may end after the
tick at which others read its rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, FromClause, Row, func, insert, or_, select

from taciturn.server.context import Gateway
from taciturn.server.process_messages import Topic, publish_with
from taciturn.server.schema.tables import job_events, jobs
from taciturn.wire.events import (
    JOB_EVENT,
    CountEvent,
    JobEvent,
    NumberedEvent,
    ProgressEvent,
    StateEvent,
)

_COALESCED = (ProgressEvent, CountEvent)
_COALESCED_TYPES = ("progress", "count")
LATE_MS = 60_000
"""How long after its time an event may still come to be committed; a transaction takes less."""

E = TypeVar("E", bound=JobEvent)


def worker_sequence(attempt: int, number: int) -> str:
    """The number that a worker's event has for the gateway: rises with attempt and number."""
    return f"{attempt}:{number}"


@dataclass(frozen=True, slots=True)
class Events:
    """Keeps what jobs say."""

    gateway: Gateway

    def begin(self, connection: Connection, job_id: str, events: Sequence[JobEvent]) -> None:
        """The first events of a new job, in the transaction that makes it."""
        shown_ms = self.tick_ms()
        rows = [
            {
                "job_id": job_id,
                "sequence": sequence,
                "visible_at_ms": shown_ms,
                "data": JOB_EVENT.dump_json(event).decode(),
            }
            for sequence, event in enumerate(events, start=1)
        ]
        connection.execute(insert(job_events), rows)

    def append(
        self,
        connection: Connection,
        job_id: str,
        event: JobEvent,
        worker_sequence: str | None = None,
        *,
        at_ms: int | None = None,
    ) -> None:
        """Add an event in the caller's transaction, so that state and its event are one.

        Args:
            worker_sequence: as the function of that name makes it. An event that is not above the
                highest one of the job was kept before, and is ignored.
            at_ms: the tick at which it is shown, where that was settled before; default: the next.
        """
        if worker_sequence is not None and _is_known(connection, job_id, worker_sequence):
            return
        bucket = _newest(connection, job_id)
        shown_ms = self.tick_ms() if at_ms is None else at_ms
        visible_at_ms = max([shown_ms, *(row.visible_at_ms for row in bucket)])
        connection.execute(
            insert(job_events).values(
                job_id=job_id,
                sequence=1 + max((row.sequence for row in bucket), default=0),
                visible_at_ms=visible_at_ms,
                worker_sequence=worker_sequence,
                data=JOB_EVENT.dump_json(event).decode(),
            )
        )
        if visible_at_ms <= self.gateway.now_ms():  # streams look after each tick, and by then have
            publish_with(connection, Topic.EVENT)

    def tick_ms(self) -> int:
        """The next tick: what happens now is shown then."""
        return self.gateway.tick_ms()

    def page(self, job_id: str, after: int, limit: int) -> tuple[NumberedEvent, ...]:
        """Visible events with a number above `after`, in order."""
        query = (
            select(job_events)
            .where(
                job_events.c.job_id == job_id,
                job_events.c.sequence > after,
                job_events.c.visible_at_ms <= self.gateway.now_ms(),
            )
            .order_by(job_events.c.sequence)
            .limit(limit)
        )
        return tuple(numbered(row) for row in self.gateway.rows(query))

    def page_of(
        self,
        job_id: str,
        visible_to_caller: ColumnElement[bool],
        after: int,
        limit: int,
        *,
        newest_first: bool = False,
    ) -> tuple[NumberedEvent, ...] | None:
        """Return a page of events of a job that the caller may see, by a condition on rows of
        `jobs`; None where there is no such job.

        Args:
            newest_first: from the newest one with a number below `after` on.
        """
        number = job_events.c.sequence
        visible = (
            (job_events.c.job_id == jobs.c.id)
            & (number < after if newest_first else number > after)
            & (job_events.c.visible_at_ms <= self.gateway.now_ms())
        )
        query = (
            select(job_events)
            .select_from(jobs)
            .outerjoin(job_events, visible)
            .where(jobs.c.id == job_id, visible_to_caller)
            .order_by(number.desc() if newest_first else number)
            .limit(limit)
        )
        rows = self.gateway.rows(query)
        if not rows:
            return None
        return tuple(numbered(row) for row in rows if row.sequence is not None)

    def outline_of(
        self, job_id: str, visible_to_caller: ColumnElement[bool], most: int
    ) -> tuple[NumberedEvent, ...] | None:
        """Return the visible events of a job that say more than how far it is, and of the others
        about `most`, evenly spread, with the newest; None where there is no such job. One query."""
        now_ms = self.gateway.now_ms()
        progress = job_events.alias()
        newest = func.coalesce(
            select(progress.c.sequence)
            .where(
                progress.c.job_id == job_id,
                progress.c.visible_at_ms <= now_ms,
                ~is_milestone(progress),
            )
            .order_by(progress.c.sequence.desc())
            .limit(1)
            .scalar_subquery(),
            0,
        )
        is_kept = or_(
            job_events.c.sequence % (newest // most + 1) == 0,
            job_events.c.sequence == newest,
            is_milestone(),
        )
        visible = (
            (job_events.c.job_id == jobs.c.id) & (job_events.c.visible_at_ms <= now_ms) & is_kept
        )
        query = (
            select(job_events)
            .select_from(jobs)
            .outerjoin(job_events, visible)
            .where(jobs.c.id == job_id, visible_to_caller)
            .order_by(job_events.c.sequence)
        )
        rows = self.gateway.rows(query)
        if not rows:
            return None
        return tuple(numbered(row) for row in rows if row.sequence is not None)

    def is_last(self, job_id: str, sequence: int) -> bool:
        """Return True if the event of this number is the final state: nothing comes after it."""
        query = select(job_events.c.data).where(
            job_events.c.job_id == job_id, job_events.c.sequence == sequence
        )
        rows = self.gateway.rows(query)
        return bool(rows) and final(JOB_EVENT.validate_json(rows[0].data))

    def became_visible(
        self, since_ms: int, wanted_jobs: Collection[str]
    ) -> dict[str, tuple[NumberedEvent, ...]]:
        """Return events of these jobs that became visible since then, in order, by one query."""
        query = (
            select(job_events)
            .where(
                job_events.c.visible_at_ms > since_ms,
                job_events.c.visible_at_ms <= self.gateway.now_ms(),
            )
            .order_by(job_events.c.job_id, job_events.c.sequence)
        )
        rows = self.gateway.rows(query)
        events_by_job: dict[str, list[NumberedEvent]] = {}
        for row in rows:
            if row.job_id not in wanted_jobs:
                continue
            events_by_job.setdefault(row.job_id, []).append(numbered(row))
        return {job_id: tuple(events) for job_id, events in events_by_job.items()}


def newest_only(events: Sequence[E], first: int) -> Iterator[tuple[int, E]]:
    """The events of one message with their numbers, which begin at `first`, but for those that a
    later one repeats with newer figures. The last one stays: its number says what was received."""
    newest = {type(event): number for number, event in enumerate(events, first)}
    for number, event in enumerate(events, first):
        if not isinstance(event, _COALESCED) or newest[type(event)] == number:
            yield number, event


def is_milestone(table: FromClause = job_events) -> ColumnElement[bool]:
    """Condition on rows of `job_events` that say more than how far a job is: there are few."""
    return ~or_(*(table.c.data.startswith(f'{{"type":"{name}"') for name in _COALESCED_TYPES))


def numbered(row: Row[Any]) -> NumberedEvent:
    """An event as it travels."""
    at = datetime.fromtimestamp(row.visible_at_ms / 1000, UTC)
    return NumberedEvent(sequence=row.sequence, at=at, event=JOB_EVENT.validate_json(row.data))


def final(event: JobEvent) -> bool:
    """Return True if nothing comes after this event."""
    return isinstance(event, StateEvent) and event.state.over


def _is_known(connection: Connection, job_id: str, number: str) -> bool:
    of_worker = (job_events.c.job_id == job_id) & job_events.c.worker_sequence.is_not(None)
    orders = [_order(row.worker_sequence) for row in _newest(connection, job_id, of_worker)]
    return _order(number) <= max(orders, default=(-1, -1))


def _newest(
    connection: Connection, job_id: str, where: ColumnElement[bool] | None = None
) -> Sequence[Row[Any]]:
    """The job's events of its newest tick. They hold its highest numbers, for time never falls."""
    condition = job_events.c.job_id == job_id if where is None else where
    newest = select(func.max(job_events.c.visible_at_ms)).where(condition).scalar_subquery()
    query = select(job_events).where(condition, job_events.c.visible_at_ms == newest)
    return connection.execute(query).all()


def _order(number: str) -> tuple[int, int]:
    attempt, _, event = number.partition(":")
    return int(attempt), int(event)

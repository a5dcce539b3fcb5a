"""The audit log: who asked what, and what was decided, on disk before the answer leaves.

Answers wait for their row. Rows of answers that are ready at the same time are committed together,
by one thread, so that waiting costs one commit and not a queue of them. Where a row cannot be kept,
the caller gets `unavailable` instead of the answer: nothing is read that is not on record.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, func, insert, select

from taciturn.server.context import Gateway
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import audit_log
from taciturn.server.timestamps import milliseconds, moment
from taciturn.wire.identity import AuditEntry
from taciturn.wire.values import Page

_MOST_AT_ONCE = 500
_PIECE = 1000
_REFUSED = 400  # statuses from here on refuse, or say that something failed
_ADDED = insert(audit_log).returning(audit_log.c.id)
"""That something is returned makes one statement of any number of rows."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row to be. No bodies, no query, no token: only its id."""

    at_ms: int
    actor: str
    action: str
    resource: str
    status: int
    code: str | None
    request_id: str
    address: str | None
    token_id: str | None

    def values(self) -> dict[str, Any]:
        """Values of the table's columns."""
        return {
            "at_ms": self.at_ms,
            "actor": self.actor[:200],
            "action": self.action[:60],
            "resource": self.resource[:500].replace("\x00", "?"),
            "status": self.status,
            "code": self.code,
            "request_id": self.request_id,
            "address": self.address,
            "details": json.dumps({"token": self.token_id}) if self.token_id else None,
        }


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Records that are asked for: of one actor, one action, an answer, a span of time; None leaves
    it open.

    Attributes:
        resource: beginning of the path.
        refusal: True for answers that refused, or failed; False for the others.
    """

    actor: str | None = None
    action: str | None = None
    resource: str | None = None
    refusal: bool | None = None
    since: datetime | None = None
    until: datetime | None = None

    def applied(self, query: Select[Any]) -> Select[Any]:
        """Return a query of the table with these conditions. Raises ProblemError `invalid` where
        the span ends before it begins."""
        since, until = self.since, self.until
        if since is not None and until is not None and milliseconds(since) >= milliseconds(until):
            raise ProblemError(
                "invalid",
                f"since={since.isoformat()} is not before until={until.isoformat()}, so no record "
                "can be between them; swap the two, or leave one out",
            )
        if self.actor is not None:
            query = query.where(audit_log.c.actor == self.actor)
        if self.action is not None:
            query = query.where(audit_log.c.action == self.action)
        if self.resource is not None:
            query = query.where(audit_log.c.resource.startswith(self.resource, autoescape=True))
        if self.refusal is not None:
            refusals = audit_log.c.status >= _REFUSED
            query = query.where(refusals if self.refusal else ~refusals)
        if since is not None:
            query = query.where(audit_log.c.at_ms >= milliseconds(since))
        if until is not None:
            query = query.where(audit_log.c.at_ms < milliseconds(until))
        return query


class AuditLog:
    """Keeps records, and shows them to auditors."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._lock = threading.Lock()
        self._waiting: list[tuple[Record, Future[None]]] = []
        self._writing = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="taciturn-audit-log")

    @property
    def waiting(self) -> int:
        """Records that are not on disk yet."""
        return len(self._waiting)

    def keep(self, record: Record) -> Future[None]:
        """Write a record; the future is done once it is committed, or has the error."""
        future: Future[None] = Future()
        # Whoever waits may hang up. The record is kept all the same, and a future that could be
        # cancelled meanwhile would break off the writer, and with it every later answer.
        future.set_running_or_notify_cancel()
        with self._lock:
            self._waiting.append((record, future))
            if not self._writing:
                self._writing = True
                self._writer.submit(self._write_all)
        return future

    def _write_all(self) -> None:
        while batch := self._next_batch():
            rows = [record.values() for record, _ in batch]
            try:
                _insert(self._gateway, rows)
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
            else:
                for _, future in batch:
                    future.set_result(None)

    def _next_batch(self) -> list[tuple[Record, Future[None]]]:
        with self._lock:
            batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
            self._writing = bool(batch)
            return batch

    def page(self, paging: Paging, conditions: AuditFilter) -> Page[AuditEntry]:
        """Records that a filter leaves, newest first; raises ProblemError `invalid` where its span
        ends before it begins."""
        query = conditions.applied(select(audit_log))
        if paging.after is not None:
            query = query.where(audit_log.c.id < paging.number())
        query = query.order_by(audit_log.c.id.desc()).limit(paging.fetch)
        return paging.page(self._gateway.rows(query), entry_of, lambda row: row.id)

    def entries(self, conditions: AuditFilter) -> Iterator[AuditEntry]:
        """All records that a filter leaves, newest first, read a piece at a time; raises as `page`,
        before the first."""
        query = conditions.applied(select(audit_log)).order_by(audit_log.c.id.desc())
        return self._pieces(query.limit(_PIECE))

    def _pieces(self, query: Select[Any]) -> Iterator[AuditEntry]:
        rows = self._gateway.rows(query)
        while rows:
            yield from map(entry_of, rows)
            rows = self._gateway.rows(query.where(audit_log.c.id < rows[-1].id))

    def last_ms(self, resources: Sequence[str]) -> int | None:
        """Time of the last request of one of these paths that was answered, in milliseconds since
        1970; None if there is none on record."""
        query = select(func.max(audit_log.c.at_ms)).where(
            audit_log.c.resource.in_(resources), audit_log.c.status < _REFUSED
        )
        at_ms = self._gateway.rows(query)[0][0]
        return None if at_ms is None else int(at_ms)


def add_record(gateway: Gateway, record: Record) -> None:
    """Write a record of what no request asked for; returns once it is on disk."""
    _insert(gateway, [record.values()])


def _insert(gateway: Gateway, rows: Sequence[dict[str, Any]]) -> None:
    gateway.add(_ADDED, rows)


def entry_of(row: Row[Any]) -> AuditEntry:
    """A row of the table, as auditors read it."""
    return AuditEntry(
        id=row.id,
        at=moment(row.at_ms),
        actor=row.actor,
        action=row.action,
        resource=row.resource,
        status=row.status,
        code=row.code,
        request_id=row.request_id,
        address=row.address,
        token=json.loads(row.details).get("token") if row.details else None,
    )

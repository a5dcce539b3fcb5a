"""Completion of jobs, whatever happens on the way: the intended end is written down first, then the
job's reservation is closed, then it is over. Each step may be repeated, so a crash between two of
them is made good by doing all of them again."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Row, select, update

from taciturn.accounting.events import event_from_dict
from taciturn.errors import FencedError, LedgerConflictError, UnknownEntryError
from taciturn.reports.privacy import AUDIT, Audit
from taciturn.server.context import Gateway
from taciturn.server.jobs.mechanism import Mechanism
from taciturn.server.jobs.report_check import disagreement
from taciturn.server.jobs.states import States, job_row
from taciturn.server.ledger import job_report, job_steps
from taciturn.server.notifications.outbox import announce
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import approvals, artifacts, jobs, tokens
from taciturn.wire.events import FailureCode
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.notifications import NotificationKind

log = logging.getLogger("taciturn.server.jobs")

REPORT = "privacy_report.json"


class End(BaseModel):
    """Intended end of a job.

    Attributes:
        lease: of the worker that says so; None where the gateway does.
        due_ms: what a worker says of rows is not acted on before this tick of the public clock.
    """

    model_config = ConfigDict(frozen=True)

    state: JobState
    code: FailureCode | None = None
    incident: str | None = None
    lease: int | None = None
    due_ms: int = 0

    @classmethod
    def failed(cls, code: FailureCode) -> End:
        """A failure that the gateway saw."""
        return cls(state=JobState.FAILED, code=code)


class OutputHandler(Protocol):
    """Handler of what jobs have released."""

    def read(self, job_id: str, name: str) -> bytes | None:
        """A file that a job's worker handed in; None if there is none of that name."""
        ...

    def discard(self, job_id: str) -> None:
        """Remove all that a job's worker handed in."""
        ...

    def complete(self, connection: Connection, job: Row[Any]) -> dict[str, Any]:
        """Make of a succeeded job's files what they are for, in the transaction that ends it.
        Returns what its row is to say. Raises ProblemError if what had to be there is not."""
        ...

    def failed(self, connection: Connection, job: Row[Any]) -> dict[str, Any]:
        """The same for a job that has failed or was cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class NothingReleased:
    """A gateway that keeps no files: jobs end, and nothing is made of it."""

    def read(self, job_id: str, name: str) -> bytes | None:
        """There is none."""
        return None

    def discard(self, job_id: str) -> None:
        """There is nothing to remove."""

    def complete(self, connection: Connection, job: Row[Any]) -> dict[str, Any]:
        """Nothing is made."""
        return {}

    def failed(self, connection: Connection, job: Row[Any]) -> dict[str, Any]:
        """Nothing was made."""
        return {}


@dataclass(frozen=True, slots=True)
class Completion:
    """Ends jobs."""

    gateway: Gateway
    states: States
    released: OutputHandler

    def end(self, job_id: str, end: End) -> None:
        """Bring a job to an end, if it has none yet; does not mind being repeated."""
        self.gateway.write(lambda connection: self.intend(connection, job_id, end))
        self.settle(job_id)

    def intend(self, connection: Connection, job_id: str, end: End) -> bool:
        """Write down how a job is to end; the first one counts. The worker is fenced off unless it
        is the one who says so."""
        row = job_row(connection, job_id)
        if row is None or row.outcome is not None or JobState(row.state).over:
            return False
        change: dict[str, Any] = {"outcome": end.model_dump_json(), "lease_until_ms": 0}
        if end.lease is None:
            change["lease"] = row.lease + 1
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(change))
        return True

    def settle(self, job_id: str) -> None:
        """Do what is left of an intended end, once it is due."""
        row = self.gateway.read(lambda connection: job_row(connection, job_id))
        if row is None or row.outcome is None or JobState(row.state).over:
            return
        intended = End.model_validate_json(row.outcome)
        if self.gateway.now_ms() < intended.due_ms:
            self._keep(row, intended)
            return
        end = self._checked(row, intended)
        if end.state is JobState.SUCCEEDED:
            try:
                self.gateway.write(lambda connection: self._finish(connection, row.id, end))
                return
            except ProblemError as error:
                log.error("job refused", extra={"job": row.id, "reason": error.detail})
                end = _instead(end, FailureCode.INTERNAL)
        self.released.discard(job_id)
        self.gateway.write(lambda connection: self._finish(connection, row.id, end))

    def _keep(self, row: Row[Any], end: End) -> None:
        """Keep the worker's reservation open until its end is due."""
        if row.event is None or end.lease is None:
            return
        left_s = (end.due_ms - self.gateway.now_ms()) / 1000
        with suppress(FencedError, LedgerConflictError):
            lease_s = self.gateway.settings.lease_s + left_s
            self.gateway.ledger.heartbeat(row.id, end.lease, lease_s=lease_s)

    def close(self, job_id: str) -> None:
        """Free what a job still holds of a budget and never charged."""
        ledger = self.gateway.ledger
        try:
            ledger.release(f"{job_id}-release", job_id)
            return
        except UnknownEntryError:
            return
        except LedgerConflictError:
            pass  # a worker has had it, or it is closed
        try:
            lease = ledger.acquire(
                f"{job_id}-close", job_id, worker="gateway", lease_s=60, takeover=True
            )
            ledger.commit(f"{job_id}-commit-{lease.token}", job_id, lease.token)
        except (LedgerConflictError, FencedError):
            return  # it is closed

    def _checked(self, row: Row[Any], end: End) -> End:
        """Close the reservation; a success stands only if it was the holder's, and its report is
        what the ledger has charged."""
        if row.event is None:
            return end
        if end.code is FailureCode.TIME:
            self._spend(row)
            end = end.model_copy(update={"lease": None})
        if end.lease is None or not self._committed(row.id, end.lease):
            self.close(row.id)
            success = end.state is JobState.SUCCEEDED
            return _instead(end, FailureCode.FENCED) if success else end
        if end.state is JobState.SUCCEEDED and row.kind == JobKind.FIT:
            reason = self._disagreement(row)
            if reason is not None:
                log.error("model refused", extra={"job": row.id, "reason": reason})
                return _instead(end, FailureCode.GUARANTEE_REFUSED)
        return end

    def _spend(self, row: Row[Any]) -> None:
        """Charge all that a job holds whose time is over while its rows may still be read.

        How long that takes is bounded for each row, and depends on rows all the same: an end that
        cost nothing could be asked for again and again.
        """
        ledger = self.gateway.ledger
        n_held, charged = job_steps(self.gateway.engine, self.gateway.seal_key, row.id)
        if row.attempt == 1 and (charged or row.state != JobState.RUNNING):
            return  # its rows are read, after which a block is charged; or no worker has had it
        if not n_held:
            return
        with suppress(LedgerConflictError, FencedError):  # it is closed
            lease = ledger.acquire(
                f"{row.id}-spend", row.id, worker="gateway", lease_s=60, takeover=True
            )
            ledger.charge(f"{row.id}-spent", row.id, lease.token, Mechanism.of(row).event(n_held))

    def _committed(self, job_id: str, lease: int) -> bool:
        try:
            self.gateway.ledger.commit(f"{job_id}-commit-{lease}", job_id, lease)
        except (FencedError, LedgerConflictError):
            return False
        return True

    def _disagreement(self, row: Row[Any]) -> str | None:
        charged = job_report(self.gateway.engine, self.gateway.seal_key, row.id)
        planned = event_from_dict(json.loads(row.event))
        return disagreement(self.released.read(row.id, REPORT), planned, charged, row.public_data)

    def _finish(self, connection: Connection, job_id: str, end: End) -> None:
        row = job_row(connection, job_id)
        if row is None or JobState(row.state).over:
            return
        succeeded = end.state is JobState.SUCCEEDED
        conclude = self.released.complete if succeeded else self.released.failed
        values = conclude(connection, row)
        self.states.move(
            connection,
            job_id,
            end.state,
            values,
            code=end.code,
            incident=end.incident,
            shown_ms=end.due_ms or None,
        )
        pending = approvals.c.state.in_(("open", "approved"))
        connection.execute(
            update(approvals).where(approvals.c.job_id == job_id, pending).values(state="expired")
        )
        self._announce(connection, row, end)
        self._end_tokens(connection, row)

    def _announce(self, connection: Connection, row: Row[Any], end: End) -> None:
        """Have people told of it, no sooner than its event is shown. Not of text that somebody
        waits for, nor of a rejection, which was told when it was decided."""
        if row.kind == JobKind.SAMPLE or end.code is FailureCode.REJECTED:
            return
        kinds = [] if row.kind == JobKind.PROBE else [NotificationKind.JOB_SUCCEEDED]
        if end.state is JobState.FAILED:
            kinds = [NotificationKind.JOB_FAILED]
        elif end.state is not JobState.SUCCEEDED:
            return
        elif _is_refuted(connection, row.id):
            kinds.append(NotificationKind.AUDIT_FINDING)
        now_ms, due_ms = self.gateway.now_ms(), end.due_ms or self.gateway.tick_ms()
        for kind in kinds:
            key, subject = f"{kind}:{row.id}", {"job": row.id}
            announce(connection, kind, key, subject, now_ms=now_ms, due_ms=due_ms)

    def _end_tokens(self, connection: Connection, row: Row[Any]) -> None:
        """Revoke the tokens of the job's workers. One that has sampled may ask for another job for
        a while: it has the model in memory."""
        now_ms = self.gateway.now_ms()
        live_tokens = (tokens.c.job_id == row.id) & tokens.c.revoked_at_ms.is_(None)
        change = update(tokens).where(live_tokens)
        if row.kind == JobKind.SAMPLE:
            waits_s = self.gateway.settings.idle_worker_s + 60
            connection.execute(change.values(expires_at_ms=now_ms + round(waits_s * 1000)))
        else:
            connection.execute(change.values(revoked_at_ms=now_ms))


def _is_refuted(connection: Connection, job_id: str) -> bool:
    """True if an audit that a job has released found more than its model promises."""
    query = select(artifacts.c.content).where(
        artifacts.c.job_id == job_id, artifacts.c.name == AUDIT
    )
    text = connection.scalar(query)
    return text is not None and Audit.model_validate_json(text).refuted


def _instead(end: End, code: FailureCode) -> End:
    """Failure in place of a success that does not stand; due as late as that was."""
    return End(state=JobState.FAILED, code=code, due_ms=end.due_ms)

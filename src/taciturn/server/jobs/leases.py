"""Who works on a job: one worker at a time, known by a fencing token.

Of jobs that cost something, the ledger gives the token, and refuses charges and commits under any
other. The job's row keeps it too, for all kinds of jobs, so that whatever a worker says is taken in
the same transaction in which it is seen that the worker still holds the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, update

from taciturn.server.context import Gateway
from taciturn.server.identity.directory import prolonged
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.jobs.states import States, job_row
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import jobs
from taciturn.wire.jobs import JobState
from taciturn.wire.worker import LeaseRequest

_HELD = (JobState.PROVISIONING, JobState.RUNNING)


def fenced() -> ProblemError:
    """What a worker is told that holds the job no longer, or never did."""
    return ProblemError(
        "fenced", "this worker does not hold the job: another one does, or it is over; stop"
    )


def held(connection: Connection, worker: WorkerPrincipal, token: int) -> Row[Any]:
    """The job of the worker that holds it now; raises ProblemError `fenced` for any other.

    To be asked in the transaction that takes what a worker says.
    """
    row = job_row(connection, worker.job_id)
    if row is None or not _is_of(row, worker) or row.lease != token or token < 1:
        raise fenced()
    if row.state != JobState.RUNNING or row.outcome is not None:
        raise fenced()
    return row


def _is_of(row: Row[Any], worker: WorkerPrincipal) -> bool:
    """Whether the worker was started for the job's attempt of now."""
    return bool(row.worker_token == worker.token_id and row.attempt == worker.attempt)


@dataclass(frozen=True, slots=True)
class Leases:
    """Gives jobs to workers, and keeps them while there are signs of life."""

    gateway: Gateway
    states: States

    def take(self, worker: WorkerPrincipal, asked: LeaseRequest) -> Row[Any]:
        """Give the job to this worker; whoever held it is fenced off. Repeated: as at first.

        Raises:
            ProblemError: `lease_held` while another one shows signs of life; `fenced`.
        """
        row = self.gateway.read(lambda connection: self._free(connection, worker, asked))
        token = None
        if row.event is not None:
            operation = f"{row.id}-lease-{row.attempt}-{asked.operation_id}"
            token = self._ledgers_token(row.id, operation, asked.worker)
        return self.gateway.write(lambda connection: self._give(connection, worker, asked, token))

    def beat(self, worker: WorkerPrincipal, token: int) -> bool:
        """The worker lives; returns whether it should stop, because the job was cancelled."""
        row = self.gateway.read(lambda connection: held(connection, worker, token))
        lease_s = self.gateway.settings.lease_s
        if row.event is not None:
            self.gateway.ledger.heartbeat(row.id, token, lease_s=lease_s)

        def work(connection: Connection) -> bool:
            now = held(connection, worker, token)
            change = update(jobs).where(jobs.c.id == now.id)
            connection.execute(change.values(lease_until_ms=self._until_ms()))
            hold_ms = round(1000 * self.gateway.settings.hold_s)
            connection.execute(prolonged(worker.token_id, self.gateway.now_ms() + hold_ms))
            return bool(now.cancel)

        return self.gateway.write(work)

    def _free(
        self, connection: Connection, worker: WorkerPrincipal, asked: LeaseRequest
    ) -> Row[Any]:
        row = job_row(connection, worker.job_id)
        if row is None or not _is_of(row, worker) or row.outcome is not None:
            raise fenced()
        if row.state not in _HELD:
            raise fenced()
        mine = row.lease_operation == asked.operation_id
        if row.state == JobState.RUNNING and not mine:
            left_ms = (row.lease_until_ms or 0) - self.gateway.now_ms()
            if left_ms > 0:
                raise ProblemError(
                    "lease_held",
                    f"another worker holds the job for {left_ms / 1000:.0f} s more at least; wait",
                )
        return row

    def _ledgers_token(self, job_id: str, operation: str, name: str) -> int:
        lease_s = self.gateway.settings.lease_s
        lease = self.gateway.ledger.acquire(
            operation, job_id, worker=name, lease_s=lease_s, takeover=True
        )
        return lease.token

    def _give(
        self,
        connection: Connection,
        worker: WorkerPrincipal,
        asked: LeaseRequest,
        token: int | None,
    ) -> Row[Any]:
        row = self._free(connection, worker, asked)
        if row.state == JobState.RUNNING and row.lease_operation == asked.operation_id:
            return row
        if token is None:
            token = row.lease + 1
        if token <= row.lease:
            raise fenced()  # one that asked later was given the job first
        values = {
            "lease": token,
            "lease_operation": asked.operation_id,
            "lease_until_ms": self._until_ms(),
        }
        if row.state == JobState.PROVISIONING:
            self.states.move(connection, row.id, JobState.RUNNING, values)
        else:
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(values))
        found = job_row(connection, row.id)
        assert found is not None
        return found

    def hold(self, row: Row[Any]) -> None:
        """Keep what a job holds whose worker is gone, until the next one comes; once an attempt."""
        if row.event is not None:
            self.gateway.ledger.acquire(
                f"{row.id}-hold-{row.attempt}",
                row.id,
                worker="gateway",
                lease_s=self.gateway.settings.hold_s,
                takeover=True,
            )

    def vouch(self, row: Row[Any]) -> None:
        """A worker that lives could not say so while the gateway was away: its lease goes on."""
        self.spare(row)
        mine = (jobs.c.id == row.id) & (jobs.c.lease == row.lease)
        change = update(jobs).where(mine).values(lease_until_ms=self._until_ms())
        self.gateway.write(lambda connection: connection.execute(change))

    def spare(self, row: Row[Any]) -> None:
        """A worker lives and is late: what it holds is not reaped before it is looked for again."""
        if row.event is not None:
            settings = self.gateway.settings
            lease_s = settings.lease_s + 2 * settings.tick_s
            self.gateway.ledger.heartbeat(row.id, row.lease, lease_s=lease_s)

    def _until_ms(self) -> int:
        return self.gateway.now_ms() + round(self.gateway.settings.lease_s * 1000)

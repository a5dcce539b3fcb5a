"""Leases of jobs: one worker at a time has a job, known by a fencing token.

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
from taciturn.server.identity.job_access import fenced, held_job, is_of_attempt
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.jobs.states import States, job_row
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import jobs
from taciturn.wire.jobs import JobState
from taciturn.wire.worker import LeaseRequest

_HELD = (JobState.PROVISIONING, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Leases:
    """Gives jobs to workers, and keeps them while there are signs of life."""

    gateway: Gateway
    states: States

    def take(self, worker: WorkerPrincipal, request: LeaseRequest) -> Row[Any]:
        """Give the job to this worker; whoever held it is fenced off. Repeated: as at first.

        Raises:
            ProblemError: `lease_held` while another one shows signs of life; `fenced`.
        """
        row = self.gateway.read(lambda connection: self._free(connection, worker, request))
        token = None
        if row.event is not None:
            operation = f"{row.id}-lease-{row.attempt}-{request.operation_id}"
            token = self._ledgers_token(row.id, operation, request.worker)
        return self.gateway.write(lambda connection: self._give(connection, worker, request, token))

    def beat(self, worker: WorkerPrincipal, token: int) -> bool:
        """The worker lives; returns whether it should stop, because the job was cancelled."""
        row = self.gateway.read(lambda connection: held_job(connection, worker, token))
        lease_s = self.gateway.settings.lease_s
        if row.event is not None:
            self.gateway.ledger.heartbeat(row.id, token, lease_s=lease_s)

        def work(connection: Connection) -> bool:
            now = held_job(connection, worker, token)
            change = update(jobs).where(jobs.c.id == now.id)
            connection.execute(change.values(lease_until_ms=self._until_ms()))
            hold_ms = round(1000 * self.gateway.settings.hold_s)
            connection.execute(prolonged(worker.token_id, self.gateway.now_ms() + hold_ms))
            return bool(now.cancel)

        return self.gateway.write(work)

    def _free(
        self, connection: Connection, worker: WorkerPrincipal, request: LeaseRequest
    ) -> Row[Any]:
        row = job_row(connection, worker.job_id)
        if row is None or not is_of_attempt(row, worker) or row.outcome is not None:
            raise fenced()
        if row.state not in _HELD:
            raise fenced()
        is_own = row.lease_operation == request.operation_id
        if row.state == JobState.RUNNING and not is_own:
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
        request: LeaseRequest,
        token: int | None,
    ) -> Row[Any]:
        row = self._free(connection, worker, request)
        if row.state == JobState.RUNNING and row.lease_operation == request.operation_id:
            return row
        if token is None:
            token = row.lease + 1
        if token <= row.lease:
            raise fenced()  # one that asked later was given the job first
        values = {
            "lease": token,
            "lease_operation": request.operation_id,
            "lease_until_ms": self._until_ms(),
        }
        if row.state == JobState.PROVISIONING:
            self.states.move(connection, row.id, JobState.RUNNING, values)
        else:
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(values))
        updated_row = job_row(connection, row.id)
        assert updated_row is not None
        return updated_row

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
        own_job = (jobs.c.id == row.id) & (jobs.c.lease == row.lease)
        change = update(jobs).where(own_job).values(lease_until_ms=self._until_ms())
        self.gateway.write(lambda connection: connection.execute(change))

    def spare(self, row: Row[Any]) -> None:
        """A worker lives and is late: what it holds is not reaped before it is looked for again."""
        if row.event is not None:
            settings = self.gateway.settings
            lease_s = settings.lease_s + 2 * settings.tick_s
            self.gateway.ledger.heartbeat(row.id, row.lease, lease_s=lease_s)

    def _until_ms(self) -> int:
        return self.gateway.now_ms() + round(self.gateway.settings.lease_s * 1000)

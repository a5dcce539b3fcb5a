"""Requests of a worker that samples or judges: the files of its model, and another job of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select

from taciturn.server.context import Gateway
from taciturn.server.identity.job_access import held_job, no_model
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.models.models import Models
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import jobs
from taciturn.wire.jobs import JobKind, JobState


@dataclass(frozen=True, slots=True)
class ModelWorkers:
    """Decides what they get."""

    gateway: Gateway
    models: Models

    def check_holds(self, worker: WorkerPrincipal, lease: int) -> Row[Any]:
        """The worker's job; raises ProblemError `fenced` unless it holds it."""
        return self.gateway.read(lambda connection: held_job(connection, worker, lease))

    def files_of(self, worker: WorkerPrincipal, lease: int, model_id: str) -> str:
        """The job that made the model; raises ProblemError unless it is the one to be used."""
        if self.check_holds(worker, lease).model_id != model_id:
            raise no_model(model_id)
        return self.models.made_by(model_id)

    def of_last(self, worker: WorkerPrincipal, lease: int) -> tuple[str, str | None]:
        """Model and handle of a worker whose sample job has succeeded, and who may do another.

        Raises:
            ProblemError: `fenced` for any other.
        """
        query = select(jobs.c.model_id, jobs.c.handle).where(
            jobs.c.id == worker.job_id,
            jobs.c.worker_token == worker.token_id,
            jobs.c.lease == lease,
            jobs.c.kind == JobKind.SAMPLE,
            jobs.c.state == JobState.SUCCEEDED,
        )
        row = self.gateway.read(lambda connection: connection.execute(query).first())
        if row is None:
            raise ProblemError("fenced", "there is nothing more to do for this worker; end")
        return row.model_id, row.handle

"""Result of a job that is over: by kind, with its policy line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from taciturn.server.context import Gateway
from taciturn.server.identity.job_access import holds_job, no_job, watches_job
from taciturn.server.identity.principal import Principal
from taciturn.server.models.artifacts import AUDIT, EVALUATION, SCHEMA, Artifacts, Download
from taciturn.server.models.models import Models
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import jobs
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.results import JOB_RESULT, JobResult, SampleLine
from taciturn.wire.values import PolicyLine

SAMPLES = "samples.jsonl"


@dataclass(frozen=True, slots=True)
class Results:
    """Gives results to whom they belong."""

    gateway: Gateway
    artifacts: Artifacts
    models: Models

    def get(self, caller: Principal, job_id: str, *, most: int | None = None) -> JobResult:
        """The result.

        Args:
            most: of a sample job's texts, the first so many alone.

        Raises:
            ProblemError: `not_found`, `not_ready` before the job is over, `conflict` if it failed.
        """
        job = self._succeeded(caller, job_id)
        kind = JobKind(job.kind)
        return JOB_RESULT.validate_python(
            {
                "kind": kind,
                "job": job_id,
                "policy": _policy(job),
                "files": self.artifacts.files(job_id),
                **self._content(caller, job, kind, most),
            }
        )

    def open(
        self,
        caller: Principal,
        job_id: str,
        name: str,
        bounds: tuple[int | None, int | None] = (None, None),
    ) -> tuple[Download, PolicyLine]:
        """One of its files; raises ProblemError as `get` does."""
        job = self._succeeded(caller, job_id)
        return self.artifacts.open(job_id, name, bounds), _policy(job)

    def check_watched(self, caller: Principal, job_id: str) -> None:
        """Raise ProblemError `not_found` unless the caller may follow the job."""
        query = select(jobs.c.id).where(jobs.c.id == job_id, watches_job(caller))
        if not self.gateway.rows(query):
            raise no_job(job_id)

    def samples(self, job_id: str, most: int | None = None) -> tuple[SampleLine, ...]:
        """Lines that a sample job has written."""
        data = self.artifacts.read(job_id, SAMPLES)
        if data is None:
            raise ProblemError("not_found", "the job has written nothing")
        return tuple(SampleLine.model_validate_json(line) for line in data.splitlines()[:most])

    def _content(
        self, caller: Principal, job: Row[Any], kind: JobKind, most: int | None
    ) -> Mapping[str, Any]:
        if kind is JobKind.FIT:
            return {"model": self.models.get(caller, job.model_id)}
        if kind is JobKind.SAMPLE:
            return {"samples": self.samples(job.id, most)}
        if kind is JobKind.PROBE:
            return self._document(job.id, SCHEMA) or {}
        field, name = {
            JobKind.EVALUATE: ("evaluation", EVALUATION),
            JobKind.AUDIT: ("audit", AUDIT),
        }.get(kind, ("", ""))
        if not field:
            return {}
        document = self._document(job.id, name)
        if document is None:
            raise ProblemError("not_found", "the job has written nothing")
        return {field: document}

    def _document(self, job_id: str, name: str) -> Any:
        text = self.gateway.read(
            lambda connection: self.artifacts.document(connection, job_id, name)
        )
        return None if text is None else json.loads(text)

    def _succeeded(self, caller: Principal, job_id: str) -> Row[Any]:
        job = self.gateway.read(lambda connection: _job(connection, caller, job_id))
        if job is None:
            raise no_job(job_id)
        if not JobState(job.state).over:
            raise ProblemError("not_ready", f"the job is {job.state}; wait until it has succeeded")
        if job.state != JobState.SUCCEEDED:
            raise ProblemError("conflict", f"the job has {job.state}: there is no result")
        return job


def _job(connection: Connection, caller: Principal, job_id: str) -> Row[Any] | None:
    return connection.execute(select(jobs).where(jobs.c.id == job_id, holds_job(caller))).first()


def _policy(job: Row[Any]) -> PolicyLine:
    return PolicyLine.model_validate_json(job.policy)

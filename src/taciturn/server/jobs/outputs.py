"""Outputs of a succeeded job in the gateway: a model, a dataset's schema. One hook per kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, Row

from taciturn.server.models.artifacts import AUDIT, EVALUATION, SCHEMA, Artifacts
from taciturn.server.models.models import Models
from taciturn.server.models.results import SAMPLES
from taciturn.server.problems import ProblemError
from taciturn.wire.datasets import ColumnView, SchemaFile
from taciturn.wire.jobs import JobKind

_RELEASES = {
    JobKind.PROBE: SCHEMA,
    JobKind.SAMPLE: SAMPLES,
    JobKind.EVALUATE: EVALUATION,
    JobKind.AUDIT: AUDIT,
    JobKind.SYNTHESIZE: "synthetic.parquet",
}


class Probed(Protocol):
    """Keeps the schema that a probe has read."""

    def probed(
        self, connection: Connection, name: str, columns: tuple[ColumnView, ...] | None
    ) -> None:
        """The dataset can be read and has these columns: it is ready; None: it is refused."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Turns what jobs have released into models and schemas, once they end."""

    artifacts: Artifacts
    models: Models
    datasets: Probed

    def read(self, job_id: str, name: str) -> bytes | None:
        """A file that the worker handed in; None if there is none of that name."""
        return self.artifacts.read(job_id, name)

    def discard(self, job_id: str) -> None:
        """Remove all that the worker handed in."""
        self.artifacts.remove(job_id)

    def complete(self, connection: Connection, job: Row[Any]) -> dict[str, Any]:
        """Make of a succeeded job's files what they are for, in the transaction that ends it.

        Returns:
            The job's own columns that change with it.

        Raises:
            ProblemError: `conflict`: not all is there that had to be released; the job has failed.
        """
        kind = JobKind(job.kind)
        if kind is JobKind.FIT:
            return self.models.from_fit(connection, job)
        if _RELEASES[kind] not in self.artifacts.names(connection, job.id):
            raise ProblemError("conflict", f"a {kind.value} job has to release {_RELEASES[kind]}")
        if kind is JobKind.PROBE:
            self._probed(connection, job)
        return {}

    def failed(self, connection: Connection, job: Row[Any]) -> dict[str, Any]:
        """A job has failed or was cancelled: a dataset that could not be probed cannot be used."""
        if job.kind == JobKind.PROBE:
            self.datasets.probed(connection, job.dataset, None)
        return {}

    def _probed(self, connection: Connection, job: Row[Any]) -> None:
        text = self.artifacts.document(connection, job.id, SCHEMA)
        columns = None if text is None else SchemaFile.model_validate_json(text).columns
        self.datasets.probed(connection, job.dataset, columns)

"""Previews: rows in the shape of the real ones, and selections tried on them.

Each is what its policy line says: invented by the owner, made from the schema alone, or written by
a model that the budget paid for. None was looked up in the data.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from sqlalchemy import Connection, Row, select, update

from taciturn.server.catalog.datasets import Dataset, Datasets, columns_of
from taciturn.server.catalog.mock_rows import rows_of, shaped
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.context import Gateway
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import datasets, jobs, models
from taciturn.wire.datasets import ColumnView, PreviewView, SyntheticPreview
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.values import PolicyLine

_MOCK = PolicyLine(kind="mock", text="mock (rows invented by the data's owner)")
_SCHEMA = PolicyLine(kind="mock", text="mock (made from the names and types of columns alone)")
_FILE = "synthetic.parquet"
_MOST_BYTES = 256 << 20


class Files(Protocol):
    """Reader of released files."""

    def pieces(self, job_id: str, name: str) -> Iterator[bytes]:
        """The bytes of a job's file; raises KeyError if there is none."""


@dataclass(frozen=True, slots=True)
class Previews:
    """Shows previews and tries selections on them."""

    gateway: Gateway
    datasets: Datasets
    sandbox: SqlSandbox
    files: Files

    def read(self, name: str, caller: Principal) -> PreviewView:
        """The preview of a dataset that the caller may know of."""
        return preview_of(self._visible(name, caller))

    def select(self, name: str, text: str, caller: Principal) -> PreviewView:
        """Run a selection on the preview: the same SQL will run on the real rows, in a job.

        Raises ProblemError `invalid` with the reason, `not_ready` before the schema is known.
        """
        preview = preview_of(self._visible(name, caller))
        selected_rows = self.sandbox.run(text, preview.columns, preview.rows)
        return PreviewView(
            policy=preview.policy, columns=selected_rows.columns, rows=selected_rows.rows
        )

    def use_synthetic(self, name: str, request: SyntheticPreview, caller: Principal) -> PreviewView:
        """Make the records that a job wrote the dataset's preview; kept until the next time.

        Raises ProblemError: `not_found` without such a job, `not_ready` before it is done,
        `policy_refused` if what it wrote is not under a guarantee.
        """
        dataset, line = self.gateway.read(
            lambda connection: self._paid_for(connection, name, request.job, caller)
        )
        texts = self._texts(request.job)
        rows = _records(texts, columns_of(dataset), request.column)
        synthetic_preview = {"policy": line.model_dump(), "column": request.column, "rows": rows}

        def work(connection: Connection) -> None:
            self._paid_for(connection, name, request.job, caller)
            change = update(datasets).where(datasets.c.name == name)
            connection.execute(
                change.values(synthetic_job=request.job, synthetic=json.dumps(synthetic_preview))
            )

        self.gateway.write(work)
        return self.read(name, caller)

    def drop_synthetic(self, name: str, caller: Principal) -> None:
        """Go back to invented rows."""

        def work(connection: Connection) -> None:
            self.datasets.owned(connection, name, caller)
            change = update(datasets).where(datasets.c.name == name)
            connection.execute(change.values(synthetic_job=None, synthetic=None))

        self.gateway.write(work)

    def _visible(self, name: str, caller: Principal) -> Dataset:
        return self.gateway.read(lambda connection: self.datasets.visible(connection, name, caller))

    def _paid_for(
        self, connection: Connection, name: str, job_id: str, caller: Principal
    ) -> tuple[Dataset, PolicyLine]:
        """The dataset, and under what guarantee a job has written records of it."""
        dataset = self.datasets.owned(connection, name, caller)
        job = _synthesis(connection, job_id, dataset)
        if job.state != JobState.SUCCEEDED.value:
            raise ProblemError("not_ready", f"job {job_id!r} is {job.state}; wait until it is done")
        line = PolicyLine.model_validate_json(job.policy)
        if line.kind != "DP":
            raise ProblemError(
                "policy_refused",
                f"what job {job_id!r} wrote is under '{line}'; a preview needs a guarantee: fit "
                "with a target_epsilon first",
            )
        return dataset, line

    def _texts(self, job_id: str) -> list[str]:
        """The first records of a job's file, read in a process that may take little."""
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            size = 0
            try:
                for chunk in self.files.pieces(job_id, _FILE):
                    size += len(chunk)
                    if size > _MOST_BYTES:
                        raise ProblemError(
                            "too_large", "the records are too many for a preview; write fewer"
                        )
                    file.write(chunk)
            except KeyError:
                raise ProblemError("not_found", f"job {job_id!r} has left no records") from None
            file.flush()
            return self.sandbox.texts(file.name)


def preview_of(dataset: Dataset) -> PreviewView:
    """The preview: paid-for rows before the owner's, and the owner's before those of the schema.

    Raises ProblemError `not_ready` before the schema is known.
    """
    columns = columns_of(dataset)
    if dataset.synthetic is not None:
        line = PolicyLine.model_validate(dataset.synthetic["policy"])
        column = dataset.synthetic["column"]
        if column is not None:
            line = line.model_copy(update={"text": f"{line.text} in {column!r}; the rest: mock"})
        return _preview(line, columns, dataset.synthetic["rows"])
    if dataset.mock:
        return _preview(_MOCK, columns, dataset.mock)
    return _preview(_SCHEMA, columns, rows_of(columns))


def _preview(
    line: PolicyLine, columns: tuple[ColumnView, ...], rows: Sequence[Mapping[str, Any]]
) -> PreviewView:
    return PreviewView(policy=line, columns=columns, rows=tuple(shaped(rows, columns)))


def _synthesis(connection: Connection, job_id: str, dataset: Dataset) -> Row[Any]:
    """The job, if it has written records with a model that was fitted on this dataset."""
    fits = jobs.alias("fits")
    query = (
        select(jobs.c.state, jobs.c.policy)
        .join(models, models.c.id == jobs.c.model_id)
        .join(fits, fits.c.id == models.c.job_id)
        .where(
            jobs.c.id == job_id,
            jobs.c.kind == JobKind.SYNTHESIZE.value,
            fits.c.dataset == dataset.name,
        )
    )
    job = cast(Row[Any] | None, connection.execute(query).first())
    if job is None:
        raise ProblemError(
            "not_found",
            f"there is no job {job_id!r} that wrote records with a model of {dataset.name!r}; fit "
            "one, then synthesize with it",
        )
    return job


def _records(
    texts: Sequence[str], columns: Sequence[ColumnView], column: str | None
) -> list[dict[str, Any]]:
    """Records as rows: texts of one column, or each text a JSON object of columns."""
    if column is not None:
        if column not in {known_column.name for known_column in columns}:
            raise ProblemError("invalid", f"column: there is no column {column!r} in this dataset")
        invented = rows_of(columns)
        return [
            {**invented[index % len(invented)], column: text} for index, text in enumerate(texts)
        ]
    rows = [row for row in map(_object, texts) if row is not None]
    if not rows:
        raise ProblemError(
            "invalid",
            "no record is a JSON object; fit on a selection such as to_json({'id': id, ...}) AS "
            "text, or say with `column` which column the texts stand for",
        )
    return shaped(rows, columns)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

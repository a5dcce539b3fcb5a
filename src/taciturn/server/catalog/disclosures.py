"""Disclosures: everything about a dataset that has left, to whom, and what attacks made of it.

Two records are read together. What workers released is in the tables of jobs and files: each fit,
text, figure and schema, with who asked for it. Who has read what afterwards is in the audit log,
which is written before an answer leaves. Prompts through OpenAI's API are jobs too, so their texts
are among the released ones. Notifications that tell of a job are in the audit log as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, Row, Select, and_, literal, null, or_, select

from taciturn.reports.privacy import Audit
from taciturn.server.catalog.datasets import Dataset, Datasets
from taciturn.server.catalog.reads import Reads, thing_at
from taciturn.server.context import Gateway
from taciturn.server.identity.namespace_access import no_dataset, sees_all
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import artifacts, incidents, jobs, models, tracked_runs, users
from taciturn.server.timestamps import moment
from taciturn.wire.datasets import DisclosureKind, DisclosureView
from taciturn.wire.events import FAILURES, FailureCode
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.values import Page, PolicyLine

_RELEASED: Mapping[JobKind, DisclosureKind] = {
    JobKind.PROBE: "columns",
    JobKind.FIT: "model",
    JobKind.SAMPLE: "texts",
    JobKind.EVALUATE: "figures",
    JobKind.AUDIT: "audit",
    JobKind.SYNTHESIZE: "records",
}
_ROOTS = ("", "/openai")
"""What OpenAI's API is under: beside the gateway's own, and whole."""

_FEW = 50
_STREAMS = '"stream":true'
"""Part of a request whose text is sent on as it is written; in a prompt its quotes are escaped."""
_CUT_SHORT = "a stream that was cut short"
_POSITION = re.compile(r"(\d{1,16}):([a-z0-9_]{0,40}):(\d{1,16})")


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """Result of an audit beside the promise that it tested.

    Attributes:
        epsilon_lower_bound: with `confidence`, the model's epsilon is at least this.
        promised_epsilon: None where nothing was promised.
    """

    job: str
    model: str | None
    requester: str
    at: datetime
    epsilon_lower_bound: float
    promised_epsilon: float | None
    delta: float
    confidence: float
    canaries: int
    refuted: bool


@dataclass(frozen=True, slots=True)
class IncidentLine:
    """An incident as its owner finds it in a list: without its log."""

    id: str
    job: str
    kind: str
    failure: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Probe:
    """The newest look of a worker at a dataset.

    Attributes:
        failure: why it failed, in words.
        incident: the log of that, for the owner.
    """

    job: str
    state: JobState
    since: datetime
    failure: str | None
    incident: str | None


@dataclass(frozen=True, slots=True)
class Disclosures:
    """Tells owners, and auditors, what has left of a dataset."""

    gateway: Gateway
    datasets: Datasets
    reads: Reads

    def page(self, name: str, caller: Principal, paging: Paging) -> Page[DisclosureView]:
        """Disclosures of a dataset, newest first; what its owner reads of their own is left out.

        Raises ProblemError `not_found` to all but its owner and auditors.
        """
        position = _Position.parse(paging.name())

        def work(connection: Connection) -> list[tuple[Row[Any], DisclosureView]]:
            dataset = self._watched(connection, name, caller)
            released = _released(connection, dataset, position, paging.fetch)
            reads = self.reads.before(
                connection, dataset.name, dataset.owner, position.entry, paging.fetch
            )
            return [
                *((row, _released_view(row, files)) for row, files in released),
                *((row, _read_view(row)) for row in reads),
            ]

        pairs = sorted(self.gateway.read(work), key=lambda pair: pair[0].at_ms, reverse=True)
        keyed = [(view, position := position.after(row)) for row, view in pairs]
        return paging.page(keyed, lambda pair: pair[0], lambda pair: pair[1].text)

    def audits(self, name: str, caller: Principal) -> list[AuditFinding]:
        """The newest audits of models that were fitted on a dataset; raises as `page`."""

        def work(connection: Connection) -> Sequence[Row[Any]]:
            dataset = self._watched(connection, name, caller)
            query = (
                _jobs_in(dataset, JobState.SUCCEEDED)
                .add_columns(artifacts.c.content)
                .join(artifacts, artifacts.c.job_id == jobs.c.id)
                .where(jobs.c.kind == JobKind.AUDIT.value, artifacts.c.name == "audit.json")
            )
            return connection.execute(query.limit(_FEW)).all()

        findings = (_finding(row) for row in self.gateway.read(work))
        return [finding for finding in findings if finding is not None]

    def incidents(self, name: str, caller: Principal) -> list[IncidentLine]:
        """The newest failures of jobs on a dataset whose logs are kept; raises as `page`."""

        def work(connection: Connection) -> Sequence[Row[Any]]:
            dataset = self._watched(connection, name, caller)
            query = (
                select(incidents.c.id, incidents.c.job_id, jobs.c.kind, jobs.c.failure)
                .add_columns(incidents.c.created_at_ms)
                .join(jobs, jobs.c.id == incidents.c.job_id)
                .where(incidents.c.namespace == dataset.namespace, _is_subject(dataset))
                .order_by(incidents.c.created_at_ms.desc(), incidents.c.id)
            )
            return connection.execute(query.limit(_FEW)).all()

        return [
            IncidentLine(
                id=row.id,
                job=row.job_id,
                kind=row.kind,
                failure=_failure(row.failure) or "the log was written before the job had ended",
                at=moment(row.created_at_ms),
            )
            for row in self.gateway.read(work)
        ]

    def probe(self, name: str, caller: Principal) -> Probe | None:
        """The newest look of a worker at a dataset; None if there was none. Raises as `page`."""

        def work(connection: Connection) -> Row[Any] | None:
            dataset = self._watched(connection, name, caller)
            query = select(jobs).where(
                jobs.c.dataset == dataset.name, jobs.c.kind == JobKind.PROBE.value
            )
            return connection.execute(query.order_by(jobs.c.created_at_ms.desc()).limit(1)).first()

        row = self.gateway.read(work)
        if row is None:
            return None
        return Probe(
            job=row.id,
            state=JobState(row.state),
            since=moment(row.created_at_ms),
            failure=_failure(row.failure),
            incident=row.incident,
        )

    def _watched(self, connection: Connection, name: str, caller: Principal) -> Dataset:
        dataset = self.datasets.visible(connection, name, caller)
        if not sees_all(caller, dataset.steward_id):
            raise no_dataset(name)
        return dataset


@dataclass(frozen=True, slots=True)
class _Position:
    """Position in both records: behind the last line of each that was shown."""

    at_ms: int = 2**53
    job: str = ""
    entry: int = 2**53

    @classmethod
    def parse(cls, text: str) -> _Position:
        """The position that `text` says; raises ProblemError for none of ours."""
        if not text:
            return cls()
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ProblemError("invalid", "cursor: this list gave no such cursor; start without it")
        return cls(int(match[1]), match[2], int(match[3]))

    def after(self, row: Row[Any]) -> _Position:
        """The position behind a further line."""
        if row.entry is None:
            return replace(self, at_ms=row.at_ms, job=row.job)
        return replace(self, entry=row.entry)

    @property
    def text(self) -> str:
        """The text of it, for a cursor."""
        return f"{self.at_ms}:{self.job}:{self.entry}"


def _is_subject(dataset: Dataset) -> ColumnElement[bool]:
    """Condition on rows of `jobs` that read the dataset, or use a model that was fitted on it."""
    fits = jobs.alias("fits")
    fitted_model = (
        select(literal(1))
        .select_from(models)
        .join(fits, fits.c.id == models.c.job_id)
        .where(models.c.id == jobs.c.model_id, fits.c.dataset == dataset.name)
    )
    return or_(jobs.c.dataset == dataset.name, fitted_model.exists())


def _jobs_in(dataset: Dataset, state: JobState) -> Select[Any]:
    """Jobs of the dataset in a state that they do not leave, the newest first, by one index."""
    is_ended = jobs.c.namespace == dataset.namespace, jobs.c.state == state.value
    return (
        select(jobs.c.id.label("job"), jobs.c.updated_at_ms.label("at_ms"), jobs.c.kind)
        .add_columns(jobs.c.model_id, jobs.c.policy, users.c.name.label("reader"))
        .add_columns(jobs.c.state, null().label("entry"), tracked_runs.c.sequence.label("tracked"))
        .join(users, users.c.id == jobs.c.requester_id)
        .outerjoin(tracked_runs, tracked_runs.c.job_id == jobs.c.id)
        .where(*is_ended, _is_subject(dataset))
        .order_by(jobs.c.updated_at_ms.desc(), jobs.c.id.desc())
    )


def _released(
    connection: Connection, dataset: Dataset, position: _Position, fetch: int
) -> list[tuple[Row[Any], Sequence[Row[Any]]]]:
    """Jobs that released files, with the files of each; and those whose text was sent on as it was
    written, and that were ended or failed before they could release it."""
    earlier = or_(
        jobs.c.updated_at_ms < position.at_ms,
        and_(jobs.c.updated_at_ms == position.at_ms, jobs.c.id < position.job),
    )
    has_files = select(literal(1)).where(artifacts.c.job_id == jobs.c.id).exists()
    # The first condition lets an index begin where the last page ended.
    bounds = jobs.c.updated_at_ms <= position.at_ms, earlier
    streamed = (
        jobs.c.kind == JobKind.SAMPLE.value,
        jobs.c.started_at_ms.is_not(None),
        jobs.c.request.contains(_STREAMS, autoescape=True),
    )
    queries = [
        _jobs_in(dataset, JobState.SUCCEEDED).where(has_files),
        _jobs_in(dataset, JobState.CANCELLED).where(*streamed),
        _jobs_in(dataset, JobState.FAILED).where(*streamed),
    ]
    rows = [
        row
        for query in queries
        for row in connection.execute(query.where(*bounds).limit(fetch)).all()
    ]
    lines = sorted(rows, key=lambda row: (row.at_ms, row.job), reverse=True)[:fetch]
    files: dict[str, list[Any]] = {line.job: [] for line in lines}
    query = select(artifacts.c.job_id, artifacts.c.name, artifacts.c.size_bytes)
    for row in connection.execute(query.where(artifacts.c.job_id.in_(sorted(files)))):
        files[row.job_id].append(row)
    return [(line, files[line.job]) for line in lines]


def _released_view(row: Row[Any], files: Sequence[Row[Any]]) -> DisclosureView:
    whole = row.state == JobState.SUCCEEDED.value
    return DisclosureView(
        at=moment(row.at_ms),
        step="released",
        kind=_RELEASED[JobKind(row.kind)],
        names=tuple(sorted(file.name for file in files)) if whole else (_CUT_SHORT,),
        to=f"user:{row.reader}",
        job=row.job,
        model=row.model_id,
        policy=PolicyLine.model_validate_json(row.policy),
        size_bytes=sum(file.size_bytes for file in files) if whole else None,
        tracked=bool(row.tracked),  # up to some event
    )


def _read_view(row: Row[Any]) -> DisclosureView:
    thing = thing_at(row.resource)
    assert thing is not None, "what leads nowhere is behind no dataset"
    return DisclosureView(
        at=moment(row.at_ms),
        step="sent" if thing.kind in ("email", "webhook") else "read",
        kind=thing.kind,
        names=(thing.file,) if thing.file else (),
        to=row.reader,
        job=thing.name if thing.room == "jobs" else None,
        model=thing.name if thing.room == "models" else None,
    )


def _finding(row: Row[Any]) -> AuditFinding | None:
    """The finding in an audit's file; None for a file of another version."""
    try:
        audit = Audit.model_validate_json(row.content or "")
    except ValidationError:
        return None
    return AuditFinding(
        job=row.job,
        model=row.model_id,
        requester=row.reader,
        at=moment(row.at_ms),
        epsilon_lower_bound=audit.epsilon_lower_bound,
        promised_epsilon=audit.promised_epsilon,
        delta=audit.delta,
        confidence=audit.confidence,
        canaries=audit.canaries,
        refuted=audit.refuted,
    )


def _failure(code: str | None) -> str | None:
    return None if code is None else FAILURES[FailureCode(code)]

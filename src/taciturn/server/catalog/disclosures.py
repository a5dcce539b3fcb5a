"""Disclosures: everything about a dataset that has left, to whom, and what attacks made of it.

Two records are read together. What workers released is in the tables of jobs and files: each fit,
text, figure and schema, with who asked for it. Who has read what afterwards is in the audit log,
which is written before an answer leaves. Prompts through OpenAI's API are jobs too, so their texts
are among the released ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Row, Select, and_, func, literal, null, or_, select, union_all

from taciturn.reports.privacy import Audit
from taciturn.server.catalog.datasets import Dataset, Datasets
from taciturn.server.context import Gateway
from taciturn.server.identity.namespace_access import no_dataset, sees_all
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import artifacts, audit_log, incidents, jobs, users
from taciturn.server.timestamps import moment
from taciturn.wire.datasets import DisclosureKind, DisclosureView
from taciturn.wire.events import FAILURES, FailureCode
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.values import Page, PolicyLine

_READS = [action.value for action in Action if action.value.endswith((":read", ":use"))]
_OF_JOB: Mapping[str, DisclosureKind] = {"/result": "result", "/events": "events", "": "job"}
_OF_FINE_TUNING: Mapping[str, DisclosureKind] = {
    "/checkpoints": "job",
    "/events": "events",
    "": "job",
}
_OF_MODEL: Mapping[str, DisclosureKind] = {"/certificate": "certificate", "": "model"}
_OF_DATASET: Mapping[str, DisclosureKind] = {
    "/preview": "preview",
    "/selections": "preview",
    "": "terms",
}
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

    def page(self, name: str, caller: Principal, paging: Paging) -> Page[DisclosureView]:
        """Disclosures of a dataset, newest first; what its owner reads of their own is left out.

        Raises ProblemError `not_found` to all but its owner and auditors.
        """
        position = _Position.parse(paging.name())

        def work(connection: Connection) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]]]:
            dataset = self._watched(connection, name, caller)
            released = connection.execute(_released(dataset, position, paging.fetch)).all()
            reads = connection.execute(_reads(dataset, position, paging.fetch)).all()
            return released, reads

        released, reads = self.gateway.read(work)
        lines = sorted((*released, *reads), key=lambda row: row.at_ms, reverse=True)
        keyed = [(row, position := position.after(row)) for row in lines]
        return paging.page(keyed, lambda pair: _view(pair[0]), lambda pair: pair[1].text)

    def audits(self, name: str, caller: Principal) -> list[AuditFinding]:
        """The newest audits of models that were fitted on a dataset; raises as `page`."""

        def work(connection: Connection) -> Sequence[Row[Any]]:
            dataset = self._watched(connection, name, caller)
            query = (
                select(jobs.c.id, jobs.c.model_id, users.c.name, artifacts.c.content)
                .add_columns(artifacts.c.created_at_ms)
                .join(artifacts, artifacts.c.job_id == jobs.c.id)
                .join(users, users.c.id == jobs.c.requester_id)
                .where(
                    jobs.c.id.in_(_subjects(dataset)),
                    jobs.c.state == JobState.SUCCEEDED.value,
                    artifacts.c.name == "audit.json",
                )
                .order_by(artifacts.c.created_at_ms.desc(), jobs.c.id)
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
                .where(
                    incidents.c.namespace == dataset.namespace, jobs.c.id.in_(_subjects(dataset))
                )
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


def _subjects(dataset: Dataset) -> Select[Any]:
    """Ids of the jobs that read the dataset, or use a model that was fitted on it."""
    fits = jobs.alias("fits")
    fitted_models = select(fits.c.model_id).where(
        fits.c.dataset == dataset.name,
        fits.c.kind == JobKind.FIT.value,
        fits.c.model_id.is_not(None),
    )
    return select(jobs.c.id).where(
        or_(jobs.c.dataset == dataset.name, jobs.c.model_id.in_(fitted_models))
    )


def _released(dataset: Dataset, position: _Position, fetch: int) -> Select[Any]:
    """Released files, a line for each job."""
    files = (
        select(
            artifacts.c.job_id.label("job"),
            func.max(artifacts.c.created_at_ms).label("at_ms"),
            func.sum(artifacts.c.size_bytes).label("size_bytes"),
            func.aggregate_strings(artifacts.c.name, "/").label("names"),
        )
        .where(artifacts.c.job_id.in_(_subjects(dataset)))
        .group_by(artifacts.c.job_id)
        .subquery()
    )
    earlier = or_(
        files.c.at_ms < position.at_ms,
        and_(files.c.at_ms == position.at_ms, files.c.job < position.job),
    )
    return (
        select(files, jobs.c.kind, jobs.c.model_id, jobs.c.policy)
        .add_columns(users.c.name.label("reader"), null().label("entry"))
        .join(jobs, jobs.c.id == files.c.job)
        .join(users, users.c.id == jobs.c.requester_id)
        .where(jobs.c.state == JobState.SUCCEEDED.value, earlier)
        .order_by(files.c.at_ms.desc(), files.c.job.desc())
        .limit(fetch)
    )


def _reads(dataset: Dataset, position: _Position, fetch: int) -> Select[Any]:
    """Entries of the audit log that gave somebody something of it, but for its owner."""
    return (
        select(
            audit_log.c.id.label("entry"),
            audit_log.c.at_ms,
            audit_log.c.actor.label("reader"),
            audit_log.c.resource,
        )
        .where(
            audit_log.c.resource.in_(_paths(dataset)),
            audit_log.c.id < position.entry,
            audit_log.c.status < 300,
            audit_log.c.action.in_(_READS),
            audit_log.c.actor != f"user:{dataset.owner}",
        )
        .order_by(audit_log.c.id.desc())
        .limit(fetch)
    )


def _paths(dataset: Dataset) -> Any:
    """Paths under which something of a dataset is read: in the API and in the console."""
    # Read several times below: without the word, a database may find them anew each time.
    subjects = _subjects(dataset).cte("subjects").prefix_with("MATERIALIZED")
    files = artifacts.c.job_id == subjects.c.id
    fits = (
        select(jobs.c.id, jobs.c.model_id)
        .where(
            jobs.c.dataset == dataset.name,
            jobs.c.kind == JobKind.FIT.value,
            jobs.c.model_id.is_not(None),
        )
        .cte("fits")
        .prefix_with("MATERIALIZED")
    )
    of_fits = artifacts.c.job_id == fits.c.id
    parts = [
        *(select("/v1/jobs/" + subjects.c.id + end) for end in _OF_JOB),
        *(
            select(f"{root}/v1/fine_tuning/jobs/" + subjects.c.id + end)
            for root in _ROOTS
            for end in _OF_FINE_TUNING
        ),
        *(select("/v1/models/" + fits.c.model_id + end) for end in _OF_MODEL),
        select("/jobs/" + subjects.c.id),
        select("/models/" + fits.c.model_id),
        select("/v1/jobs/" + subjects.c.id + "/files/" + artifacts.c.name).where(files),
        select("/v1/models/" + fits.c.model_id + "/files/" + artifacts.c.name).where(of_fits),
        *(select(literal(f"/v1/datasets/{dataset.name}{end}")) for end in _OF_DATASET),
        *(select(literal(f"/datasets/{dataset.name}{end}")) for end in ("", "/selections")),
        *(select(literal(f"{root}/v1/files/{dataset.name}")) for root in _ROOTS),
    ]
    return union_all(*parts)


def _view(row: Row[Any]) -> DisclosureView:
    if row.entry is None:
        return DisclosureView(
            at=moment(row.at_ms),
            step="released",
            kind=_RELEASED[JobKind(row.kind)],
            names=tuple(sorted(row.names.split("/"))),
            to=f"user:{row.reader}",
            job=row.job,
            model=row.model_id,
            policy=PolicyLine.model_validate_json(row.policy),
            size_bytes=int(row.size_bytes),
        )
    path = row.resource.removeprefix("/openai").removeprefix("/v1").removeprefix("/fine_tuning")
    parts = path.split("/", 3)
    room, name, end = parts[1], parts[2], "/" + parts[3] if len(parts) > 3 else ""
    kinds = {
        "jobs": {**_OF_JOB, **_OF_FINE_TUNING},
        "models": _OF_MODEL,
        "datasets": _OF_DATASET,
        "files": _OF_DATASET,
    }[room]
    file = end.removeprefix("/files/") if end.startswith("/files/") else None
    return DisclosureView(
        at=moment(row.at_ms),
        step="read",
        kind=_kind_of_file(file) if file else kinds[end],
        names=(file,) if file else (),
        to=row.reader,
        job=name if room == "jobs" else None,
        model=name if room == "models" else None,
    )


def _kind_of_file(name: str) -> DisclosureKind:
    kinds: dict[str, DisclosureKind] = {
        "certificate.json": "certificate",
        "samples.jsonl": "texts",
        "synthetic.parquet": "records",
        "evaluation.json": "figures",
        "audit.json": "audit",
        "schema.json": "columns",
    }
    return kinds.get(name, "model")


def _finding(row: Row[Any]) -> AuditFinding | None:
    """The finding in an audit's file; None for a file of another version."""
    try:
        audit = Audit.model_validate_json(row.content or "")
    except ValidationError:
        return None
    return AuditFinding(
        job=row.id,
        model=row.model_id,
        requester=row.name,
        at=moment(row.created_at_ms),
        epsilon_lower_bound=audit.epsilon_lower_bound,
        promised_epsilon=audit.promised_epsilon,
        delta=audit.delta,
        confidence=audit.confidence,
        canaries=audit.canaries,
        refuted=audit.refuted,
    )


def _failure(code: str | None) -> str | None:
    return None if code is None else FAILURES[FailureCode(code)]

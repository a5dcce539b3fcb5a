"""Fitted models: what a succeeded fit has made, whose it is, and under what policy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, func, insert, select, true

from taciturn.certificate.envelope import Envelope
from taciturn.errors import CertificateError
from taciturn.planning.plan import TrainingPlan
from taciturn.reports.privacy import CERTIFICATE, PrivacyReport
from taciturn.server.context import Gateway
from taciturn.server.identity.job_access import holds_model, no_model, uses_model, watches_model
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.models.artifacts import REPORT, Artifacts, Download
from taciturn.server.paging import Paging, newest_of, position_of
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import artifacts, base_models, datasets, jobs, models, users
from taciturn.server.timestamps import moment
from taciturn.wire.jobs import ModelView
from taciturn.wire.results import FileView
from taciturn.wire.values import Page, PolicyLine

WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
_FILES = (
    select(func.aggregate_strings(artifacts.c.name, "/"))
    .where(artifacts.c.job_id == models.c.job_id)
    .scalar_subquery()
    .label("files")
)
"""Names of a model's files, between slashes, which no name has."""
_FOR_AUDITORS = frozenset({CERTIFICATE, REPORT})


@dataclass(frozen=True, slots=True)
class CertifiedModel:
    """A model with a certificate.

    Attributes:
        signer: digest of the key that has signed it; None where the file cannot be read any more.
    """

    model: ModelView
    signer: str | None


@dataclass(frozen=True, slots=True)
class Models:
    """Keeps models."""

    gateway: Gateway
    artifacts: Artifacts

    def from_fit(self, connection: Connection, job: Row[Any]) -> dict[str, Any]:
        """Make the model of a fit that has succeeded, in the caller's transaction; again: the same.

        Returns:
            Values for the job's row: the model, and its policy.

        Raises:
            ProblemError: `conflict`, if files are missing, or if the report does not say of the
                model what was planned and reserved: then nothing may be released.
        """
        earlier = connection.execute(select(models).where(models.c.job_id == job.id)).first()
        if earlier is not None:
            return {"model_id": earlier.id, "policy": earlier.policy}
        report = self._report(connection, job)
        policy = _policy(report, PolicyLine.model_validate_json(job.policy)).model_dump_json()
        model_id = new_id("model")
        connection.execute(
            insert(models).values(
                id=model_id,
                job_id=job.id,
                owner_id=job.requester_id,
                namespace=job.namespace,
                name=json.loads(job.request).get("name"),
                base_model=report.base_model,
                report=report.model_dump_json(),
                policy=policy,
                created_at_ms=self.gateway.tick_ms(),
            )
        )
        return {"model_id": model_id, "policy": policy}

    def list(self, caller: Principal, paging: Paging) -> Page[ModelView]:
        """Models that the caller may know of, newest first."""
        query = newest_of(_query(true()), models, watches_model(caller), paging)
        return paging.page(self.gateway.rows(query), _view, position_of)

    def certified(self, caller: Principal, paging: Paging) -> Page[CertifiedModel]:
        """Models of those that have a certificate, newest first; by one query, for no certificate
        is read to show who has signed it."""
        of_model = artifacts.c.job_id == models.c.job_id, artifacts.c.name == CERTIFICATE
        certificate = select(artifacts.c.name).where(*of_model)
        signer = select(artifacts.c.content).where(*of_model).scalar_subquery().label("signer")
        query = newest_of(
            _query(true()).add_columns(signer),
            models,
            watches_model(caller) & certificate.exists(),
            paging,
        )
        return paging.page(self.gateway.rows(query), self._certified, position_of)

    def _certified(self, row: Row[Any]) -> CertifiedModel:
        if row.signer is not None:
            return CertifiedModel(_view(row), row.signer)
        # An earlier version has kept it, and noted nothing about it.
        signer = None
        with suppress(CertificateError, KeyError, OSError):
            content = self.artifacts.read(row.job_id, CERTIFICATE)
            signer = None if content is None else Envelope.from_bytes(content).keyid
        return CertifiedModel(_view(row), signer)

    def among(self, caller: Principal, model_ids: Iterable[str]) -> Mapping[str, ModelView]:
        """Return those of these models that the caller may know of, by id."""
        condition = models.c.id.in_(sorted(set(model_ids))) & watches_model(caller)
        return {row.id: _view(row) for row in self.gateway.rows(_query(condition))}

    def get(self, caller: Principal, model_id: str) -> ModelView:
        """One of them; raises ProblemError `not_found`."""
        return _view(self._row(model_id, watches_model(caller)))

    def usable(self, caller: Principal, model_id: str) -> ModelView:
        """One that the caller may sample from; raises ProblemError `not_found`."""
        return _view(self._row(model_id, uses_model(caller)))

    def is_held(self, caller: Principal, model_id: str) -> bool:
        """True if the model's files are the caller's to have."""
        query = select(models.c.id).where(models.c.id == model_id, holds_model(caller))
        return bool(self.gateway.rows(query))

    def usable_like(self, caller: Principal, model: ModelView, most: int) -> tuple[ModelView, ...]:
        """Others with the same base that the caller may sample from, newest first."""
        like = (models.c.base_model == model.base_model) & (models.c.id != model.id)
        query = _query(uses_model(caller) & like).order_by(models.c.created_at_ms.desc())
        return tuple(_view(row) for row in self.gateway.rows(query.limit(most)))

    def files(self, caller: Principal, model_id: str) -> tuple[FileView, ...]:
        """Files that the caller may have; raises ProblemError `not_found`."""
        row = self._row(model_id, watches_model(caller))
        files = self.artifacts.files(row.job_id)
        if self.is_held(caller, model_id):
            return files
        return tuple(file for file in files if file.name in _FOR_AUDITORS)

    def open(
        self,
        caller: Principal,
        model_id: str,
        name: str,
        bounds: tuple[int | None, int | None] = (None, None),
    ) -> tuple[Download, PolicyLine]:
        """A file of a model, and the model's policy. Auditors get what they check, not the model.

        Raises:
            ProblemError: `not_found`.
        """
        condition = watches_model if name in _FOR_AUDITORS else holds_model
        row = self._row(model_id, condition(caller))
        if name == CERTIFICATE and self.artifacts.read(row.job_id, name) is None:
            raise ProblemError("not_found", _no_certificate(row))
        return self.artifacts.open(row.job_id, name, bounds), _line(row)

    def made_by(self, model_id: str) -> str:
        """The job whose files a model's are; raises ProblemError `not_found`."""
        query = select(models.c.job_id).where(models.c.id == model_id)
        job_id = self.gateway.read(lambda connection: connection.scalar(query))
        if job_id is None:
            raise no_model(model_id)
        return str(job_id)

    def remove(self, caller: Principal, model_id: str) -> None:
        """Remove a model and its files; what it has spent stays spent."""
        row = self._row(model_id, holds_model(caller))
        removal = delete(models).where(models.c.id == model_id)
        self.gateway.write(lambda connection: connection.execute(removal))
        self.artifacts.remove(row.job_id)

    def _row(self, model_id: str, condition: ColumnElement[bool]) -> Row[Any]:
        query = _query(condition).where(models.c.id == model_id)
        rows = self.gateway.rows(query)
        if not rows:
            raise no_model(model_id)
        return rows[0]

    def _report(self, connection: Connection, job: Row[Any]) -> PrivacyReport:
        released = self.artifacts.names(connection, job.id)
        text = self.artifacts.document(connection, job.id, REPORT)
        if text is None or not set(WEIGHTS) & set(released):
            raise ProblemError(
                "conflict", f"a fit has to release {REPORT} and {' or '.join(WEIGHTS)} first"
            )
        report = PrivacyReport.model_validate_json(text)
        query = select(datasets.c.unit).where(datasets.c.name == job.dataset)
        differences = _differences(report, job, connection.scalar(query))
        if differences:
            raise ProblemError(
                "conflict",
                f"the report is not of the plan that was reserved: {', '.join(differences)}",
            )
        return report


def _differences(report: PrivacyReport, job: Row[Any], unit: str | None) -> tuple[str, ...]:
    """Fields in which the report is not about what the gateway planned and paid for.

    Args:
        unit: what the dataset's owner protects; None if the dataset is no longer there.
    """
    plan = TrainingPlan.model_validate_json(job.plan)
    expected: dict[str, object] = {
        "base_model": json.loads(job.request)["model"],
        "guarantee": "none" if plan.privacy is None else "differential privacy",
        "steps": plan.steps,
        "n_units": plan.n_units,
        "epsilon": None,
        "delta": None,
    }
    if plan.privacy is not None:
        expected |= {
            "epsilon": plan.privacy.epsilon,
            "delta": plan.privacy.delta,
            "noise_multiplier": plan.privacy.noise_multiplier,
            "l2_clip_norm": plan.privacy.l2_clip_norm,
            "sampling_probability": plan.sampling_probability,
            "max_records_per_unit": plan.max_records_per_unit,
            "privacy_unit": report.privacy_unit if unit is None else unit,
        }
    return tuple(
        name for name, value in expected.items() if not _same(getattr(report, name), value)
    )


def _same(actual: object, expected: object) -> bool:
    if isinstance(expected, float) and isinstance(actual, float):
        return abs(actual - expected) <= 1e-9 * abs(expected)
    return actual == expected


def _policy(report: PrivacyReport, of_job: PolicyLine) -> PolicyLine:
    """Policy line: of a guarantee the report's own; without one the job's, which says who
    approved."""
    if report.guarantee == "none":
        return of_job
    return PolicyLine(kind="DP", text=report.policy)


def _query(condition: ColumnElement[bool]) -> Select[Any]:
    return (
        select(
            models,
            users.c.name.label("owner"),
            _FILES,
            base_models.c.context_length,
            jobs.c.dataset,
        )
        .join(users, users.c.id == models.c.owner_id)
        .outerjoin(jobs, jobs.c.id == models.c.job_id)
        .outerjoin(base_models, base_models.c.name == models.c.base_model)
        .where(condition)
    )


def _line(row: Row[Any]) -> PolicyLine:
    return PolicyLine.model_validate_json(row.policy)


def _view(row: Row[Any]) -> ModelView:
    return ModelView(
        id=row.id,
        name=row.name,
        job=row.job_id,
        owner=row.owner,
        base_model=row.base_model,
        context_length=row.context_length,
        namespace=row.namespace,
        dataset=row.dataset,
        policy=_line(row),
        report=json.loads(row.report),
        files=tuple(sorted(row.files.split("/"))) if row.files else (),
        created_at=moment(row.created_at_ms),
    )


def _no_certificate(row: Row[Any]) -> str:
    if _line(row).kind == "no guarantee":
        return "the model has no guarantee, and nothing certifies that"
    return "no certificate was issued, for the gateway was given no signing key"

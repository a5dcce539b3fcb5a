"""Released files: taken from the worker that holds the job's lease, checked, kept, given out.

A file is kept under its own digest, so that what a worker sends late, after another one has taken
the job over, never lies where a reader looks. What people read about a model, its card and its
page, is not taken from the worker: the gateway writes both from the model's own reports.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from taciturn.certificate.envelope import Envelope
from taciturn.errors import CertificateError
from taciturn.reports.card import model_card
from taciturn.reports.figures import ReleasedFigures
from taciturn.reports.html.report import report_page
from taciturn.reports.privacy import CERTIFICATE, Audit, PrivacyReport
from taciturn.server.context import Gateway
from taciturn.server.identity.job_access import held_job
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.models import content_checks
from taciturn.server.models.storage import FileStore
from taciturn.server.models.storage.base import CHUNK_BYTES
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import artifacts, base_models
from taciturn.server.timestamps import moment
from taciturn.wire.artifacts import ALLOWED
from taciturn.wire.jobs import JobKind
from taciturn.wire.results import FileView

log = logging.getLogger("taciturn.server.models.artifacts")

REPORT, FIGURES, AUDIT = "privacy_report.json", "evaluations.json", "audit.json"
SCHEMA, EVALUATION = "schema.json", "evaluation.json"
DOCUMENTS = frozenset({REPORT, FIGURES, AUDIT, SCHEMA, EVALUATION})
"""Small files that services read: kept in the database too, where a transaction can see them."""

CARD, PAGE = "README.md", "report.html"
WRITTEN_HERE = frozenset({CARD, PAGE})

Pieces = Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Download:
    """A released file, on its way out."""

    file: FileView
    start: int
    length: int
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Keeps and gives out what jobs release. Who may have it, the callers decide."""

    gateway: Gateway
    store: FileStore

    def limit_bytes(self, worker: WorkerPrincipal, lease: int, name: str) -> int:
        """The most that this file may hold; before any of it is read.

        Raises:
            ProblemError: `fenced` without a valid lease, `file_refused` for another name.
        """
        job = self.gateway.read(lambda connection: held_job(connection, worker, lease))
        limits = ALLOWED[JobKind(job.kind)]
        if name not in limits:
            raise _file_refusal(job, "name")
        return limits[name]

    def keep(self, worker: WorkerPrincipal, lease: int, name: str, path: Path) -> None:
        """Check and keep what the worker has sent, now whole at `path`; once more is no change.

        Raises:
            ProblemError: `fenced`, or `file_refused`: nothing is kept.
        """
        job = self.gateway.read(lambda connection: held_job(connection, worker, lease))
        kind = JobKind(job.kind)
        if name in WRITTEN_HERE and kind is JobKind.FIT:
            return
        try:
            request = json.loads(job.request)
            content_checks.check(kind, name, path, request, self._vocabulary(request.get("model")))
        except content_checks.FileRefusedError as error:
            raise _file_refusal(job, str(error)) from None
        self._take(worker, lease, name, lambda: _pieces(path))
        if kind is JobKind.FIT and name in (REPORT, FIGURES, AUDIT):
            self._explain(worker, lease)

    def names(self, connection: Connection, job_id: str) -> tuple[str, ...]:
        """Names of all files that a job has released."""
        query = select(artifacts.c.name).where(artifacts.c.job_id == job_id)
        return tuple(connection.execute(query.order_by(artifacts.c.name)).scalars())

    def files(self, job_id: str) -> tuple[FileView, ...]:
        """All files that a job has released."""
        query = select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.name)
        return self.gateway.read(
            lambda connection: tuple(_view(row) for row in connection.execute(query))
        )

    def open(self, job_id: str, name: str, bounds: tuple[int | None, int | None]) -> Download:
        """A file, from the first to the last byte asked for, both included, as in a Range header.

        Raises:
            ProblemError: `not_found`, or `range_not_satisfiable`.
        """
        row = self._row(job_id, name)
        if row is None:
            raise ProblemError("not_found", "there is no such file; the job's files are listed")
        start, length = _span(bounds, row.size_bytes)
        chunks = self.store.get(_key(job_id, row.sha256, name), start, length)
        return Download(_view(row), start, length, chunks)

    def read(self, job_id: str, name: str) -> bytes | None:
        """A file, whole; None if it was not released."""
        row = self._row(job_id, name)
        if row is None:
            return None
        return b"".join(self.store.get(_key(job_id, row.sha256, name)))

    def pieces(self, job_id: str, name: str) -> Iterator[bytes]:
        """A file, piece by piece; raises KeyError if it was not released."""
        row = self._row(job_id, name)
        if row is None:
            raise KeyError(name)
        return self.store.get(_key(job_id, row.sha256, name))

    def document(self, connection: Connection, job_id: str, name: str) -> str | None:
        """One of DOCUMENTS, in the caller's transaction; None if it was not released."""
        query = select(artifacts.c.content).where(
            artifacts.c.job_id == job_id, artifacts.c.name == name
        )
        return connection.scalar(query)

    def remove(self, job_id: str) -> None:
        """Remove all files of a job."""
        for file in self.files(job_id):
            self.store.delete(_key(job_id, file.sha256, file.name))
        of_job = delete(artifacts).where(artifacts.c.job_id == job_id)
        self.gateway.write(lambda connection: connection.execute(of_job))

    def _vocabulary(self, base_model: str | None) -> int | None:
        """Declared size of a base model's vocabulary; None for what is no base model's name."""
        query = select(base_models.c.vocabulary).where(base_models.c.name == base_model)
        return self.gateway.read(lambda connection: connection.scalar(query))

    def _row(self, job_id: str, name: str) -> Row[Any] | None:
        query = select(artifacts).where(artifacts.c.job_id == job_id, artifacts.c.name == name)
        return self.gateway.read(lambda connection: connection.execute(query).first())

    def _take(self, worker: WorkerPrincipal, lease: int, name: str, pieces: Pieces) -> None:
        """Keep a checked file, then say so, if the lease still holds; a later file replaces it."""
        digest = hashlib.sha256()
        size_bytes = 0
        for piece in pieces():
            digest.update(piece)
            size_bytes += len(piece)
        sha256, job_id = digest.hexdigest(), worker.job_id
        self.store.write(_key(job_id, sha256, name), pieces(), size_bytes)
        row = {
            "job_id": job_id,
            "name": name,
            "size_bytes": size_bytes,
            "sha256": sha256,
            "content": _content(name, pieces),
            "created_at_ms": self.gateway.tick_ms(),
        }

        def record(connection: Connection) -> None:
            held_job(connection, worker, lease)
            same = (artifacts.c.job_id == job_id) & (artifacts.c.name == name)
            connection.execute(delete(artifacts).where(same))
            connection.execute(insert(artifacts).values(row))

        self.gateway.write(record)

    def _explain(self, worker: WorkerPrincipal, lease: int) -> None:
        """Write card and page from what is known of the model so far."""
        job_id = worker.job_id
        report_text = self.read(job_id, REPORT)
        if report_text is None:
            return
        report = PrivacyReport.model_validate_json(report_text)
        audit_text, figures_text = self.read(job_id, AUDIT), self.read(job_id, FIGURES)
        audit = None if audit_text is None else Audit.model_validate_json(audit_text)
        figures = (
            None if figures_text is None else ReleasedFigures.model_validate_json(figures_text)
        )
        card, page = model_card(report, audit), report_page(report, figures, audit)
        self._take(worker, lease, CARD, lambda: [card.encode()])
        self._take(worker, lease, PAGE, lambda: [page.encode()])


def _file_refusal(job: Row[Any], word: str) -> ProblemError:
    log.warning("file refused", extra={"job": job.id, "kind": job.kind, "reason": word})
    return ProblemError("file_refused", f"not a file that a {job.kind} job releases: {word}")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _content(name: str, pieces: Pieces) -> str | None:
    """Text that the database keeps of a file: a document itself; of a certificate, which can be
    long, the id of the key that has signed it."""
    if name in DOCUMENTS:
        return b"".join(pieces()).decode()
    if name == CERTIFICATE:
        with suppress(CertificateError):
            return Envelope.from_bytes(b"".join(pieces())).keyid
    return None


def _key(job_id: str, sha256: str, name: str) -> str:
    return f"jobs/{job_id}/{sha256}/{name}"


def _view(row: Row[Any]) -> FileView:
    return FileView(
        name=row.name,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        created_at=moment(row.created_at_ms),
    )


def _span(bounds: tuple[int | None, int | None], size_bytes: int) -> tuple[int, int]:
    """First byte and number of bytes; without a first byte, the last ones are meant."""
    first, last = bounds
    if first is None:
        first, last = max(0, size_bytes - (size_bytes if last is None else last)), None
    end = size_bytes if last is None else min(last + 1, size_bytes)
    if first > end or (first == end and bounds != (None, None)):
        raise ProblemError(
            "range_not_satisfiable",
            f"the range is not in the file, which has {size_bytes} bytes; ask for some of these",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
    return first, end - first

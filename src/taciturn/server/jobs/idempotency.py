"""One request, one job: an Idempotency-Key stands for what was first asked under it."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, insert, select

from taciturn.certificate.canonical import canonical_json
from taciturn.server.jobs.terms import SubmittedRequest
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import idempotency


def digest_of(request: SubmittedRequest) -> str:
    """Digest of a request, which tells whether a key is used for the same one again."""
    return hashlib.sha256(canonical_json(request.model_dump(mode="json"))).hexdigest()


def made_before(connection: Connection, user_id: str, key: str, digest: str) -> str | None:
    """The job that this person's key stands for; None if it is new.

    Raises:
        ProblemError: `idempotency_mismatch`, the key stands for another request.
    """
    query = select(idempotency).where(idempotency.c.user_id == user_id, idempotency.c.key == key)
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.request != digest:
        raise ProblemError(
            "idempotency_mismatch",
            "this Idempotency-Key stands for another request of yours; take a new one",
        )
    return str(row.resource)


def remember(
    connection: Connection, user_id: str, key: str, digest: str, job_id: str, now_ms: int
) -> None:
    """Make the key stand for this job."""
    connection.execute(
        insert(idempotency).values(
            user_id=user_id, key=key, request=digest, resource=job_id, created_at_ms=now_ms
        )
    )

"""Access to jobs, models and results: to a person's own, and to those of their data.

A worker has access to the job that it holds, and to nothing else.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, false, or_, select, true

from taciturn.server.identity.namespace_access import owned_namespaces
from taciturn.server.identity.principal import Principal, WorkerPrincipal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import jobs, models
from taciturn.wire.identity import Role
from taciturn.wire.jobs import JobState


def watches_job(caller: Principal) -> ColumnElement[bool]:
    """Condition on rows of `jobs` that the caller may follow; true for an auditor."""
    return true() if caller.has(Role.AUDITOR) else holds_job(caller)


def holds_job(caller: Principal) -> ColumnElement[bool]:
    """Condition on rows of `jobs` whose results are the caller's to have."""
    return _holds(caller, jobs, jobs.c.requester_id)


def watches_model(caller: Principal) -> ColumnElement[bool]:
    """Condition on rows of `models` that the caller may know of; true for an auditor."""
    return true() if caller.has(Role.AUDITOR) else holds_model(caller)


def holds_model(caller: Principal) -> ColumnElement[bool]:
    """Condition on rows of `models` that are the caller's to have."""
    return _holds(caller, models, models.c.owner_id)


def uses_model(caller: Principal) -> ColumnElement[bool]:
    """Condition on rows of `models` that the caller may run jobs with; false for an auditor."""
    return false() if caller.has(Role.AUDITOR) else holds_model(caller)


def owns_namespace(caller: Principal, namespace: ColumnElement[str]) -> ColumnElement[bool]:
    """Condition that a namespace is the caller's, who has to be an owner still."""
    return namespace.in_(owned_namespaces(caller)) if caller.has(Role.OWNER) else false()


def no_job(job_id: str) -> ProblemError:
    """Problem for a job that is not there, or that the caller may not know of."""
    return ProblemError(
        "not_found",
        f"there is no job {job_id!r}, or it is not yours; `taciturn job list` has yours",
    )


def no_model(model_id: str) -> ProblemError:
    """Problem for a model that is not there, or that the caller may not know of."""
    return ProblemError(
        "not_found",
        f"there is no model {model_id!r}, or it is not yours; `taciturn model list` has yours",
    )


def fenced() -> ProblemError:
    """Problem for a worker that holds the job no longer, or never did."""
    return ProblemError(
        "fenced", "this worker does not hold the job: another one does, or it is over; stop"
    )


def is_of_attempt(job: Row[Any], worker: WorkerPrincipal) -> bool:
    """True if the worker was started for the job's current attempt."""
    return bool(job.worker_token == worker.token_id and job.attempt == worker.attempt)


def held_job(connection: Connection, worker: WorkerPrincipal, lease: int) -> Row[Any]:
    """The job of the worker that holds it now; raises ProblemError `fenced` for any other.

    To be called in the transaction that takes the worker's message.

    Args:
        lease: the fencing token that the worker has shown.
    """
    job = connection.execute(select(jobs).where(jobs.c.id == worker.job_id)).first()
    if job is None or not is_of_attempt(job, worker) or job.lease != lease or lease < 1:
        raise fenced()
    if job.state != JobState.RUNNING or job.outcome is not None:
        raise fenced()
    return job


def _holds(caller: Principal, table: FromClause, person: ColumnElement[str]) -> ColumnElement[bool]:
    return or_(person == caller.user_id, owns_namespace(caller, table.c.namespace))

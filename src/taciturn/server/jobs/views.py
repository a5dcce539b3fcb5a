"""Jobs as people see them: their own, owners those of their namespaces, auditors all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from taciturn.server.identity.job_access import no_job, watches_job
from taciturn.server.identity.principal import Principal
from taciturn.server.schema.tables import approvals, jobs, users
from taciturn.server.timestamps import moment
from taciturn.wire.events import FAILURES, FailureCode
from taciturn.wire.jobs import Failure, JobView, OperatedJob
from taciturn.wire.values import PolicyLine


def visible_jobs(caller: Principal) -> Select[Any]:
    """The jobs that the caller may know of, with requester and approval."""
    return all_jobs().where(watches_job(caller))


def all_jobs() -> Select[Any]:
    """All jobs, with the same, for a condition that says whose they are."""
    columns = (jobs, users.c.name.label("requester"), approvals.c.id.label("approval"))
    return (
        select(*columns)
        .join(users, users.c.id == jobs.c.requester_id)
        .outerjoin(approvals, approvals.c.job_id == jobs.c.id)
    )


def visible_job(connection: Connection, caller: Principal, job_id: str) -> Row[Any]:
    """One of them; raises ProblemError `not_found`."""
    return the_job(
        connection.execute(visible_jobs(caller).where(jobs.c.id == job_id)).all(), job_id
    )


def the_job(rows: Sequence[Row[Any]], job_id: str) -> Row[Any]:
    """The first row of a query for a job's id; raises ProblemError `not_found`."""
    if not rows:
        raise no_job(job_id)
    return rows[0]


def job_view(row: Row[Any]) -> JobView:
    """A row of `visible_jobs`."""
    return JobView(
        id=row.id,
        kind=row.kind,
        state=row.state,
        requester=row.requester,
        namespace=row.namespace,
        dataset=row.dataset,
        public_data=row.public_data,
        model=row.model_id,
        request=json.loads(row.request),
        plan=json.loads(row.plan) if row.plan else None,
        policy=PolicyLine.model_validate_json(row.policy),
        failure=_failure(row),
        approval=row.approval,
        created_at=moment(row.created_at_ms),
        started_at=None if row.started_at_ms is None else moment(row.started_at_ms),
        updated_at=moment(row.updated_at_ms),
    )


def operated_jobs() -> Select[Any]:
    """All jobs, with the requester, for whoever runs the gateway."""
    return select(jobs, users.c.name.label("requester")).join(
        users, users.c.id == jobs.c.requester_id
    )


def operated_job(row: Row[Any]) -> OperatedJob:
    """A row of `operated_jobs`."""
    return OperatedJob(
        id=row.id,
        kind=row.kind,
        state=row.state,
        requester=row.requester,
        attempt=row.attempt,
        created_at=moment(row.created_at_ms),
        started_at=None if row.started_at_ms is None else moment(row.started_at_ms),
        updated_at=moment(row.updated_at_ms),
    )


def _failure(row: Row[Any]) -> Failure | None:
    if row.failure is None:
        return None
    code = FailureCode(row.failure)
    text = FAILURES[code]
    if code is FailureCode.BUDGET_EXCEEDED and row.attempt == 0:
        text = (
            "the budget had no room for it any more when it was to be held: nothing ran, and "
            f"nothing was spent. `taciturn budget {row.namespace}` shows what is left, `taciturn "
            "plan` what would fit"
        )
    elif code is FailureCode.LOST:
        text = f"{text} ({row.attempt} tried)"
    return Failure(code=row.failure, text=text, incident=row.incident)

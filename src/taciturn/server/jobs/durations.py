"""Estimated duration of a fit: from earlier fits of the same base, or roughly from its size.

Only fits that the asker may know of count, and only what their events have said at public ticks:
when training began, and when the job was over. Each is kept when it ends, so that a plan asks one
query and reads no events.
"""

from __future__ import annotations

import json
import os
import statistics
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from taciturn.planning.plan import TOKENS_PER_UNIT, Speed, TrainingPlan
from taciturn.server.identity.job_access import watches_job
from taciturn.server.identity.principal import Principal
from taciturn.server.jobs.events import is_milestone
from taciturn.server.schema.tables import fit_speeds, job_events, jobs
from taciturn.wire.events import JOB_EVENT, Stage, StageEvent, StateEvent
from taciturn.wire.jobs import Duration, JobState

_LATEST = 10
_OPERATIONS = 4.3  # for each parameter and token of a private step, by bench/private_step.py
_PER_CORE_S = 3.6e10  # operations of one core, by bench/private_step.py on records of real lengths


def duration_of(
    connection: Connection, caller: Principal, model: str, plan: TrainingPlan, parameters: int
) -> Duration:
    """Estimate of the time that a fit's steps take."""
    speed = speed_of(connection, caller, model, plan.adapter.method, parameters)
    return Duration(seconds=plan.units_seen * speed.seconds_per_unit, basis=speed.basis)


def speed_of(
    connection: Connection, caller: Principal, model: str, method: str, parameters: int
) -> Speed:
    """Estimate of the time that each unit takes in a fit by that method, for max_minutes."""
    earlier = _seconds_per_unit(connection, caller, model, method)
    if earlier:
        return Speed(
            statistics.median(earlier),
            f"by {len(earlier)} earlier fit(s) of this base model that you may see",
        )
    operations = TOKENS_PER_UNIT * parameters * _OPERATIONS
    cores = os.cpu_count() or 1
    return Speed(
        operations / (cores * _PER_CORE_S),
        f"a guess from the model's size, for {cores} cores and {TOKENS_PER_UNIT} tokens a "
        "unit: a fit of other lengths or on another machine takes several times as long, or as "
        "short",
    )


def keep_speed(connection: Connection, job: Row[Any]) -> None:
    """Keep how fast a fit was that has just succeeded, in the transaction that says so.

    Nothing is kept of one whose worker was lost: part of its time is another worker's.
    """
    plan = None if job.plan is None else TrainingPlan.model_validate_json(job.plan)
    seconds = _training_s(connection, job.id)
    if plan is None or seconds is None:
        return
    row = {
        "job_id": job.id,
        "base_model": json.loads(job.request)["model"],
        "method": plan.adapter.method,
        "seconds_per_unit": seconds / plan.units_seen,
        "created_at_ms": job.created_at_ms,
    }
    connection.execute(insert(fit_speeds).values(row))


def _seconds_per_unit(
    connection: Connection, caller: Principal, model: str, method: str
) -> list[float]:
    """Seconds of training for each unit drawn, in earlier fits of the model by the same method."""
    query = (
        select(fit_speeds.c.seconds_per_unit)
        .join(jobs, jobs.c.id == fit_speeds.c.job_id)
        .where(fit_speeds.c.base_model == model, fit_speeds.c.method == method)
        .where(watches_job(caller))
        .order_by(fit_speeds.c.created_at_ms.desc())
        .limit(_LATEST)
    )
    return list(connection.scalars(query))


def _training_s(connection: Connection, job_id: str) -> float | None:
    """Seconds from the beginning of training to the job's end; None where a worker was lost."""
    query = select(job_events.c.data, job_events.c.visible_at_ms).where(
        job_events.c.job_id == job_id, is_milestone()
    )
    began, over_ms = list[int](), 0
    for row in connection.execute(query.order_by(job_events.c.sequence)):
        event = JOB_EVENT.validate_json(row.data)
        if isinstance(event, StageEvent) and event.stage is Stage.TRAINING:
            began.append(row.visible_at_ms)
        if isinstance(event, StateEvent) and event.state is JobState.SUCCEEDED:
            over_ms = row.visible_at_ms
    return (over_ms - began[0]) / 1000 if len(began) == 1 and over_ms > began[0] else None

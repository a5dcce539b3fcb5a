"""Estimated duration of a fit: from earlier fits of the same base, or roughly from its size.

Only fits that the asker may know of count, and only what their events have said at public ticks:
when training began, and when the job was over.
"""

from __future__ import annotations

import json
import os
import statistics

from sqlalchemy import Connection, select

from taciturn.planning.plan import TOKENS_PER_UNIT, Speed, TrainingPlan
from taciturn.server.identity.principal import Principal
from taciturn.server.jobs.views import visible_jobs
from taciturn.server.schema.tables import job_events, jobs
from taciturn.wire.events import JOB_EVENT, Stage, StageEvent, StateEvent
from taciturn.wire.jobs import Duration, JobKind, JobState

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


def _seconds_per_unit(
    connection: Connection, caller: Principal, model: str, method: str
) -> list[float]:
    """Seconds of training for each unit drawn, in earlier fits of the model by the same method."""
    fits = (jobs.c.kind == JobKind.FIT) & (jobs.c.state == JobState.SUCCEEDED)
    query = visible_jobs(caller).where(fits).order_by(jobs.c.created_at_ms.desc()).limit(100)
    seconds_per_unit: list[float] = []
    for row in connection.execute(query):
        plan = TrainingPlan.model_validate_json(row.plan)
        same = json.loads(row.request)["model"] == model and plan.adapter.method == method
        if same and (seconds := _training_s(connection, row.id)):
            seconds_per_unit.append(seconds / plan.units_seen)
        if len(seconds_per_unit) == _LATEST:
            break
    return seconds_per_unit


def _training_s(connection: Connection, job_id: str) -> float | None:
    """Seconds from the beginning of training to the job's end; None where a worker was lost."""
    events = select(job_events.c.data, job_events.c.visible_at_ms)
    query = events.where(job_events.c.job_id == job_id).order_by(job_events.c.sequence)
    began, over_ms = list[int](), 0
    for row in connection.execute(query):
        event = JOB_EVENT.validate_json(row.data)
        if isinstance(event, StageEvent) and event.stage is Stage.TRAINING:
            began.append(row.visible_at_ms)
        if isinstance(event, StateEvent) and event.state is JobState.SUCCEEDED:
            over_ms = row.visible_at_ms
    return (over_ms - began[0]) / 1000 if len(began) == 1 and over_ms > began[0] else None

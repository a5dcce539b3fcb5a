"""Reports of jobs to MLflow, by the leader alone: a run for each job, at least once each event.

Events are the outbox: they are written with what happens, and a row of `tracked_runs` says up to
which one a job was reported. It is moved on once the tracker has taken them; whoever is killed in
between sends them again, which changes nothing there, for values bear the events' own times. A job
never waits for any of this. What the tracker does not take is sent again after a rest that grows,
until `notification_days` are over.

Events hold nothing but public values and those that a budget has paid for. Figures of evaluations
and audits are reported where they have a guarantee.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, Row, insert, select, update

from taciturn.reports.figures import Figure, ReleasedEvaluation
from taciturn.reports.privacy import Audit
from taciturn.server.context import Gateway
from taciturn.server.jobs.events import numbered
from taciturn.server.schema.tables import job_events, jobs, tracked_runs, users
from taciturn.server.tracking.mlflow import (
    Metric,
    Mlflow,
    TrackerAwayError,
    TrackerError,
    TrackerMissesError,
)
from taciturn.wire.events import (
    FAILURES,
    CountEvent,
    NumberedEvent,
    PlanEvent,
    ProgressEvent,
    StateEvent,
)
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.values import PolicyLine

log = logging.getLogger("taciturn.server.tracking")

FIRST_REST_MS, LONGEST_REST_MS = 10_000, 3_600_000
_DAY_MS = 86_400_000
_MOST_RUNS, _MOST_EVENTS = 64, 500
_KINDS = [kind.value for kind in (JobKind.FIT, JobKind.EVALUATE, JobKind.AUDIT, JobKind.SYNTHESIZE)]
_STATUS = {
    JobState.RUNNING: "RUNNING",
    JobState.SUCCEEDED: "FINISHED",
    JobState.FAILED: "FAILED",
    JobState.CANCELLED: "KILLED",
}


class Documents(Protocol):
    """Keeps what jobs have released."""

    def document(self, connection: Connection, job_id: str, name: str) -> str | None:
        """Return a released text; None if there is none."""


@dataclass(slots=True)
class RunReporter:
    """Reports jobs to the MLflow server of the settings.

    Attributes:
        leads: says if this process still has the lead.
        connect: opens the server.
    """

    gateway: Gateway
    documents: Documents
    leads: Callable[[], bool] = lambda: True
    connect: Callable[[], Mlflow] | None = None
    _mlflow: Mlflow | None = field(default=None)

    def turn(self) -> None:
        """Take up new jobs, and report what is new of all. One that the tracker does not answer
        ends the turn: the others would wait for it as long."""
        if self.gateway.settings.mlflow_url is None:
            return
        self._take_up()
        while rows := self._jobs_with_news():
            for row in rows:
                if not self.leads() or not self._report(row):
                    return

    def _take_up(self) -> None:
        now_ms = self.gateway.now_ms()
        since_ms = now_ms - round(self.gateway.settings.notification_days * _DAY_MS)
        is_known = select(tracked_runs.c.job_id).where(tracked_runs.c.job_id == jobs.c.id).exists()
        query = select(jobs.c.id).where(
            jobs.c.created_at_ms >= since_ms, jobs.c.kind.in_(_KINDS), ~is_known
        )
        if not self.gateway.rows(query.limit(1)):
            return

        def work(connection: Connection) -> None:
            new = [
                {"job_id": job_id, "sequence": 0, "attempts": 0, "next_at_ms": now_ms}
                for job_id in connection.execute(query.limit(1000)).scalars()
            ]
            if new:
                connection.execute(insert(tracked_runs), new)

        self.gateway.write(work)

    def _jobs_with_news(self) -> Sequence[Row[Any]]:
        """Return jobs of which there are events that everybody may see, and the tracker has not."""
        now_ms = self.gateway.now_ms()
        has_news = (
            select(job_events.c.job_id)
            .where(
                job_events.c.job_id == tracked_runs.c.job_id,
                job_events.c.sequence > tracked_runs.c.sequence,
                job_events.c.visible_at_ms <= now_ms,
            )
            .exists()
        )
        query = (
            select(tracked_runs, jobs, users.c.name.label("requester"))
            .join(jobs, jobs.c.id == tracked_runs.c.job_id)
            .join(users, users.c.id == jobs.c.requester_id)
            .where(
                tracked_runs.c.ended_at_ms.is_(None),
                tracked_runs.c.next_at_ms <= now_ms,
                has_news,
            )
            .order_by(tracked_runs.c.next_at_ms, tracked_runs.c.job_id)
            .limit(_MOST_RUNS)
        )
        return self.gateway.rows(query)

    def _report(self, row: Row[Any]) -> bool:
        """Report what is new of a job; False if the tracker is away."""
        try:
            values = self._send(row)
        except TrackerMissesError as error:
            self._failed(row, error, {"run_id": None})
            return True
        except TrackerError as error:
            self._failed(row, error, {})
            return not isinstance(error, TrackerAwayError)
        except Exception as error:  # one job never keeps the others from being reported
            log.exception("a job could not be reported", extra={"job": row.job_id})
            self._failed(row, TrackerError(type(error).__name__), {})
            return True
        self._keep(row, {"attempts": 0, "failing_since_ms": None, **values})
        return True

    def _send(self, row: Row[Any]) -> dict[str, Any]:
        """Send what is new of a job; returns what has changed of its row."""
        if self._mlflow is None:
            connect = self.connect or (lambda: Mlflow.of(self.gateway.settings))
            self._mlflow = connect()
        mlflow, run_id = self._mlflow, row.run_id
        if run_id is None:
            run_id = mlflow.run_of(row.job_id, _name(row), row.created_at_ms)
            self._keep(row, {"run_id": run_id})
            mlflow.log(run_id, tags=self._tags(row))
        events = self._events(row)
        mlflow.log(run_id, [metric for event in events for metric in _metrics(event)])
        for event in events:
            if isinstance(event.event, PlanEvent):
                mlflow.log(run_id, params=_facts(event.event.plan.model_dump(mode="json")))
        states = [event for event in events if isinstance(event.event, StateEvent)]
        if states:
            self._state(mlflow, run_id, row, states[-1])
        is_over = bool(states) and states[-1].event.state.over  # type: ignore[union-attr]
        end = {"ended_at_ms": self.gateway.now_ms()} if is_over else {}
        return {"run_id": run_id, "sequence": events[-1].sequence, **end}

    def _events(self, row: Row[Any]) -> list[NumberedEvent]:
        query = (
            select(job_events)
            .where(
                job_events.c.job_id == row.job_id,
                job_events.c.sequence > row.sequence,
                job_events.c.visible_at_ms <= self.gateway.now_ms(),
            )
            .order_by(job_events.c.sequence)
            .limit(_MOST_EVENTS)
        )
        return [numbered(event) for event in self.gateway.rows(query)]

    def _state(self, mlflow: Mlflow, run_id: str, row: Row[Any], event: NumberedEvent) -> None:
        state = event.event
        assert isinstance(state, StateEvent)
        tags = {"taciturn.state": state.state.value, "taciturn.policy": _policy(row).text}
        if state.code is not None:
            tags |= {"taciturn.failure": state.code.value, "taciturn.reason": FAILURES[state.code]}
        at_ms = _ms(event)
        if state.state is JobState.SUCCEEDED:
            tags |= self._links(row)
            mlflow.log(run_id, self._released(row, at_ms))
        mlflow.log(run_id, tags=tags)
        status = _STATUS.get(state.state, "SCHEDULED")
        mlflow.update(run_id, status, at_ms if state.state.over else None)

    def _released(self, row: Row[Any], at_ms: int) -> list[Metric]:
        """Figures of an evaluation or an audit; none without a guarantee."""
        if _policy(row).kind != "DP":
            return []
        figures: dict[str, float] = {}
        if row.kind == JobKind.EVALUATE:
            text = self._document(row, "evaluation.json")
            if text is not None:
                figures = dict(_figures(ReleasedEvaluation.model_validate_json(text)))
        elif row.kind == JobKind.AUDIT:
            text = self._document(row, "audit.json")
            if text is not None:
                audit = Audit.model_validate_json(text)
                figures = {"audit/epsilon_lower_bound": audit.epsilon_lower_bound}
        return [
            Metric(name, value, at_ms) for name, value in figures.items() if math.isfinite(value)
        ]

    def _document(self, row: Row[Any], name: str) -> str | None:
        return self.gateway.read(
            lambda connection: self.documents.document(connection, row.job_id, name)
        )

    def _tags(self, row: Row[Any]) -> dict[str, str]:
        request = json.loads(row.request)
        tags = {
            "taciturn.kind": row.kind,
            "taciturn.requester": row.requester,
            "taciturn.namespace": row.namespace,
            "taciturn.dataset": row.dataset,
            "taciturn.public_data": row.public_data,
            "taciturn.base_model": request.get("model"),
            "taciturn.purpose": request.get("purpose"),
            "taciturn.url": f"{self._url}/jobs/{row.job_id}",
            "mlflow.source.name": "taciturn",
            "mlflow.source.type": "JOB",
            "mlflow.user": row.requester,
        }
        return {name: value for name, value in tags.items() if value}

    def _links(self, row: Row[Any]) -> dict[str, str]:
        """Links to what was released, for who may have it."""
        job = f"{self._url}/v1/jobs/{row.job_id}"
        if row.kind != JobKind.FIT or row.model_id is None:
            return {"taciturn.result": f"{job}/result"}
        model = f"{self._url}/v1/models/{row.model_id}"
        return {
            "taciturn.model": f"{self._url}/models/{row.model_id}",
            "taciturn.report": f"{model}/files/privacy_report.json",
            "taciturn.certificate": f"{model}/certificate",
        }

    @property
    def _url(self) -> str:
        settings = self.gateway.settings
        return (settings.public_url or f"http://{settings.host}:{settings.port}").rstrip("/")

    def _failed(self, row: Row[Any], error: TrackerError, values: Mapping[str, Any]) -> None:
        """Let the job rest, or give it up; who runs the gateway reads why."""
        now_ms = self.gateway.now_ms()
        since_ms = row.failing_since_ms or now_ms
        rest_ms = min(FIRST_REST_MS << min(row.attempts, 20), LONGEST_REST_MS)
        next_at_ms = now_ms + round(rest_ms * random.uniform(0.9, 1.1))
        until_ms = since_ms + self.gateway.settings.notification_days * _DAY_MS
        change: dict[str, Any] = {
            **values,
            "attempts": row.attempts + 1,
            "failing_since_ms": since_ms,
            "next_at_ms": next_at_ms,
        }
        if next_at_ms > until_ms:
            change["ended_at_ms"] = now_ms
        text = "given up" if next_at_ms > until_ms else "tried again later"
        log.warning(
            "MLflow has not taken a report", extra={"job": row.job_id, "reason": f"{error}; {text}"}
        )
        self._keep(row, change)

    def _keep(self, row: Row[Any], values: Mapping[str, Any]) -> None:
        change = update(tracked_runs).where(tracked_runs.c.job_id == row.job_id).values(**values)
        self.gateway.write(lambda connection: connection.execute(change))


def _name(row: Row[Any]) -> str:
    name = json.loads(row.request).get("name")
    return str(name or f"{row.kind} {row.dataset or row.model_id or ''}".strip())[:200]


def _policy(row: Row[Any]) -> PolicyLine:
    return PolicyLine.model_validate_json(row.policy)


def _ms(event: NumberedEvent) -> int:
    return round(event.at.timestamp() * 1000)


def _metrics(event: NumberedEvent) -> Iterator[Metric]:
    news, at_ms = event.event, _ms(event)
    if isinstance(news, ProgressEvent):
        yield Metric("progress", news.step / news.steps, at_ms, news.step)
        if news.epsilon is not None:
            yield Metric("epsilon", news.epsilon, at_ms, news.step)
    elif isinstance(news, CountEvent):
        yield Metric("progress", news.done / news.of, at_ms, news.done)


def _facts(plan: Mapping[str, Any]) -> dict[str, object]:
    """Figures of a plan, those of its parts included."""
    parts = (plan, *(part for part in plan.values() if isinstance(part, dict)))
    return {
        name: value
        for part in parts
        for name, value in part.items()
        if isinstance(value, int | float | str)
    }


def _figures(evaluation: ReleasedEvaluation) -> Iterator[tuple[str, float]]:
    """Yield the figures of an evaluation by their names, with the noise that is in them."""
    for who, score in (("base", evaluation.base), ("fitted", evaluation.fitted)):
        if score is not None:
            yield from _figure(f"{who}/nats_per_token", score.nats_per_token)
            yield from _figure(f"{who}/token_accuracy", score.token_accuracy)
            if score.mauve is not None:
                yield f"{who}/mauve", score.mauve
    if evaluation.gain is not None:
        yield from _figure("gain/nats_per_token", evaluation.gain.nats_per_token)
        yield from _figure("gain/token_accuracy", evaluation.gain.token_accuracy)
    if evaluation.ranked is not None:
        yield from _figure("preferred", evaluation.ranked)
    if evaluation.epsilon is not None:
        yield "evaluation/epsilon", evaluation.epsilon


def _figure(name: str, figure: Figure) -> Iterator[tuple[str, float]]:
    yield name, figure.value
    if figure.std:
        yield f"{name}_std", figure.std

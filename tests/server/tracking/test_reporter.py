"""Jobs as runs of an MLflow server: what it is sent, once, and what it never delays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, insert, select

from support.gateway import DP_LINE, GatewayWorld, fit
from support.mlflow_server import TOKEN, MlflowServer, mlflow_server
from taciturn.reports.figures import Figure, Gain, ModelScore, ReleasedEvaluation
from taciturn.server.jobs.events import Events
from taciturn.server.schema.tables import artifacts, jobs, tracked_runs
from taciturn.server.tracking.mlflow import Mlflow
from taciturn.server.tracking.reporter import RunReporter
from taciturn.wire.events import FailureCode, JobEvent, PlanEvent, ProgressEvent, StateEvent
from taciturn.wire.jobs import JobState
from taciturn.wire.values import PolicyLine

NO_LINE = PolicyLine(kind="no guarantee", text="no guarantee (approved by otto, bea)")


@pytest.fixture
def server() -> Iterator[MlflowServer]:
    with mlflow_server() as opened:
        yield opened
        assert opened.wrong == []


class Tracked:
    """A gateway that reports to a server, and short words for what tests do with it."""

    def __init__(self, engine: Engine, folder: Path, server: MlflowServer) -> None:
        self.server = server
        self.world = GatewayWorld.for_jobs(
            engine,
            folder,
            mlflow_url=server.url,
            mlflow_token=SecretStr(TOKEN),
            public_url="https://tac.example",
        )
        self.reporter = self.fresh()

    def fresh(self) -> RunReporter:
        """A reporter as another leader has it."""
        settings = self.world.gateway.settings

        def connect() -> Mlflow:
            mlflow = Mlflow.of(settings)
            mlflow.patience_s = 0.0
            return mlflow

        documents = self.world.services.artifacts
        return RunReporter(self.world.gateway, documents, connect=connect)

    def happen(self, job: str, *events: JobEvent) -> None:
        keeper = Events(self.world.gateway)
        for event in events:
            self.world.gateway.write(lambda c, e=event: keeper.append(c, job, e, None))  # type: ignore[misc]

    def later(self, seconds: float = 10.0) -> None:
        self.world.clock.forward(seconds)
        self.reporter.turn()

    def row(self, job: str) -> Any:
        query = select(tracked_runs).where(tracked_runs.c.job_id == job)
        return self.world.gateway.rows(query)[0]


@pytest.fixture
def tracked(engine: Engine, tmp_path: Path, server: MlflowServer) -> Tracked:
    return Tracked(engine, tmp_path, server)


@pytest.fixture
def light(lite_engine: Engine, tmp_path: Path, server: MlflowServer) -> Tracked:
    return Tracked(lite_engine, tmp_path, server)


def plan_event(tracked: Tracked) -> PlanEvent:
    return PlanEvent(plan=tracked.world.post("plans", fit(steps=20)).json()["plan"])


def test_a_fit_is_a_run_from_its_plan_to_its_links(tracked: Tracked, server: MlflowServer) -> None:
    world = tracked.world
    job = world.submit(fit(steps=20, name="notes", purpose="a trial")).json()["id"]
    tracked.later()
    run = server.run_of(job)
    assert (run.name, run.status) == ("notes", "SCHEDULED")
    assert server.experiments == {"taciturn": "1"}
    assert run.tags["taciturn.url"] == f"https://tac.example/jobs/{job}"
    assert (run.tags["taciturn.dataset"], run.tags["taciturn.purpose"]) == ("phee", "a trial")
    tracked.happen(job, StateEvent(state=JobState.RUNNING), plan_event(tracked))
    tracked.happen(job, ProgressEvent(step=10, steps=20, epsilon=0.5))
    tracked.later()
    tracked.happen(job, ProgressEvent(step=20, steps=20, epsilon=1.0))
    tracked.later()
    assert run.status == "RUNNING"
    assert run.values("epsilon") == [(10, 0.5), (20, 1.0)]
    assert run.values("progress") == [(10, 0.5), (20, 1.0)]
    assert (run.params["steps"], run.params["l2_clip_norm"]) != ("", "")
    model = world.add_model(job)
    change = jobs.update().where(jobs.c.id == job).values(model_id=model, state="succeeded")
    world.gateway.write(lambda connection: connection.execute(change))
    tracked.happen(job, StateEvent(state=JobState.SUCCEEDED))
    tracked.later()
    assert run.status == "FINISHED"
    assert run.end_ms is not None
    assert run.end_ms % 5000 == 0  # the public clock's
    assert run.tags["taciturn.model"] == f"https://tac.example/models/{model}"
    assert run.tags["taciturn.certificate"].endswith(f"/v1/models/{model}/certificate")
    calls = len(server.calls)
    tracked.later()
    assert len(server.calls) == calls
    assert tracked.row(job).ended_at_ms is not None


def test_nothing_is_told_before_everybody_may_see_it(light: Tracked, server: MlflowServer) -> None:
    job = light.world.submit(fit()).json()["id"]
    light.later()
    light.world.clock.forward(0.3)
    light.happen(job, ProgressEvent(step=3, steps=20, epsilon=0.2))
    light.reporter.turn()
    assert server.run_of(job).values("progress") == []
    light.later()
    assert server.run_of(job).values("progress") == [(3, 0.15)]


def test_lost_answers_make_no_second_run_and_no_second_value(
    tracked: Tracked, server: MlflowServer
) -> None:
    job = tracked.world.submit(fit()).json()["id"]
    server.lost = ["runs/create"]
    tracked.later()
    assert tracked.row(job).run_id is None
    tracked.later(20)
    assert tracked.row(job).run_id == "run1"
    tracked.happen(job, ProgressEvent(step=10, steps=20, epsilon=0.5))
    server.lost = ["runs/log-batch", "runs/update"]
    tracked.later()
    tracked.reporter = tracked.fresh()  # another leader
    tracked.later(60)
    assert server.run_of(job).values("epsilon") == [(10, 0.5)]
    assert len(server.runs) == 1
    assert tracked.row(job).attempts == 0


def test_a_tracker_that_is_down_keeps_no_job_waiting(
    light: Tracked, server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    job = light.world.submit(fit()).json()["id"]
    server.answers = [503] * 3
    light.later()
    light.world.tick()
    assert light.world.job_state(job) == "provisioning"
    row = light.row(job)
    assert (row.attempts, row.sequence) == (1, 0)
    assert "it answered 503" in str([record.__dict__ for record in caplog.records])
    assert TOKEN not in str([record.__dict__ for record in caplog.records])
    server.answers = []
    light.later(20)
    assert server.run_of(job).tags["taciturn.state"] == "provisioning"
    assert light.row(job).failing_since_ms is None


def test_what_is_never_taken_is_given_up(light: Tracked, server: MlflowServer) -> None:
    job = light.world.submit(fit()).json()["id"]
    server.token = "another"
    for _ in range(12):
        light.later(3600 * 12)
    row = light.row(job)
    assert row.ended_at_ms is not None
    assert row.attempts < 12
    assert server.runs == {}
    calls = len(server.calls)
    light.later(3600)
    assert len(server.calls) == calls


def test_one_that_was_removed_there_is_made_again(light: Tracked, server: MlflowServer) -> None:
    job = light.world.submit(fit()).json()["id"]
    light.later()
    server.runs.clear()
    light.happen(job, StateEvent(state=JobState.RUNNING))
    light.later()
    light.later(60)
    assert server.run_of(job).status == "RUNNING"


def evaluation(tracked: Tracked, policy: PolicyLine) -> str:
    job = tracked.world.add_job("evaluate", "phee", policy=policy)
    score = ModelScore(nats_per_token=Figure(value=2.5, std=0.1), token_accuracy=Figure(value=0.4))
    gain = Gain(nats_per_token=Figure(value=0.5), token_accuracy=Figure(value=float("nan")))
    released = ReleasedEvaluation(
        basis="differential privacy", n_units=100, epsilon=0.5, base=score, fitted=score, gain=gain,
        preferred=0.75, preferred_std=0.0625,
    )  # fmt: skip
    row = {
        "job_id": job,
        "name": "evaluation.json",
        "size_bytes": 1,
        "sha256": "0" * 64,
        "content": released.model_dump_json(),
        "created_at_ms": 0,
    }
    tracked.world.gateway.write(
        lambda connection: connection.execute(insert(artifacts).values(row))
    )
    tracked.happen(job, StateEvent(state=JobState.SUCCEEDED))
    tracked.later()
    return job


def test_released_figures_are_told_where_they_have_a_guarantee(
    light: Tracked, server: MlflowServer
) -> None:
    run = server.run_of(evaluation(light, DP_LINE))
    assert run.values("fitted/nats_per_token") == [(0, 2.5)]
    assert run.values("fitted/nats_per_token_std") == [(0, 0.1)]
    assert run.values("gain/nats_per_token") == [(0, 0.5)]
    assert (run.values("preferred"), run.values("preferred_std")) == ([(0, 0.75)], [(0, 0.0625)])
    assert run.values("gain/token_accuracy") == []  # it is no number
    unpaid = server.run_of(evaluation(light, NO_LINE))
    assert unpaid.metrics == set()
    assert unpaid.status == "FINISHED"


def test_a_failure_is_told_in_its_fixed_words(light: Tracked, server: MlflowServer) -> None:
    job = light.world.submit(fit()).json()["id"]
    light.happen(job, StateEvent(state=JobState.FAILED, code=FailureCode.RESOURCES))
    light.later()
    run = server.run_of(job)
    assert (run.status, run.tags["taciturn.failure"]) == ("FAILED", "resources")
    assert "memory ran out" in run.tags["taciturn.reason"]


def test_texts_and_probes_are_no_runs(light: Tracked, server: MlflowServer) -> None:
    for kind in ("sample", "probe"):
        job = light.world.add_job(kind, "phee")
        light.happen(job, StateEvent(state=JobState.RUNNING))
    light.later()
    assert server.calls == []


def test_a_leader_that_has_lost_the_lead_stops(light: Tracked, server: MlflowServer) -> None:
    light.world.submit(fit())
    light.reporter.leads = lambda: False
    light.later()
    assert server.runs == {}

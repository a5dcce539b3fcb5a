"""A plan's duration is that of earlier fits, by one query however many there are."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, select

from support.gateway import MODEL, GatewayWorld, fit, plan_of
from taciturn.planning.plan import TrainingPlan
from taciturn.server.jobs.durations import duration_of
from taciturn.server.schema.tables import fit_speeds
from taciturn.wire.events import ProgressEvent, Stage, StageEvent
from taciturn.wire.jobs import Duration, JobState

PARAMETERS = 4_737_280


@pytest.fixture
def world(lite: GatewayWorld) -> GatewayWorld:
    return lite.populate()


def finished(world: GatewayWorld, seconds: float, *, workers: int = 1, steps: int = 0) -> str:
    """A fit that trained so long; its events come through the gateway's own services."""
    body = fit()
    job = world.add_job("fit", request=body, plan=plan_of(body))
    states = world.services.dispatcher.states

    def work(*events: Any) -> None:
        def add(connection: Any) -> None:
            for said in events:
                states.events.append(connection, job, said)

        world.gateway.write(add)

    for _ in range(workers):
        work(StageEvent(stage=Stage.TRAINING))
    for step in range(1, steps + 1):
        world.clock.forward(5)
        work(ProgressEvent(step=step, steps=steps, epsilon=0.1))
    world.clock.forward(seconds - 5 * steps)
    world.gateway.write(lambda connection: states.move(connection, job, JobState.SUCCEEDED))
    world.clock.forward(10)
    return job


def estimate(world: GatewayWorld, who: str = "paul") -> Duration:
    plan, caller = TrainingPlan(**plan_of(fit())), world.principal(who)
    return world.gateway.read(
        lambda connection: duration_of(connection, caller, MODEL, plan, PARAMETERS)
    )


def test_an_estimate_is_one_query_however_many_fits_there_were(world: GatewayWorld) -> None:
    """A hundred earlier fits were a hundred queries once, at each plan."""
    for _ in range(120):
        world.add_job("fit", state="succeeded", request=fit(), plan=plan_of(fit()))
    finished(world, 600, steps=30)
    caller, plan, statements = world.principal("paul"), TrainingPlan(**plan_of(fit())), []
    engine = world.gateway.engine
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    told = world.gateway.read(
        lambda connection: duration_of(connection, caller, MODEL, plan, PARAMETERS)
    )
    queries = [text for text in statements if text.startswith("SELECT")]
    assert len(queries) == 1
    assert "job_events" not in queries[0]
    assert told.seconds == pytest.approx(600, rel=0.02)


def test_the_median_of_the_newest_ten_counts(world: GatewayWorld) -> None:
    finished(world, 9000)
    for _ in range(10):
        finished(world, 600)
    told = estimate(world)
    assert told.seconds == pytest.approx(600, rel=0.02)
    assert "by 10 earlier fit(s)" in told.basis


def test_fits_of_others_and_those_that_lost_a_worker_do_not_count(world: GatewayWorld) -> None:
    finished(world, 600, workers=2)
    query = select(fit_speeds)
    assert not world.gateway.rows(query)
    assert "guess" in estimate(world).basis
    finished(world, 600)
    assert len(world.gateway.rows(query)) == 1
    assert "guess" in estimate(world, "petra").basis
    assert "1 earlier fit" in estimate(world, "olga").basis
    assert "1 earlier fit" in estimate(world, "ann").basis

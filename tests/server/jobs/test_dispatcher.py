"""Queue to worker and back: lost workers, cancelled jobs, and a gateway that stops anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from support.gateway import NAMESPACE, GatewayWorld, fit
from taciturn.server.jobs.completion import Completion, End
from taciturn.server.jobs.dispatcher import Dispatcher
from taciturn.server.jobs.leases import Leases
from taciturn.server.jobs.states import ALLOWED
from taciturn.server.launchers.base import LaunchError, WorkerState
from taciturn.server.ledger import job_statements, statement, verify
from taciturn.server.schema.tables import jobs, tokens
from taciturn.wire.events import FailureCode
from taciturn.wire.jobs import JobState

SMALL = fit(target_epsilon=0.1)


class Crash(BaseException):
    """The gateway is killed here."""


def taken(world: GatewayWorld) -> float:
    gateway = world.gateway
    return statement(gateway.engine, gateway.seal_key, NAMESPACE).budget.used


def still_open(world: GatewayWorld) -> list[str]:
    gateway = world.gateway
    found = job_statements(gateway.engine, gateway.seal_key, NAMESPACE, only_open=True)
    return [each.job for each in found]


def test_states_lead_to_an_end_and_nowhere_from_there() -> None:
    assert set(ALLOWED) == set(JobState)
    for state, following in ALLOWED.items():
        assert bool(following) is not state.over
        assert state not in following


def test_no_more_workers_than_there_is_room_for(world: GatewayWorld) -> None:
    made = []
    for number in range(6):
        made.append(world.submit(SMALL, key=f"many-{number:04}").json()["id"])
        world.clock.forward(1)
    world.tick()
    world.tick()
    assert len(world.launcher.orders) == 4
    for job in made[:2]:
        world.post(f"jobs/{job}/cancel")
    world.tick()
    assert len(world.launcher.orders) == 6


def test_a_worker_is_told_what_it_needs_and_no_more(world: GatewayWorld) -> None:
    job = world.submit(SMALL).json()["id"]
    world.tick()
    (order,) = world.launcher.orders
    assert set(order.environment) == {
        "TACITURN_GATEWAY_URL",
        "TACITURN_JOB",
        "TACITURN_JOB_TOKEN",
    }
    assert order.environment["TACITURN_JOB"] == job
    assert "tac_" not in repr(order)


def test_a_lost_worker_is_replaced_and_then_given_up(world: GatewayWorld) -> None:
    job = world.running(SMALL).job
    for attempt in (1, 2, 3):
        assert [order.attempt for order in world.launcher.orders][-1] == attempt
        world.launcher.ended.add(f"{job}-{attempt}")
        world.tick()
        if attempt < 3:
            assert world.worker(job).take(f"operation-{attempt}").status_code == 200
    seen = world.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "lost")
    for words in ("memory", "stays spent", "free again", "try again", "(3 tried)"):
        assert words in seen["failure"]["text"]
    assert still_open(world) == []
    assert taken(world) == 0


def test_a_worker_that_never_comes_is_replaced(world: GatewayWorld) -> None:
    job = world.submit(SMALL).json()["id"]
    world.tick()
    world.clock.forward(901)
    world.tick()
    assert world.launcher.stopped == [(f"{job}-1", 0)]
    assert [order.attempt for order in world.launcher.orders] == [1, 2]


def test_a_silent_worker_is_spared_for_a_while(world: GatewayWorld) -> None:
    worker = world.running(SMALL)
    world.clock.forward(60)
    world.tick()
    assert worker.charge(0, 5).status_code == 204
    assert worker.say("heartbeat").status_code == 200
    world.clock.forward(31 + 4 * 30)
    world.tick()
    assert worker.charge(5, 5).json()["code"] == "fenced"
    assert world.worker(worker.job).take("operation-2").json()["charged_steps"] == 5


def test_a_silent_worker_is_spared_between_two_looks_as_well(world: GatewayWorld) -> None:
    """The ledger is reaped every second, workers are looked for at ticks of the public clock."""
    worker = world.running(SMALL)
    for second in range(60):
        world.clock.forward(1)
        world.services.dispatcher.tick(looks=second % 5 == 0)
    assert worker.charge(0, 5).status_code == 204


def test_a_running_job_is_cancelled_by_its_worker(world: GatewayWorld) -> None:
    worker = world.running(SMALL)
    worker.charge(0, 5)
    assert world.post(f"jobs/{worker.job}/cancel").json()["state"] == "running"
    assert worker.say("heartbeat").json() == {"cancel": True}
    worker.say("outcome", {"succeeded": False})
    assert world.job_state(worker.job) == "cancelled"
    assert still_open(world) == []


def test_what_a_job_takes_is_always_said(world: GatewayWorld) -> None:
    """To its asker the whole plan while it runs, whatever is charged by now; then what is spent."""
    worker = world.running(SMALL)
    before = world.get(f"jobs/{worker.job}").json()["cost"]
    assert before["epsilon"] is None
    assert before["share_of_budget"] == pytest.approx(taken(world))
    assert before["share_of_budget"] < before["share_of_grant"] < 1
    worker.charge(0, 5)
    assert world.get(f"jobs/{worker.job}").json()["cost"] == before
    world.post(f"jobs/{worker.job}/cancel")
    worker.say("outcome", {"succeeded": False})
    world.clock.forward(10)
    world.tick()
    after = world.get(f"jobs/{worker.job}").json()["cost"]
    assert 0 < after["epsilon"] < 0.1
    assert after["share_of_budget"] == pytest.approx(taken(world))
    assert 0 < after["share_of_grant"] < before["share_of_grant"]
    assert world.get("jobs").json()["items"][0]["cost"] is None


def test_a_running_job_that_does_not_listen_is_fenced_and_stopped(world: GatewayWorld) -> None:
    worker = world.running(SMALL)
    worker.charge(0, 5)
    world.post(f"jobs/{worker.job}/cancel")
    world.tick()
    assert world.job_state(worker.job) == "running"
    world.clock.forward(21)
    world.tick()
    assert world.job_state(worker.job) == "cancelled"
    assert worker.charge(5, 5).status_code == 401
    assert still_open(world) == []
    assert taken(world) > 0
    assert (f"{worker.job}-1", 20.0) in world.launcher.stopped


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_ends_with_its_time(world: GatewayWorld, begun: bool) -> None:
    """One that may still be reading its rows has spent all that it held; one that has charged a
    block is past that."""
    worker = world.running(SMALL)
    if begun:
        worker.charge(0, 5)
    held = taken(world)
    policy = world.get(f"policies/{NAMESPACE}", "olga")
    terms = {name: policy.json()[name] for name in ("budget", "approvers")} | {"job_hours": 2}
    headers = {**world.headers("olga"), "If-Match": policy.headers["ETag"]}
    answer = world.client.put(f"/v1/policies/{NAMESPACE}", json=terms, headers=headers)
    assert answer.status_code == 200, answer.text
    for _ in range(4):
        world.clock.forward(1790)
        worker.say("heartbeat")
        world.tick()
        assert world.job_state(worker.job) == "running"
    world.clock.forward(60)
    worker.say("heartbeat")
    world.tick()
    seen = world.get(f"jobs/{worker.job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "time")
    assert still_open(world) == []
    assert (taken(world) == pytest.approx(held)) != begun
    world.clock.forward(21)
    world.tick()
    assert (f"{worker.job}-1", 20.0) in world.launcher.stopped


def test_a_job_that_no_worker_had_in_its_time_has_spent_nothing(world: GatewayWorld) -> None:
    job = world.submit(SMALL).json()["id"]
    world.tick()
    world.services.dispatcher.ending.end(job, End.failed(FailureCode.TIME))
    assert world.get(f"jobs/{job}").json()["failure"]["code"] == "time"
    assert taken(world) == 0
    assert still_open(world) == []


def test_what_a_worker_could_not_read_in_time_is_spent(world: GatewayWorld) -> None:
    worker = world.running(SMALL)
    held = taken(world)
    worker.say("outcome", {"succeeded": False, "code": "time"})
    world.clock.forward(10)
    world.tick()
    assert world.get(f"jobs/{worker.job}").json()["failure"]["code"] == "time"
    assert taken(world) == pytest.approx(held)
    assert still_open(world) == []


def test_a_look_at_a_new_dataset_does_not_wait_behind_fits(world: GatewayWorld) -> None:
    for number in range(5):
        world.submit(SMALL, key=f"many-{number:04}")
    world.tick()
    assert len(world.launcher.orders) == 4
    new = {"name": "more", "source": "/x.jsonl", "unit": "id", "namespace": NAMESPACE, "units": 9}
    assert world.post("datasets", new, "olga").status_code == 201
    world.tick()
    assert len(world.launcher.orders) == 5
    world.tick()
    assert len(world.launcher.orders) == 5


def test_an_administrator_sees_and_ends_all_jobs_and_nothing_of_their_data(
    world: GatewayWorld,
) -> None:
    worker = world.running(SMALL)
    waiting = world.submit(SMALL, key="another-1").json()["id"]
    listed = world.get("operations/jobs", "adam").json()["items"]
    assert {each["id"] for each in listed} == {waiting, worker.job}
    assert set(listed[0]) == {
        *("id", "kind", "state", "requester", "attempt"),
        *("created_at", "started_at", "updated_at"),
    }
    assert NAMESPACE not in str(listed)
    for job in (waiting, worker.job):
        assert world.post(f"operations/jobs/{job}/cancel", who="adam").status_code == 200
    assert world.job_state(waiting) == "cancelled"
    assert worker.say("heartbeat").json() == {"cancel": True}
    assert world.post("operations/jobs/job_none/cancel", who="adam").status_code == 404
    assert world.get("jobs", "adam").status_code == 403


def test_what_cannot_be_started_fails_and_costs_nothing(world: GatewayWorld) -> None:
    world.launcher.refuses = LaunchError("no processes left")
    job = world.submit(SMALL).json()["id"]
    world.tick()
    seen = world.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "launch")
    assert taken(world) == 0


def test_what_a_finished_job_leaves_is_removed(world: GatewayWorld) -> None:
    worker = world.running(SMALL)
    worker.say("outcome", {"succeeded": False})
    world.tick()
    assert world.launcher.forgotten == [worker.job]
    with world.gateway.engine.connect() as connection:
        mine = select(tokens).where(tokens.c.job_id == worker.job)
        assert all(row.revoked_at_ms for row in connection.execute(mine))


def test_a_job_that_nobody_ran_in_time_expires(world: GatewayWorld) -> None:
    world.launcher.refuses = RuntimeError("nothing answers")
    job = world.submit(SMALL).json()["id"]
    world.tick()
    world.clock.forward(86_401)
    world.tick()
    assert world.get(f"jobs/{job}").json()["failure"]["code"] == "lost"
    assert still_open(world) == []


def test_a_job_that_no_worker_came_for_has_lost_none(world: GatewayWorld) -> None:
    job = world.submit(SMALL).json()["id"]
    world.clock.forward(86_401)
    world.tick()
    failure = world.get(f"jobs/{job}").json()["failure"]
    assert (failure["code"], "no worker came" in failure["text"]) == ("expired", True)
    assert still_open(world) == []


def crashed(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, step: Any
) -> None:
    """The gateway dies when it comes to this place, and another one starts later."""

    def die(*arguments: Any, **options: Any) -> Any:
        raise Crash

    with monkeypatch.context() as planted:
        planted.setattr(where, name, die)
        with pytest.raises(Crash):
            step()
    world.clock.forward(15)
    world.restart()
    world.tick()


def submit_by_service(world: GatewayWorld) -> Any:
    """As a request would, but so that a crash is seen."""
    from taciturn.server.identity.principal import Principal
    from taciturn.wire.jobs import RemoteFit

    caller = world.services.directory.authenticate(world.tokens["paul"])
    assert isinstance(caller, Principal)
    return lambda: world.services.jobs.submit(caller, RemoteFit(**SMALL), "crashed-key")


@pytest.mark.parametrize("place", ["reserve", "queue"])
def test_a_crash_while_a_job_is_asked_for(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    where = type(world.gateway.ledger) if place == "reserve" else type(world.services.jobs)
    name = "reserve" if place == "reserve" else "_queue"
    crashed(world, monkeypatch, where, name, submit_by_service(world))
    (job,) = [item["id"] for item in world.get("jobs").json()["items"]]
    assert world.job_state(job) == "provisioning"
    assert still_open(world) == [job]
    again = world.submit(SMALL, key="crashed-key")
    assert again.json()["id"] == job


def test_a_crash_before_a_worker_is_started(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.submit(SMALL).json()["id"]
    crashed(world, monkeypatch, Dispatcher, "_launch", world.tick)
    assert [order.handle for order in world.launcher.orders] == [f"{job}-1"]
    assert world.worker(job).take().status_code == 200


def test_a_crash_after_a_worker_was_started(world: GatewayWorld) -> None:
    job = world.submit(SMALL).json()["id"]
    world.tick()
    for _ in range(3):
        world.restart()
        world.tick()
    assert [order.handle for order in world.launcher.orders] == [f"{job}-1"]
    assert world.worker(job).take().status_code == 200


@pytest.mark.parametrize("place", ["close", "_finish"])
def test_a_crash_while_a_job_ends(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    job = world.submit(SMALL).json()["id"]
    world.launcher.refuses = LaunchError("none")
    crashed(world, monkeypatch, Completion, place, world.tick)
    assert world.job_state(job) == "failed"
    assert still_open(world) == []


def test_a_gateway_away_for_long_finds_its_workers_again(world: GatewayWorld) -> None:
    worker = world.running(SMALL)
    worker.charge(0, 5)
    world.clock.forward(3600)
    world.restart()
    world.tick()
    assert worker.say("heartbeat").status_code == 200
    assert worker.charge(5, 5).status_code == 204
    assert len(world.launcher.orders) == 1


def test_a_reservation_without_a_job_is_released(world: GatewayWorld) -> None:
    job = world.submit(SMALL).json()["id"]
    over = update(jobs).where(jobs.c.id == job).values(state="cancelled")
    world.gateway.write(lambda connection: connection.execute(over))
    assert still_open(world) == [job]
    world.tick()
    assert still_open(world) == []
    assert not verify(world.gateway.engine, key=world.gateway.seal_key).problems


def test_a_crash_while_a_worker_is_replaced(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = world.running(SMALL)
    worker.charge(0, 5)
    world.launcher.ended.add(f"{worker.job}-1")
    crashed(world, monkeypatch, Leases, "hold", world.tick)
    world.clock.forward(60)
    world.tick()
    assert world.worker(worker.job).take("operation-2").json()["charged_steps"] == 5


def test_who_has_just_said_how_it_ended_is_not_replaced(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker says so after its row was read, and before it is seen that it is gone."""
    worker = world.running(SMALL)
    status = world.launcher.status

    def ends(handle: str) -> WorkerState:
        if handle not in world.launcher.ended:
            world.launcher.ended.add(handle)
            assert worker.say("outcome", {"succeeded": False, "code": "storage"}).is_success
        return status(handle)

    monkeypatch.setattr(world.launcher, "status", ends)
    world.services.dispatcher.tick()
    assert world.get(f"jobs/{worker.job}").json()["failure"]["code"] == "storage"
    assert len(world.launcher.orders) == 1

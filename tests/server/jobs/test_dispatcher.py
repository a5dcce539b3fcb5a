"""Queue to worker and back: lost workers, cancelled jobs, and a gateway that stops anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from gateways.world import NAMESPACE, fit
from taciturn.server.jobs.completion import Completion, End
from taciturn.server.jobs.dispatcher import Dispatcher
from taciturn.server.jobs.leases import Leases
from taciturn.server.jobs.states import ALLOWED
from taciturn.server.launchers.base import LaunchError, WorkerState
from taciturn.server.ledger import job_statements, statement, verify
from taciturn.server.schema.tables import jobs, tokens
from taciturn.wire.events import FailureCode
from taciturn.wire.jobs import JobState
from ward import Ward

SMALL = fit(target_epsilon=0.1)


class Crash(BaseException):
    """The gateway is killed here."""


def taken(ward: Ward) -> float:
    gateway = ward.gateway
    return statement(gateway.engine, gateway.seal_key, NAMESPACE).budget.used


def still_open(ward: Ward) -> list[str]:
    gateway = ward.gateway
    found = job_statements(gateway.engine, gateway.seal_key, NAMESPACE, only_open=True)
    return [each.job for each in found]


def test_states_lead_to_an_end_and_nowhere_from_there() -> None:
    assert set(ALLOWED) == set(JobState)
    for state, following in ALLOWED.items():
        assert bool(following) is not state.over
        assert state not in following


def test_no_more_workers_than_there_is_room_for(ward: Ward) -> None:
    made = []
    for number in range(6):
        made.append(ward.ask(SMALL, key=f"many-{number:04}").json()["id"])
        ward.watch.forward(1)
    ward.tick()
    ward.tick()
    assert len(ward.launcher.orders) == 4
    for job in made[:2]:
        ward.post(f"jobs/{job}/cancel")
    ward.tick()
    assert len(ward.launcher.orders) == 6


def test_a_worker_is_told_what_it_needs_and_no_more(ward: Ward) -> None:
    job = ward.ask(SMALL).json()["id"]
    ward.tick()
    (order,) = ward.launcher.orders
    assert set(order.environment) == {
        "TACITURN_GATEWAY_URL",
        "TACITURN_JOB",
        "TACITURN_JOB_TOKEN",
    }
    assert order.environment["TACITURN_JOB"] == job
    assert "tac_" not in repr(order)


def test_a_lost_worker_is_replaced_and_then_given_up(ward: Ward) -> None:
    job = ward.running(SMALL).job
    for attempt in (1, 2, 3):
        assert [order.attempt for order in ward.launcher.orders][-1] == attempt
        ward.launcher.ended.add(f"{job}-{attempt}")
        ward.tick()
        if attempt < 3:
            assert ward.hand(job).take(f"operation-{attempt}").status_code == 200
    seen = ward.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "lost")
    for words in ("memory", "stays spent", "free again", "try again", "(3 tried)"):
        assert words in seen["failure"]["text"]
    assert still_open(ward) == []
    assert taken(ward) == 0


def test_a_worker_that_never_comes_is_replaced(ward: Ward) -> None:
    job = ward.ask(SMALL).json()["id"]
    ward.tick()
    ward.watch.forward(901)
    ward.tick()
    assert ward.launcher.stopped == [(f"{job}-1", 0)]
    assert [order.attempt for order in ward.launcher.orders] == [1, 2]


def test_a_silent_worker_is_spared_for_a_while(ward: Ward) -> None:
    hand = ward.running(SMALL)
    ward.watch.forward(60)
    ward.tick()
    assert hand.charge(0, 5).status_code == 204
    assert hand.say("heartbeat").status_code == 200
    ward.watch.forward(31 + 4 * 30)
    ward.tick()
    assert hand.charge(5, 5).json()["code"] == "fenced"
    assert ward.hand(hand.job).take("operation-2").json()["charged_steps"] == 5


def test_a_silent_worker_is_spared_between_two_looks_as_well(ward: Ward) -> None:
    """The ledger is reaped every second, workers are looked for at ticks of the public clock."""
    hand = ward.running(SMALL)
    for second in range(60):
        ward.watch.forward(1)
        ward.services.dispatcher.tick(looks=second % 5 == 0)
    assert hand.charge(0, 5).status_code == 204


def test_a_running_job_is_cancelled_by_its_worker(ward: Ward) -> None:
    hand = ward.running(SMALL)
    hand.charge(0, 5)
    assert ward.post(f"jobs/{hand.job}/cancel").json()["state"] == "running"
    assert hand.say("heartbeat").json() == {"cancel": True}
    hand.say("outcome", {"succeeded": False})
    assert ward.state(hand.job) == "cancelled"
    assert still_open(ward) == []


def test_what_a_job_takes_is_always_said(ward: Ward) -> None:
    """To its asker the whole plan while it runs, whatever is charged by now; then what is spent."""
    hand = ward.running(SMALL)
    before = ward.get(f"jobs/{hand.job}").json()["cost"]
    assert before["epsilon"] is None
    assert before["share_of_budget"] == pytest.approx(taken(ward))
    assert before["share_of_budget"] < before["share_of_grant"] < 1
    hand.charge(0, 5)
    assert ward.get(f"jobs/{hand.job}").json()["cost"] == before
    ward.post(f"jobs/{hand.job}/cancel")
    hand.say("outcome", {"succeeded": False})
    ward.watch.forward(10)
    ward.tick()
    after = ward.get(f"jobs/{hand.job}").json()["cost"]
    assert 0 < after["epsilon"] < 0.1
    assert after["share_of_budget"] == pytest.approx(taken(ward))
    assert 0 < after["share_of_grant"] < before["share_of_grant"]
    assert ward.get("jobs").json()["items"][0]["cost"] is None


def test_a_running_job_that_does_not_listen_is_fenced_and_stopped(ward: Ward) -> None:
    hand = ward.running(SMALL)
    hand.charge(0, 5)
    ward.post(f"jobs/{hand.job}/cancel")
    ward.tick()
    assert ward.state(hand.job) == "running"
    ward.watch.forward(21)
    ward.tick()
    assert ward.state(hand.job) == "cancelled"
    assert hand.charge(5, 5).status_code == 401
    assert still_open(ward) == []
    assert taken(ward) > 0
    assert (f"{hand.job}-1", 20.0) in ward.launcher.stopped


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_ends_with_its_time(ward: Ward, begun: bool) -> None:
    """One that may still be reading its rows has spent all that it held; one that has charged a
    block is past that."""
    hand = ward.running(SMALL)
    if begun:
        hand.charge(0, 5)
    held = taken(ward)
    policy = ward.get(f"policies/{NAMESPACE}", "olga")
    terms = {name: policy.json()[name] for name in ("budget", "approvers")} | {"job_hours": 2}
    headers = {**ward.world.as_("olga"), "If-Match": policy.headers["ETag"]}
    answer = ward.client.put(f"/v1/policies/{NAMESPACE}", json=terms, headers=headers)
    assert answer.status_code == 200, answer.text
    for _ in range(4):
        ward.watch.forward(1790)
        hand.say("heartbeat")
        ward.tick()
        assert ward.state(hand.job) == "running"
    ward.watch.forward(60)
    hand.say("heartbeat")
    ward.tick()
    seen = ward.get(f"jobs/{hand.job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "time")
    assert still_open(ward) == []
    assert (taken(ward) == pytest.approx(held)) != begun
    ward.watch.forward(21)
    ward.tick()
    assert (f"{hand.job}-1", 20.0) in ward.launcher.stopped


def test_a_job_that_no_worker_had_in_its_time_has_spent_nothing(ward: Ward) -> None:
    job = ward.ask(SMALL).json()["id"]
    ward.tick()
    ward.services.dispatcher.ending.end(job, End.failed(FailureCode.TIME))
    assert ward.get(f"jobs/{job}").json()["failure"]["code"] == "time"
    assert taken(ward) == 0
    assert still_open(ward) == []


def test_what_a_worker_could_not_read_in_time_is_spent(ward: Ward) -> None:
    hand = ward.running(SMALL)
    held = taken(ward)
    hand.say("outcome", {"succeeded": False, "code": "time"})
    ward.watch.forward(10)
    ward.tick()
    assert ward.get(f"jobs/{hand.job}").json()["failure"]["code"] == "time"
    assert taken(ward) == pytest.approx(held)
    assert still_open(ward) == []


def test_a_look_at_a_new_dataset_does_not_wait_behind_fits(ward: Ward) -> None:
    for number in range(5):
        ward.ask(SMALL, key=f"many-{number:04}")
    ward.tick()
    assert len(ward.launcher.orders) == 4
    new = {"name": "more", "source": "/x.jsonl", "unit": "id", "namespace": NAMESPACE, "units": 9}
    assert ward.post("datasets", new, "olga").status_code == 201
    ward.tick()
    assert len(ward.launcher.orders) == 5
    ward.tick()
    assert len(ward.launcher.orders) == 5


def test_an_administrator_sees_and_ends_all_jobs_and_nothing_of_their_data(ward: Ward) -> None:
    hand = ward.running(SMALL)
    waiting = ward.ask(SMALL, key="another-1").json()["id"]
    listed = ward.get("operations/jobs", "adam").json()["items"]
    assert {each["id"] for each in listed} == {waiting, hand.job}
    assert set(listed[0]) == {
        *("id", "kind", "state", "requester", "attempt"),
        *("created_at", "started_at", "updated_at"),
    }
    assert NAMESPACE not in str(listed)
    for job in (waiting, hand.job):
        assert ward.post(f"operations/jobs/{job}/cancel", who="adam").status_code == 200
    assert ward.state(waiting) == "cancelled"
    assert hand.say("heartbeat").json() == {"cancel": True}
    assert ward.post("operations/jobs/job_none/cancel", who="adam").status_code == 404
    assert ward.get("jobs", "adam").status_code == 403


def test_what_cannot_be_started_fails_and_costs_nothing(ward: Ward) -> None:
    ward.launcher.refuses = LaunchError("no processes left")
    job = ward.ask(SMALL).json()["id"]
    ward.tick()
    seen = ward.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "launch")
    assert taken(ward) == 0


def test_what_a_finished_job_leaves_is_removed(ward: Ward) -> None:
    hand = ward.running(SMALL)
    hand.say("outcome", {"succeeded": False})
    ward.tick()
    assert ward.launcher.forgotten == [hand.job]
    with ward.gateway.engine.connect() as connection:
        mine = select(tokens).where(tokens.c.job_id == hand.job)
        assert all(row.revoked_at_ms for row in connection.execute(mine))


def test_a_job_that_nobody_ran_in_time_expires(ward: Ward) -> None:
    ward.launcher.refuses = RuntimeError("nothing answers")
    job = ward.ask(SMALL).json()["id"]
    ward.tick()
    ward.watch.forward(86_401)
    ward.tick()
    assert ward.get(f"jobs/{job}").json()["failure"]["code"] == "lost"
    assert still_open(ward) == []


def test_a_job_that_no_worker_came_for_has_lost_none(ward: Ward) -> None:
    job = ward.ask(SMALL).json()["id"]
    ward.watch.forward(86_401)
    ward.tick()
    failure = ward.get(f"jobs/{job}").json()["failure"]
    assert (failure["code"], "no worker came" in failure["text"]) == ("expired", True)
    assert still_open(ward) == []


def crashed(ward: Ward, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, step: Any) -> None:
    """The gateway dies when it comes to this place, and another one starts later."""

    def die(*arguments: Any, **options: Any) -> Any:
        raise Crash

    with monkeypatch.context() as planted:
        planted.setattr(where, name, die)
        with pytest.raises(Crash):
            step()
    ward.watch.forward(15)
    ward.restarted()
    ward.tick()


def submit_by_service(ward: Ward) -> Any:
    """As a request would, but so that a crash is seen."""
    from taciturn.server.identity.principal import Principal
    from taciturn.wire.jobs import RemoteFit

    caller = ward.services.directory.authenticate(ward.world.tokens["paul"])
    assert isinstance(caller, Principal)
    return lambda: ward.services.jobs.submit(caller, RemoteFit(**SMALL), "crashed-key")


@pytest.mark.parametrize("place", ["reserve", "queue"])
def test_a_crash_while_a_job_is_asked_for(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    where = type(ward.gateway.ledger) if place == "reserve" else type(ward.services.jobs)
    name = "reserve" if place == "reserve" else "_queue"
    crashed(ward, monkeypatch, where, name, submit_by_service(ward))
    (job,) = [item["id"] for item in ward.get("jobs").json()["items"]]
    assert ward.state(job) == "provisioning"
    assert still_open(ward) == [job]
    again = ward.ask(SMALL, key="crashed-key")
    assert again.json()["id"] == job


def test_a_crash_before_a_worker_is_started(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ward.ask(SMALL).json()["id"]
    crashed(ward, monkeypatch, Dispatcher, "_launch", ward.tick)
    assert [order.handle for order in ward.launcher.orders] == [f"{job}-1"]
    assert ward.hand(job).take().status_code == 200


def test_a_crash_after_a_worker_was_started(ward: Ward) -> None:
    job = ward.ask(SMALL).json()["id"]
    ward.tick()
    for _ in range(3):
        ward.restarted()
        ward.tick()
    assert [order.handle for order in ward.launcher.orders] == [f"{job}-1"]
    assert ward.hand(job).take().status_code == 200


@pytest.mark.parametrize("place", ["close", "_finish"])
def test_a_crash_while_a_job_ends(ward: Ward, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    job = ward.ask(SMALL).json()["id"]
    ward.launcher.refuses = LaunchError("none")
    crashed(ward, monkeypatch, Completion, place, ward.tick)
    assert ward.state(job) == "failed"
    assert still_open(ward) == []


def test_a_gateway_away_for_long_finds_its_workers_again(ward: Ward) -> None:
    hand = ward.running(SMALL)
    hand.charge(0, 5)
    ward.watch.forward(3600)
    ward.restarted()
    ward.tick()
    assert hand.say("heartbeat").status_code == 200
    assert hand.charge(5, 5).status_code == 204
    assert len(ward.launcher.orders) == 1


def test_a_reservation_without_a_job_is_released(ward: Ward) -> None:
    job = ward.ask(SMALL).json()["id"]
    over = update(jobs).where(jobs.c.id == job).values(state="cancelled")
    ward.gateway.write(lambda connection: connection.execute(over))
    assert still_open(ward) == [job]
    ward.tick()
    assert still_open(ward) == []
    assert not verify(ward.gateway.engine, key=ward.gateway.seal_key).problems


def test_a_crash_while_a_worker_is_replaced(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    hand = ward.running(SMALL)
    hand.charge(0, 5)
    ward.launcher.ended.add(f"{hand.job}-1")
    crashed(ward, monkeypatch, Leases, "hold", ward.tick)
    ward.watch.forward(60)
    ward.tick()
    assert ward.hand(hand.job).take("operation-2").json()["charged_steps"] == 5


def test_who_has_just_said_how_it_ended_is_not_replaced(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker says so after its row was read, and before it is seen that it is gone."""
    hand = ward.running(SMALL)
    status = ward.launcher.status

    def ends(handle: str) -> WorkerState:
        if handle not in ward.launcher.ended:
            ward.launcher.ended.add(handle)
            assert hand.say("outcome", {"succeeded": False, "code": "storage"}).is_success
        return status(handle)

    monkeypatch.setattr(ward.launcher, "status", ends)
    ward.services.dispatcher.tick()
    assert ward.get(f"jobs/{hand.job}").json()["failure"]["code"] == "storage"
    assert len(ward.launcher.orders) == 1

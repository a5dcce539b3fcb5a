"""What workers say: taken from the one that holds the job, charged before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from support.gateway import NAMESPACE, UNITS, GatewayWorld, fit
from support.launcher import FakeWorker
from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.reports.privacy import PrivacyReport
from taciturn.server.jobs.completion import NothingReleased
from taciturn.server.ledger import job_report, job_statements, statement, verify
from taciturn.server.schema.tables import datasets
from taciturn.wire.worker import MOST_ASKED


def shares(world: GatewayWorld) -> tuple[float, float]:
    found = statement(world.gateway.engine, world.gateway.seal_key, NAMESPACE).budget
    return found.charged, found.used


def report_of(world: GatewayWorld, job: str, **changes: Any) -> bytes:
    """What an honest worker would say of a fit."""
    plan = world.get(f"jobs/{job}", "olga").json()["plan"]
    event = dpsgd_event(
        sampling_probability=plan["batch_size"] / plan["n_units"],
        noise_multiplier=plan["privacy"]["noise_multiplier"],
        steps=plan["steps"],
    )
    fields = {
        "guarantee": "differential privacy",
        "epsilon": epsilon(event, plan["privacy"]["delta"]),
        "delta": plan["privacy"]["delta"],
        "privacy_unit": "patient_id",
        "n_units": UNITS,
        "mechanism": "DP-SGD",
        "steps": plan["steps"],
        "expected_batch_size": plan["batch_size"],
        "dp_event": event_to_dict(event),
        "base_model": "taciturn/tiny-medical",
        "trainable_parameters": 1,
        "taciturn_version": "0",
        **changes,
    }
    return PrivacyReport(**fields).model_dump_json().encode()


class Files(NothingReleased):
    """What a worker has handed in."""

    __slots__ = ("discarded", "report")

    def __init__(self, report: bytes | None) -> None:
        object.__setattr__(self, "report", report)
        object.__setattr__(self, "discarded", [])

    def read(self, job_id: str, name: str) -> bytes | None:
        return self.report  # type: ignore[attr-defined, no-any-return]

    def discard(self, job_id: str) -> None:
        self.discarded.append(job_id)  # type: ignore[attr-defined]


def hand_in(world: GatewayWorld, report: bytes | None) -> Files:
    files = Files(report)
    object.__setattr__(world.services.jobs.ending, "released", files)
    return files


@pytest.mark.parametrize(
    ("header", "stated", "names"),
    [
        (True, None, None),
        (True, ["a"], None),
        (False, None, ["id", "patient_id", "context"]),
        (False, ["a"], ["a"]),
    ],
)
def test_a_worker_is_told_that_there_is_no_header_line(
    world: GatewayWorld, header: bool, stated: list[str] | None, names: list[str] | None
) -> None:
    """By the names that the owner has stated, or has seen when the data were first read."""
    text = None if stated is None else json.dumps([{"name": name} for name in stated])
    change = update(datasets).values(header=header, stated=text)
    world.gateway.write(lambda connection: connection.execute(change))
    assert world.running(fit()).take().json()["source"]["names"] == names


def test_a_fit_from_lease_to_outcome(world: GatewayWorld) -> None:
    worker = world.running(fit())
    job = worker.job
    taken = worker.take().json()
    assert taken["lease"] == worker.lease
    assert taken["plan"] == world.get(f"jobs/{job}").json()["plan"]
    assert taken["source"]["units"] == UNITS
    assert taken["base_model"]["parameters"] == 4_737_280
    assert taken["request"]["text_field"] == "context"
    assert taken["charged_steps"] == 0
    assert world.job_state(job) == "running"
    assert worker.say("heartbeat").json() == {"cancel": False}
    for first in (0, 10):
        assert worker.charge(first, 10).status_code == 204
    assert worker.charge(10, 10).status_code == 204  # repeated: one charge
    charged, held = shares(world)
    assert charged == pytest.approx(held)
    hand_in(world, report_of(world, job))
    assert worker.say("outcome", {"succeeded": True}).status_code == 204
    assert world.job_state(job) == "succeeded"
    assert worker.say("outcome", {"succeeded": True}).status_code == 401
    assert shares(world) == pytest.approx((charged, charged))
    found = job_report(world.gateway.engine, world.gateway.seal_key, job)
    assert found.epsilon == pytest.approx(1.0, rel=2e-3)
    assert not verify(world.gateway.engine, key=world.gateway.seal_key).problems


def test_rows_under_another_budget_are_refused_and_what_was_held_is_free(
    world: GatewayWorld,
) -> None:
    """The other dataset's owner and the asker hear that it is so, and of no other dataset."""
    world.open_namespace("others", "other")
    marks = {"first": True, "places": ["a" * 32], "contents": ["b" * 32]}
    first = world.running(fit())
    assert first.say("source", marks).status_code == 204
    assert first.say("source", marks).status_code == 204  # repeated, or by another worker
    worker = world.running(fit(data={"dataset": "other"}), "key-00002", "olga")
    answer = worker.say("source", {**marks, "places": ["c" * 32]})
    assert (answer.status_code, answer.json()["code"]) == (409, "source_taken")
    assert "phee" not in answer.text
    assert NAMESPACE not in answer.text
    worker.say("outcome", {"succeeded": False, "code": "source_refused"})
    world.clock.forward(60)
    world.tick()
    seen = world.get(f"jobs/{worker.job}", "olga").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "source_refused")
    assert "administrator" in seen["failure"]["text"]
    found = statement(world.gateway.engine, world.gateway.seal_key, "others").budget
    assert found.used == found.charged == 0


def test_a_job_without_rows_has_no_source(world: GatewayWorld) -> None:
    worker = world.running(fit())
    stranger = FakeWorker(world.client, worker.job, worker.token, worker.lease + 1)
    marks = {"first": True, "places": ["a" * 32]}
    assert stranger.say("source", marks).json()["code"] == "fenced"
    for wrong in ({}, {"first": True, "places": []}, {"first": True, "places": ["/data/a.csv"]}):
        assert worker.say("source", wrong).status_code == 422


def test_what_never_ran_is_free_again(world: GatewayWorld) -> None:
    worker = world.running(fit())
    worker.charge(0, 5)
    worker.say("outcome", {"succeeded": False, "code": "resources"})
    seen = world.get(f"jobs/{worker.job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "resources")
    charged, taken = shares(world)
    assert 0 < charged == taken


WRONG: dict[str, Any] = {
    "none": None,
    "garbage": b"{}",
    "smaller epsilon": {"epsilon": 0.5},
    "no guarantee": {"guarantee": "none", "dp_event": None},
    "another event": {
        "dp_event": event_to_dict(
            dpsgd_event(sampling_probability=0.01, noise_multiplier=9.0, steps=20)
        )
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_report_that_is_not_what_was_charged_releases_nothing(
    world: GatewayWorld, name: str
) -> None:
    worker = world.running(fit())
    worker.charge(0, 20)
    wrong = WRONG[name]
    report = report_of(world, worker.job, **wrong) if isinstance(wrong, dict) else wrong
    files = hand_in(world, report)
    worker.say("outcome", {"succeeded": True})
    seen = world.get(f"jobs/{worker.job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "guarantee_refused")
    assert files.discarded == [worker.job]  # type: ignore[attr-defined]


def test_a_model_whose_steps_were_not_all_charged_is_not_released(world: GatewayWorld) -> None:
    worker = world.running(fit())
    worker.charge(0, 19)
    hand_in(world, report_of(world, worker.job))
    worker.say("outcome", {"succeeded": True})
    assert world.get(f"jobs/{worker.job}").json()["failure"]["code"] == "guarantee_refused"


def test_steps_outside_of_the_plan_are_refused(world: GatewayWorld) -> None:
    worker = world.running(fit())
    assert worker.charge(15, 6).json()["code"] == "invalid"
    assert shares(world)[0] == 0


def everything(worker: FakeWorker) -> list[Any]:
    return [
        worker.say("heartbeat"),
        worker.charge(0, 5, "block-of-a-stale-one"),
        worker.say("events", {"first": 0, "events": [{"type": "stage", "stage": "training"}]}),
        worker.say("incidents", {"log": "x"}),
        worker.say("over", {"jobs": []}),
        worker.say("outcome", {"succeeded": True}),
        worker.take("operation-9"),
    ]


def test_a_stale_worker_is_fenced_off_in_everything(world: GatewayWorld) -> None:
    stale = world.running(fit())
    stale.charge(0, 5)
    world.launcher.ended.add(f"{stale.job}-1")
    world.tick()
    assert world.job_state(stale.job) == "provisioning"
    before = world.entries()
    answers = everything(stale)
    assert {answer.json()["code"] for answer in answers} == {"fenced"}
    assert {answer.status_code for answer in answers} == {409}
    fresh = world.worker(stale.job)
    assert fresh.take("operation-2").json()["charged_steps"] == 5
    answers = everything(stale)
    assert {answer.json()["code"] for answer in answers} == {"fenced"}
    assert world.entries() == before + 1
    assert fresh.charge(5, 5).status_code == 204


def test_which_jobs_are_over_is_told_to_who_holds_one(world: GatewayWorld) -> None:
    """So that their checkpoints can go: of jobs that may still have a worker, and of those that
    this gateway does not know, nothing is said."""
    lost = world.running(fit(), key="key-00002")
    lost.say("outcome", {"succeeded": False, "code": "resources"})
    queued = world.submit(fit(), key="key-00003").json()["id"]
    worker = world.running(fit())
    unknown = "job_" + "0" * 20
    assert (world.job_state(lost.job), world.job_state(worker.job)) == ("failed", "running")
    asked = {"jobs": [lost.job, worker.job, queued, unknown]}
    assert worker.say("over", asked).json() == {"jobs": [lost.job]}
    assert worker.say("over", {"jobs": [lost.job] * (MOST_ASKED + 1)}).status_code == 422
    assert lost.say("over", asked).status_code in (401, 409)
    stale = FakeWorker(world.client, worker.job, worker.token, worker.lease + 1)
    assert stale.say("over", asked).json()["code"] == "fenced"


def test_while_a_worker_shows_signs_of_life_nobody_takes_its_job(world: GatewayWorld) -> None:
    worker = world.running(fit())
    other = world.worker(worker.job)
    assert other.take("operation-2").json()["code"] == "lease_held"
    world.clock.forward(31)
    assert other.take("operation-2").status_code == 200
    assert worker.charge(0, 5).json()["code"] == "fenced"
    assert other.charge(0, 5).status_code == 204


def test_steps_that_run_again_are_held_and_charged_again(world: GatewayWorld) -> None:
    stale = world.running(fit())
    stale.charge(0, 20)
    world.launcher.ended.add(f"{stale.job}-1")
    world.tick()
    fresh = world.worker(stale.job)
    fresh.take("operation-2")
    before = shares(world)[0]
    assert fresh.charge(15, 5).status_code == 204
    assert fresh.charge(15, 5).status_code == 204
    assert shares(world)[0] == pytest.approx(before * 25 / 20, rel=1e-6)
    hand_in(world, report_of(world, stale.job))
    fresh.say("outcome", {"succeeded": True})
    assert world.job_state(stale.job) == "succeeded"


@pytest.mark.parametrize("steps", [20, 10], ids=["all of them", "all that is left"])
def test_without_room_steps_do_not_run_again(world: GatewayWorld, steps: int) -> None:
    world.set_grant("user:petra", epsilon=2.0)
    fits = world.client.post(
        "/v1/plans", json=fit(target_epsilon=2.0), headers=world.headers("petra")
    ).json()["fitting_epsilon"]
    stale = world.running(fit(target_epsilon=fits), who="petra")
    stale.charge(0, steps)
    world.launcher.ended.add(f"{stale.job}-1")
    world.tick()
    fresh = world.worker(stale.job)
    fresh.take("operation-2")
    before = world.entries()
    assert fresh.charge(0, steps).json()["code"] == "budget_exceeded"
    assert world.entries() == before


def test_a_balance_moves_at_the_first_block_after_a_crash_and_at_no_other(
    world: GatewayWorld,
) -> None:
    """When the last block is charged depends on rows; when a worker comes back does not."""
    stale = world.running(fit())
    stale.charge(0, 5)
    stale.charge(5, 5)
    planned = shown_balance(world)
    world.launcher.ended.add(f"{stale.job}-1")
    world.tick()
    fresh = world.worker(stale.job)
    fresh.take("operation-2")
    assert shown_balance(world) == planned
    assert fresh.charge(5, 5).status_code == 204
    resumed = shown_balance(world)
    assert resumed > planned
    for first in (5, 10, 15):  # the first one again: its answer was lost
        assert fresh.charge(first, 5).status_code == 204
        assert shown_balance(world) == resumed
    hand_in(world, report_of(world, stale.job))
    fresh.say("outcome", {"succeeded": True})
    assert world.job_state(stale.job) == "succeeded"
    assert shown_balance(world) == resumed
    assert shares(world)[0] == pytest.approx(resumed)


def shown_balance(world: GatewayWorld) -> float:
    """What a practitioner sees as gone of the budget."""
    balance: float = world.get(f"budgets/{NAMESPACE}").json()["taken"]
    return balance


def test_a_token_is_for_its_own_job(world: GatewayWorld) -> None:
    worker, other = (
        world.running(fit(target_epsilon=0.1)),
        world.running(fit(target_epsilon=0.1), "key-00002"),
    )
    before = world.entries()
    mixed = FakeWorker(world.client, other.job, worker.token, other.lease)
    assert {answer.json()["code"] for answer in everything(mixed)} == {"forbidden"}
    person = FakeWorker(world.client, worker.job, world.tokens["olga"], worker.lease)
    assert {answer.json()["code"] for answer in everything(person)} == {"forbidden"}
    assert world.get("jobs", "paul").status_code == 200
    headers = {"Authorization": f"Bearer {worker.token}"}
    assert world.client.get("/v1/jobs", headers=headers).json()["code"] == "forbidden"
    assert world.entries() == before


def test_a_job_without_cost_is_fenced_too(world: GatewayWorld) -> None:
    body = fit(target_epsilon="unlimited")
    answer = world.submit(body).json()
    for who in ("otto", "bea"):
        world.post(f"approvals/{answer['approval']}/decisions", {"decision": "approve"}, who)
    world.tick()
    stale = world.worker(answer["id"])
    assert stale.take().json()["plan"]["privacy"] is None
    assert stale.charge(0, 5).status_code == 204
    world.launcher.ended.add(f"{stale.job}-1")
    world.tick()
    assert {answer.json()["code"] for answer in everything(stale)} == {"fenced"}
    fresh = world.worker(stale.job)
    assert fresh.take("operation-2").status_code == 200
    assert fresh.lease > stale.lease
    assert {answer.json()["code"] for answer in everything(stale)} == {"fenced"}
    assert fresh.say("outcome", {"succeeded": True}).status_code == 204
    assert world.job_state(stale.job) == "succeeded"
    assert not job_statements(world.gateway.engine, world.gateway.seal_key, NAMESPACE)


def test_events_are_kept_once_and_others_refused(world: GatewayWorld) -> None:
    worker = world.running(fit())
    batch = {"first": 0, "events": [{"type": "stage", "stage": "training"}]}
    for _ in range(2):
        assert worker.say("events", batch).status_code == 204
    secret = {"first": 1, "events": [{"type": "stage", "stage": "training", "row": "secret"}]}
    refused = worker.say("events", secret)
    assert refused.status_code == 422
    assert "secret" not in refused.text
    state = {"first": 1, "events": [{"type": "state", "state": "succeeded"}]}
    assert worker.say("events", state).status_code == 422
    with world.gateway.engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT data FROM job_events").scalars().all()
    kinds = [json.loads(data)["type"] for data in kept]
    assert kinds.count("stage") == 1


def test_an_incident_is_named_in_the_failure(world: GatewayWorld) -> None:
    worker = world.running(fit())
    incident = worker.say("incidents", {"log": "Traceback ... a row"}).json()["incident"]
    outcome = {"succeeded": False, "code": "data_refused", "incident": incident}
    worker.say("outcome", outcome)
    failure = world.get(f"jobs/{worker.job}").json()["failure"]
    assert failure["incident"] == incident
    assert "row" not in failure["text"]


def shown(world: GatewayWorld, job: str) -> tuple[str, float, list[str], list[str]]:
    """All that a practitioner can see of how far a job is: state, balance, events, list."""
    events = world.get(f"jobs/{job}/events").json()["items"]
    listed = world.get("jobs?state=running").json()["items"]
    return (
        world.get(f"jobs/{job}").json()["state"],
        world.get(f"budgets/{NAMESPACE}").json()["taken"],
        [each["event"]["state"] for each in events if each["event"]["type"] == "state"],
        [each["id"] for each in listed],
    )


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_job_that_reads_rows_ends_at_a_tick(world: GatewayWorld, succeeded: bool) -> None:
    """When its worker is done depends on rows, to the millisecond."""
    worker = world.running(fit())
    worker.charge(0, 20 if succeeded else 10)
    hand_in(world, report_of(world, worker.job))
    world.clock.forward(5)
    before = shown(world, worker.job)
    assert before[0] == "running"
    world.clock.forward(1.234)
    said = {"succeeded": True} if succeeded else {"succeeded": False, "code": "resources"}
    assert worker.say("outcome", said).status_code == 204
    assert worker.say("outcome", said).status_code == 204
    for _ in range(3):
        world.launcher.ended.add(f"{worker.job}-1")
        world.tick()
        assert shown(world, worker.job) == before
        assert worker.charge(10, 5).json()["code"] == "fenced"
        world.clock.forward(1.2)
    world.clock.forward(0.2)
    world.tick()
    state, taken, states, running = shown(world, worker.job)
    assert state == states[-1] == ("succeeded" if succeeded else "failed")
    assert running == []
    assert taken == before[1] if succeeded else taken < before[1]
    last = world.get(f"jobs/{worker.job}/events").json()["items"][-1]
    assert last["at"].endswith("12:00:10Z")
    assert not verify(world.gateway.engine, key=world.gateway.seal_key).problems


def test_a_long_tick_does_not_lose_what_a_worker_holds(engine: Engine, tmp_path: Path) -> None:
    world = GatewayWorld.for_jobs(engine, tmp_path / "slow", tick_s=300)
    worker = world.running(fit())
    worker.charge(0, 20)
    hand_in(world, report_of(world, worker.job))
    world.clock.forward(1)
    assert worker.say("outcome", {"succeeded": True}).status_code == 204
    for _ in range(29):
        world.clock.forward(10)
        world.tick()
        assert world.job_state(worker.job) == "running"
    world.clock.forward(10)
    world.tick()
    assert world.job_state(worker.job) == "succeeded"


def test_a_worker_that_dies_is_missed_at_a_tick(world: GatewayWorld) -> None:
    worker = world.running(fit())
    world.services.dispatcher.turn()
    world.clock.forward(1)
    world.services.dispatcher.turn()
    world.launcher.ended.add(f"{worker.job}-1")
    for _ in range(4):
        world.services.dispatcher.turn()
        assert world.job_state(worker.job) == "running"
        world.clock.forward(1)
    world.clock.forward(0.5)
    world.services.dispatcher.turn()
    assert world.job_state(worker.job) == "provisioning"

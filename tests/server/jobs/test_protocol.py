"""What workers say: taken from the one that holds the job, charged before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from gateways.world import NAMESPACE, UNITS, fit
from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.reports.privacy import PrivacyReport
from taciturn.server.jobs.completion import NothingReleased
from taciturn.server.ledger import job_report, job_statements, statement, verify
from taciturn.server.schema.tables import datasets
from taciturn.wire.worker import MOST_ASKED
from ward import Hand, Ward, make_ward


def shares(ward: Ward) -> tuple[float, float]:
    found = statement(ward.gateway.engine, ward.gateway.seal_key, NAMESPACE).budget
    return found.charged, found.used


def report_of(ward: Ward, job: str, **changes: Any) -> bytes:
    """What an honest worker would say of a fit."""
    plan = ward.get(f"jobs/{job}", "olga").json()["plan"]
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


def hand_in(ward: Ward, report: bytes | None) -> Files:
    files = Files(report)
    object.__setattr__(ward.services.jobs.ending, "released", files)
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
    ward: Ward, header: bool, stated: list[str] | None, names: list[str] | None
) -> None:
    """By the names that the owner has stated, or has seen when the data were first read."""
    text = None if stated is None else json.dumps([{"name": name} for name in stated])
    change = update(datasets).values(header=header, stated=text)
    ward.gateway.write(lambda connection: connection.execute(change))
    assert ward.running(fit()).take().json()["source"]["names"] == names


def test_a_fit_from_lease_to_outcome(ward: Ward) -> None:
    hand = ward.running(fit())
    job = hand.job
    taken = hand.take().json()
    assert taken["lease"] == hand.lease
    assert taken["plan"] == ward.get(f"jobs/{job}").json()["plan"]
    assert taken["source"]["units"] == UNITS
    assert taken["base_model"]["parameters"] == 4_737_280
    assert taken["request"]["text_field"] == "context"
    assert taken["charged_steps"] == 0
    assert ward.state(job) == "running"
    assert hand.say("heartbeat").json() == {"cancel": False}
    for first in (0, 10):
        assert hand.charge(first, 10).status_code == 204
    assert hand.charge(10, 10).status_code == 204  # repeated: one charge
    charged, held = shares(ward)
    assert charged == pytest.approx(held)
    hand_in(ward, report_of(ward, job))
    assert hand.say("outcome", {"succeeded": True}).status_code == 204
    assert ward.state(job) == "succeeded"
    assert hand.say("outcome", {"succeeded": True}).status_code == 401
    assert shares(ward) == pytest.approx((charged, charged))
    found = job_report(ward.gateway.engine, ward.gateway.seal_key, job)
    assert found.epsilon == pytest.approx(1.0, rel=2e-3)
    assert not verify(ward.gateway.engine, key=ward.gateway.seal_key).problems


def test_rows_under_another_budget_are_refused_and_what_was_held_is_free(ward: Ward) -> None:
    """The other dataset's owner and the asker hear that it is so, and of no other dataset."""
    ward.world.open_namespace("others", "other")
    marks = {"first": True, "places": ["a" * 32], "contents": ["b" * 32]}
    first = ward.running(fit())
    assert first.say("source", marks).status_code == 204
    assert first.say("source", marks).status_code == 204  # repeated, or by another worker
    hand = ward.running(fit(data={"dataset": "other"}), "key-00002", "olga")
    answer = hand.say("source", {**marks, "places": ["c" * 32]})
    assert (answer.status_code, answer.json()["code"]) == (409, "source_taken")
    assert "phee" not in answer.text
    assert NAMESPACE not in answer.text
    hand.say("outcome", {"succeeded": False, "code": "source_refused"})
    ward.watch.forward(60)
    ward.tick()
    seen = ward.get(f"jobs/{hand.job}", "olga").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "source_refused")
    assert "administrator" in seen["failure"]["text"]
    found = statement(ward.gateway.engine, ward.gateway.seal_key, "others").budget
    assert found.used == found.charged == 0


def test_a_job_without_rows_has_no_source(ward: Ward) -> None:
    hand = ward.running(fit())
    stranger = Hand(ward.client, hand.job, hand.token, hand.lease + 1)
    marks = {"first": True, "places": ["a" * 32]}
    assert stranger.say("source", marks).json()["code"] == "fenced"
    for wrong in ({}, {"first": True, "places": []}, {"first": True, "places": ["/data/a.csv"]}):
        assert hand.say("source", wrong).status_code == 422


def test_what_never_ran_is_free_again(ward: Ward) -> None:
    hand = ward.running(fit())
    hand.charge(0, 5)
    hand.say("outcome", {"succeeded": False, "code": "resources"})
    seen = ward.get(f"jobs/{hand.job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "resources")
    charged, taken = shares(ward)
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
def test_a_report_that_is_not_what_was_charged_releases_nothing(ward: Ward, name: str) -> None:
    hand = ward.running(fit())
    hand.charge(0, 20)
    wrong = WRONG[name]
    report = report_of(ward, hand.job, **wrong) if isinstance(wrong, dict) else wrong
    files = hand_in(ward, report)
    hand.say("outcome", {"succeeded": True})
    seen = ward.get(f"jobs/{hand.job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "guarantee_refused")
    assert files.discarded == [hand.job]  # type: ignore[attr-defined]


def test_a_model_whose_steps_were_not_all_charged_is_not_released(ward: Ward) -> None:
    hand = ward.running(fit())
    hand.charge(0, 19)
    hand_in(ward, report_of(ward, hand.job))
    hand.say("outcome", {"succeeded": True})
    assert ward.get(f"jobs/{hand.job}").json()["failure"]["code"] == "guarantee_refused"


def test_steps_outside_of_the_plan_are_refused(ward: Ward) -> None:
    hand = ward.running(fit())
    assert hand.charge(15, 6).json()["code"] == "invalid"
    assert shares(ward)[0] == 0


def everything(hand: Hand) -> list[Any]:
    return [
        hand.say("heartbeat"),
        hand.charge(0, 5, "block-of-a-stale-one"),
        hand.say("events", {"first": 0, "events": [{"type": "stage", "stage": "training"}]}),
        hand.say("incidents", {"log": "x"}),
        hand.say("over", {"jobs": []}),
        hand.say("outcome", {"succeeded": True}),
        hand.take("operation-9"),
    ]


def test_a_stale_worker_is_fenced_off_in_everything(ward: Ward) -> None:
    stale = ward.running(fit())
    stale.charge(0, 5)
    ward.launcher.ended.add(f"{stale.job}-1")
    ward.tick()
    assert ward.state(stale.job) == "provisioning"
    before = ward.entries()
    answers = everything(stale)
    assert {answer.json()["code"] for answer in answers} == {"fenced"}
    assert {answer.status_code for answer in answers} == {409}
    fresh = ward.hand(stale.job)
    assert fresh.take("operation-2").json()["charged_steps"] == 5
    answers = everything(stale)
    assert {answer.json()["code"] for answer in answers} == {"fenced"}
    assert ward.entries() == before + 1
    assert fresh.charge(5, 5).status_code == 204


def test_which_jobs_are_over_is_told_to_who_holds_one(ward: Ward) -> None:
    """So that their checkpoints can go: of jobs that may still have a worker, and of those that
    this gateway does not know, nothing is said."""
    lost = ward.running(fit(), key="key-00002")
    lost.say("outcome", {"succeeded": False, "code": "resources"})
    queued = ward.ask(fit(), key="key-00003").json()["id"]
    hand = ward.running(fit())
    unknown = "job_" + "0" * 20
    assert (ward.state(lost.job), ward.state(hand.job)) == ("failed", "running")
    asked = {"jobs": [lost.job, hand.job, queued, unknown]}
    assert hand.say("over", asked).json() == {"jobs": [lost.job]}
    assert hand.say("over", {"jobs": [lost.job] * (MOST_ASKED + 1)}).status_code == 422
    assert lost.say("over", asked).status_code in (401, 409)
    stale = Hand(ward.client, hand.job, hand.token, hand.lease + 1)
    assert stale.say("over", asked).json()["code"] == "fenced"


def test_while_a_worker_shows_signs_of_life_nobody_takes_its_job(ward: Ward) -> None:
    hand = ward.running(fit())
    other = ward.hand(hand.job)
    assert other.take("operation-2").json()["code"] == "lease_held"
    ward.watch.forward(31)
    assert other.take("operation-2").status_code == 200
    assert hand.charge(0, 5).json()["code"] == "fenced"
    assert other.charge(0, 5).status_code == 204


def test_steps_that_run_again_are_held_and_charged_again(ward: Ward) -> None:
    stale = ward.running(fit())
    stale.charge(0, 20)
    ward.launcher.ended.add(f"{stale.job}-1")
    ward.tick()
    fresh = ward.hand(stale.job)
    fresh.take("operation-2")
    before = shares(ward)[0]
    assert fresh.charge(15, 5).status_code == 204
    assert fresh.charge(15, 5).status_code == 204
    assert shares(ward)[0] == pytest.approx(before * 25 / 20, rel=1e-6)
    hand_in(ward, report_of(ward, stale.job))
    fresh.say("outcome", {"succeeded": True})
    assert ward.state(stale.job) == "succeeded"


def test_without_room_steps_do_not_run_again(ward: Ward) -> None:
    ward.world.grant("user:petra", epsilon=2.0)
    fits = ward.client.post(
        "/v1/plans", json=fit(target_epsilon=2.0), headers=ward.world.as_("petra")
    ).json()["fitting_epsilon"]
    stale = ward.running(fit(target_epsilon=fits), who="petra")
    stale.charge(0, 20)
    ward.launcher.ended.add(f"{stale.job}-1")
    ward.tick()
    fresh = ward.hand(stale.job)
    fresh.take("operation-2")
    before = ward.entries()
    assert fresh.charge(0, 20).json()["code"] == "budget_exceeded"
    assert ward.entries() == before


def test_a_balance_moves_at_the_first_block_after_a_crash_and_at_no_other(ward: Ward) -> None:
    """When the last block is charged depends on rows; when a worker comes back does not."""
    stale = ward.running(fit())
    stale.charge(0, 5)
    stale.charge(5, 5)
    planned = shown_balance(ward)
    ward.launcher.ended.add(f"{stale.job}-1")
    ward.tick()
    fresh = ward.hand(stale.job)
    fresh.take("operation-2")
    assert shown_balance(ward) == planned
    assert fresh.charge(5, 5).status_code == 204
    resumed = shown_balance(ward)
    assert resumed > planned
    for first in (5, 10, 15):  # the first one again: its answer was lost
        assert fresh.charge(first, 5).status_code == 204
        assert shown_balance(ward) == resumed
    hand_in(ward, report_of(ward, stale.job))
    fresh.say("outcome", {"succeeded": True})
    assert ward.state(stale.job) == "succeeded"
    assert shown_balance(ward) == resumed
    assert shares(ward)[0] == pytest.approx(resumed)


def shown_balance(ward: Ward) -> float:
    """What a practitioner sees as gone of the budget."""
    balance: float = ward.get(f"budgets/{NAMESPACE}").json()["taken"]
    return balance


def test_without_room_for_all_that_is_left_none_of_it_runs(ward: Ward) -> None:
    ward.world.grant("user:petra", epsilon=2.0)
    fits = ward.client.post(
        "/v1/plans", json=fit(target_epsilon=2.0), headers=ward.world.as_("petra")
    ).json()["fitting_epsilon"]
    stale = ward.running(fit(target_epsilon=fits), who="petra")
    stale.charge(0, 10)
    ward.launcher.ended.add(f"{stale.job}-1")
    ward.tick()
    fresh = ward.hand(stale.job)
    fresh.take("operation-2")
    before = ward.entries()
    assert fresh.charge(0, 10).json()["code"] == "budget_exceeded"
    assert ward.entries() == before


def test_a_token_is_for_its_own_job(ward: Ward) -> None:
    hand, other = (
        ward.running(fit(target_epsilon=0.1)),
        ward.running(fit(target_epsilon=0.1), "key-00002"),
    )
    before = ward.entries()
    mixed = Hand(ward.client, other.job, hand.token, other.lease)
    assert {answer.json()["code"] for answer in everything(mixed)} == {"forbidden"}
    person = Hand(ward.client, hand.job, ward.world.tokens["olga"], hand.lease)
    assert {answer.json()["code"] for answer in everything(person)} == {"forbidden"}
    assert ward.get("jobs", "paul").status_code == 200
    headers = {"Authorization": f"Bearer {hand.token}"}
    assert ward.client.get("/v1/jobs", headers=headers).json()["code"] == "forbidden"
    assert ward.entries() == before


def test_a_job_without_cost_is_fenced_too(ward: Ward) -> None:
    body = fit(target_epsilon="unlimited")
    answer = ward.ask(body).json()
    for who in ("otto", "bea"):
        ward.post(f"approvals/{answer['approval']}/decisions", {"decision": "approve"}, who)
    ward.tick()
    stale = ward.hand(answer["id"])
    assert stale.take().json()["plan"]["privacy"] is None
    assert stale.charge(0, 5).status_code == 204
    ward.launcher.ended.add(f"{stale.job}-1")
    ward.tick()
    assert {answer.json()["code"] for answer in everything(stale)} == {"fenced"}
    fresh = ward.hand(stale.job)
    assert fresh.take("operation-2").status_code == 200
    assert fresh.lease > stale.lease
    assert {answer.json()["code"] for answer in everything(stale)} == {"fenced"}
    assert fresh.say("outcome", {"succeeded": True}).status_code == 204
    assert ward.state(stale.job) == "succeeded"
    assert not job_statements(ward.gateway.engine, ward.gateway.seal_key, NAMESPACE)


def test_events_are_kept_once_and_others_refused(ward: Ward) -> None:
    hand = ward.running(fit())
    batch = {"first": 0, "events": [{"type": "stage", "stage": "training"}]}
    for _ in range(2):
        assert hand.say("events", batch).status_code == 204
    secret = {"first": 1, "events": [{"type": "stage", "stage": "training", "row": "secret"}]}
    refused = hand.say("events", secret)
    assert refused.status_code == 422
    assert "secret" not in refused.text
    state = {"first": 1, "events": [{"type": "state", "state": "succeeded"}]}
    assert hand.say("events", state).status_code == 422
    with ward.gateway.engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT data FROM job_events").scalars().all()
    kinds = [json.loads(data)["type"] for data in kept]
    assert kinds.count("stage") == 1


def test_an_incident_is_named_in_the_failure(ward: Ward) -> None:
    hand = ward.running(fit())
    incident = hand.say("incidents", {"log": "Traceback ... a row"}).json()["incident"]
    outcome = {"succeeded": False, "code": "data_refused", "incident": incident}
    hand.say("outcome", outcome)
    failure = ward.get(f"jobs/{hand.job}").json()["failure"]
    assert failure["incident"] == incident
    assert "row" not in failure["text"]


def shown(ward: Ward, job: str) -> tuple[str, float, list[str], list[str]]:
    """All that a practitioner can see of how far a job is: state, balance, events, list."""
    events = ward.get(f"jobs/{job}/events").json()["items"]
    listed = ward.get("jobs?state=running").json()["items"]
    return (
        ward.get(f"jobs/{job}").json()["state"],
        ward.get(f"budgets/{NAMESPACE}").json()["taken"],
        [each["event"]["state"] for each in events if each["event"]["type"] == "state"],
        [each["id"] for each in listed],
    )


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_job_that_reads_rows_ends_at_a_tick(ward: Ward, succeeded: bool) -> None:
    """When its worker is done depends on rows, to the millisecond."""
    hand = ward.running(fit())
    hand.charge(0, 20 if succeeded else 10)
    hand_in(ward, report_of(ward, hand.job))
    ward.watch.forward(5)
    before = shown(ward, hand.job)
    assert before[0] == "running"
    ward.watch.forward(1.234)
    said = {"succeeded": True} if succeeded else {"succeeded": False, "code": "resources"}
    assert hand.say("outcome", said).status_code == 204
    assert hand.say("outcome", said).status_code == 204
    for _ in range(3):
        ward.launcher.ended.add(f"{hand.job}-1")
        ward.tick()
        assert shown(ward, hand.job) == before
        assert hand.charge(10, 5).json()["code"] == "fenced"
        ward.watch.forward(1.2)
    ward.watch.forward(0.2)
    ward.tick()
    state, taken, states, running = shown(ward, hand.job)
    assert state == states[-1] == ("succeeded" if succeeded else "failed")
    assert running == []
    assert taken == before[1] if succeeded else taken < before[1]
    last = ward.get(f"jobs/{hand.job}/events").json()["items"][-1]
    assert last["at"].endswith("12:00:10Z")
    assert not verify(ward.gateway.engine, key=ward.gateway.seal_key).problems


def test_a_long_tick_does_not_lose_what_a_worker_holds(engine: Engine, tmp_path: Path) -> None:
    ward = make_ward(engine, tmp_path / "slow", tick_s=300)
    hand = ward.running(fit())
    hand.charge(0, 20)
    hand_in(ward, report_of(ward, hand.job))
    ward.watch.forward(1)
    assert hand.say("outcome", {"succeeded": True}).status_code == 204
    for _ in range(29):
        ward.watch.forward(10)
        ward.tick()
        assert ward.state(hand.job) == "running"
    ward.watch.forward(10)
    ward.tick()
    assert ward.state(hand.job) == "succeeded"


def test_a_worker_that_dies_is_missed_at_a_tick(ward: Ward) -> None:
    hand = ward.running(fit())
    ward.services.dispatcher.turn()
    ward.watch.forward(1)
    ward.services.dispatcher.turn()
    ward.launcher.ended.add(f"{hand.job}-1")
    for _ in range(4):
        ward.services.dispatcher.turn()
        assert ward.state(hand.job) == "running"
        ward.watch.forward(1)
    ward.watch.forward(0.5)
    ward.services.dispatcher.turn()
    assert ward.state(hand.job) == "provisioning"

"""Asking for jobs: priced, held, queued; once for each key; and every way to be refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, update

from support.gateway import NAMESPACE, UNITS, GatewayWorld, fit
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import TrainingPlan, make_plan
from taciturn.server.ledger import job_statements, statement, verify
from taciturn.server.schema.tables import datasets, grant_terms
from taciturn.spec import FitSpec
from taciturn.wire.jobs import JobState


def taken(world: GatewayWorld) -> float:
    gateway = world.gateway
    return statement(gateway.engine, gateway.seal_key, NAMESPACE).budget.used


def test_a_job_is_priced_held_and_queued(world: GatewayWorld) -> None:
    answer = world.submit(fit())
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert job["state"] == "queued"
    assert job["requester"] == "paul"
    assert job["policy"]["kind"] == "DP"
    gateway = world.gateway
    (held,) = job_statements(gateway.engine, gateway.seal_key, NAMESPACE)
    assert held.grants == ("user:paul",)
    assert held.reserved == pytest.approx(taken(world))
    assert world.get(f"jobs/{job['id']}").json() == job


def test_the_plan_is_that_of_public_facts(world: GatewayWorld) -> None:
    body = fit(data={"dataset": "phee", "part": {"side": "train", "test_share": 0.1}}, canaries=10)
    shown = world.post("plans", body).json()
    spec = FitSpec(
        text_field="context", target_epsilon=1.0, delta=1e-6, batch_size=64, steps=20, canaries=10
    )
    facts = PublicFacts(round(UNITS * 0.9) + 10, "taciturn/tiny-medical", 4_737_280, 512)
    assert shown["plan"] == make_plan(spec, facts).model_dump(mode="json")
    assert shown["admitted"]
    assert shown["needs_approval"] is None
    assert 0 < shown["share_of_budget"] < shown["share_of_grant"] < 1
    job = world.submit(body).json()
    assert job["plan"] == shown["plan"]
    assert taken(world) == pytest.approx(shown["share_of_budget"])


def test_pairs_of_answers_are_checked_by_their_columns_and_planned(world: GatewayWorld) -> None:
    columns = {"text_field": None, "prompt_field": "context", "chosen_field": "id"}
    wrong = fit(objective="dpo", **columns)
    answer = world.post("plans", wrong)
    assert answer.status_code == 422, answer.text
    assert "'rejected'" in answer.json()["detail"]
    body = fit(objective="dpo", beta=0.3, rejected_field="context", **columns)
    plan = world.post("plans", body).json()["plan"]
    assert (plan["objective"], plan["beta"]) == ("dpo", 0.3)
    job = world.submit(body).json()
    assert job["plan"] == plan


def test_a_plan_says_how_long_training_takes(world: GatewayWorld) -> None:
    """A guess at first; then as long for each unit as an earlier fit that one may see took."""
    guessed = world.post("plans", fit()).json()["duration"]
    assert guessed["seconds"] > 0
    assert "guess" in guessed["basis"]
    worker = world.running(fit(), key="earlier-1")
    plan = world.get(f"jobs/{worker.job}").json()["plan"]
    events = [{"type": "stage", "stage": "training"}]
    assert worker.say("events", {"first": 0, "events": events}).status_code == 204
    world.clock.forward(600)
    worker.say("heartbeat")

    def end(connection: Connection) -> None:
        world.services.dispatcher.states.move(connection, worker.job, JobState.SUCCEEDED)

    world.gateway.write(end)
    world.clock.forward(10)
    twice = fit(steps=2 * plan["steps"], batch_size=plan["batch_size"])
    told = world.post("plans", twice).json()["duration"]
    assert told["seconds"] == pytest.approx(1200, rel=0.02)
    assert "1 earlier fit" in told["basis"]
    owners = world.post("plans", twice, who="olga").json()["duration"]
    assert owners == told
    seconds = 600 / (plan["steps"] * plan["batch_size"])
    limited = fit(steps=None, batch_size=None, max_minutes=20)
    shown = world.post("plans", limited).json()
    assert shown["plan"]["seconds_per_unit"] == pytest.approx(seconds, rel=0.02)
    assert shown["duration"]["seconds"] <= 1200
    reasons = " ".join(shown["plan"]["reasons"])
    assert "max_minutes=20: time for about" in reasons
    assert "by 1 earlier fit(s) of this base model that you may see" in reasons
    job = world.submit(limited, key="limited-1").json()
    assert job["plan"] == shown["plan"]
    short = world.post("plans", fit(steps=None, max_minutes=0.01))
    assert (short.status_code, short.json()["code"]) == (422, "invalid")
    assert "give at least max_minutes=" in short.json()["detail"]


def test_a_plan_says_what_it_is_worth_from_public_facts_alone(world: GatewayWorld) -> None:
    shown = world.post("plans", fit()).json()
    plan = TrainingPlan(**shown["plan"])
    assert plan.worth is not None
    assert shown["worth"] == plan.worth.model_dump(mode="json")
    assert "of what an ordinary fit would learn" in shown["worth"]["text"]
    assert [row["times"] for row in shown["other_times"]] == [0.5, 1.0, 2.0, 4.0]
    assert shown["other_times"][1]["steps"] == plan.steps
    full = world.post("plans", fit(method="full")).json()
    assert "no run with method='full' was measured" in full["worth"]["text"]
    assert {row["share"] for row in full["other_times"]} == {None}
    none = world.post("plans", fit(target_epsilon="unlimited")).json()
    assert (none["worth"], none["other_times"]) == (None, [])


def test_canaries_that_no_audit_would_find_are_refused(world: GatewayWorld) -> None:
    services = world.services
    forgets = replace(services, jobs=replace(services.jobs, keeps=False))
    world.client.app.state.services = forgets  # type: ignore[attr-defined]
    before = world.entries()
    for answer in (world.submit(fit(canaries=10)), world.post("plans", fit(canaries=10))):
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        assert "canaries=10: no audit would find them" in answer.json()["detail"]
    assert world.entries() == before
    assert world.submit(fit()).status_code == 201


def test_a_plan_holds_nothing(world: GatewayWorld) -> None:
    before = world.entries()
    assert world.post("plans", fit()).status_code == 200
    assert world.entries() == before


def test_all_of_a_budget_does_not_fit_and_the_answer_says_what_does(world: GatewayWorld) -> None:
    body = fit(target_epsilon=8.0)
    answer = world.submit(body, who="olga")
    assert (answer.status_code, answer.json()["code"]) == (409, "budget_exceeded")
    fits = answer.json()["fitting_epsilon"]
    assert 4.0 < fits < 8.0
    assert f"target_epsilon={fits:g} would fit" in answer.json()["detail"]
    shown = world.post("plans", body, "olga").json()
    assert (shown["admitted"], shown["fitting_epsilon"]) == (False, fits)
    assert world.submit(fit(target_epsilon=fits), who="olga", key="another-key").status_code == 201
    assert world.submit(fit(target_epsilon=4.0), "olga", "third-key").status_code == 409


def test_the_same_key_is_the_same_job(world: GatewayWorld) -> None:
    first, again = world.submit(fit()), world.submit(fit())
    assert first.json()["id"] == again.json()["id"]
    other = world.submit(fit(target_epsilon=0.7))
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")
    world.set_grant("user:petra", epsilon=4.0)
    assert world.submit(fit(), "petra").json()["id"] != first.json()["id"]
    assert len(world.get("jobs", "olga").json()["items"]) == 2


def test_what_spends_needs_a_key(world: GatewayWorld) -> None:
    before = world.entries()
    answer = world.submit(fit(), key=None)
    assert (answer.status_code, answer.json()["code"]) == (428, "idempotency_key_missing")
    assert world.entries() == before
    assert world.get("jobs").json()["items"] == []


def test_one_key_in_a_race_is_one_job(world: GatewayWorld) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(world.submit(fit()))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(job_statements(world.gateway.engine, world.gateway.seal_key, NAMESPACE)) == 1


def test_a_race_for_the_last_epsilon_overspends_nothing(world: GatewayWorld) -> None:
    body = fit(target_epsilon=1.9)
    share = world.post("plans", body, "olga").json()["share_of_budget"]
    room = int(1 / share)
    clients = room + 6
    answers: list[Any] = []

    def ask(number: int) -> None:
        answers.append(world.submit(body, "olga", f"client-{number:04}"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [201] * room + [409] * (clients - room)
    assert taken(world) <= 1
    assert not verify(world.gateway.engine, key=world.gateway.seal_key).problems
    refused = [number for number in range(clients) if answers[number].status_code == 409]
    assert refused
    held = job_statements(world.gateway.engine, world.gateway.seal_key, NAMESPACE, only_open=True)
    assert len(held) == room


def test_a_refusal_in_the_last_moment_is_repeated_for_its_key(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the verdict and the reservation somebody else was faster."""
    insert = type(world.services.jobs)._insert

    def slow(self: Any, *arguments: Any) -> str:
        made = insert(self, *arguments)
        for number in range(20):
            body = fit(target_epsilon=2.5)
            monkeypatch.undo()
            if world.submit(body, "olga", f"faster-{number:03}").status_code == 409:
                break
        return made

    monkeypatch.setattr(type(world.services.jobs), "_insert", slow)
    body = fit(target_epsilon=2.5)
    answer = world.submit(body, "olga", "slow-client")
    assert (answer.status_code, answer.json()["code"]) == (409, "budget_exceeded")
    again = world.submit(body, "olga", "slow-client")
    assert (again.status_code, again.json()["code"]) == (409, "budget_exceeded")
    for words in ("nothing was spent", "taciturn budget patients", "would fit now"):
        assert words in again.json()["detail"]
    assert taken(world) <= 1


def test_group_grants_and_own_grants(world: GatewayWorld) -> None:
    world.set_grant("group:team", epsilon=3.0)
    first = world.submit(fit(), "petra").json()
    world.submit(fit(), "paul")
    gateway = world.gateway
    held = {
        each.job: each.grants
        for each in job_statements(gateway.engine, gateway.seal_key, NAMESPACE)
    }
    assert held.pop(first["id"]) == ("group:team",)
    assert list(held.values()) == [("user:paul",)]


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown data": ({"data": {"dataset": "other"}}, 404, "not_found"),
    "unknown model": ({"model": "somebody/else"}, 422, "invalid"),
    "no epsilon": ({"target_epsilon": None}, 422, "invalid"),
    "own unit": ({"privacy_unit": "id"}, 422, "invalid"),
    "aggregate": ({"data": {"dataset": "phee", "select": "count(*) AS context"}}, 422, "invalid"),
    "column": ({"data": {"dataset": "phee", "select": "nothing AS context"}}, 422, "invalid"),
    "text field": ({"text_field": "contxt"}, 422, "invalid"),
    "case of a field": ({"text_field": "Context"}, 422, "invalid"),
    "which field": ({"text_field": None}, 422, "invalid"),
    "field gone": ({"data": {"dataset": "phee", "select": "context AS note, id"}}, 422, "invalid"),
    "no text": ({"data": {"dataset": "phee", "select": "len(context) AS context"}}, 422, "invalid"),
    "batch": ({"batch_size": 5000}, 422, "invalid"),
    "delta": ({"delta": 1e-4}, 403, "policy_refused"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_and_does_not_run(unchanged: GatewayWorld, name: str) -> None:
    changes, status, code = REFUSED[name]
    denied(unchanged, fit(**changes), status, code)


def test_a_field_that_is_not_there_is_told_with_the_nearest_one(unchanged: GatewayWorld) -> None:
    detail = unchanged.post("plans", fit(text_field="contxt")).json()["detail"]
    assert "did you mean 'context'" in detail
    selected = {"data": {"dataset": "phee", "select": "upper(context) AS note"}}
    assert unchanged.post("plans", fit(text_field="note", **selected)).is_success


def denied(
    world: GatewayWorld, body: dict[str, Any], status: int, code: str, who: str = "paul"
) -> None:
    before = world.entries()
    answer = world.submit(body, who)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    world.tick()
    assert world.entries() == before
    assert world.launcher.orders == []
    assert world.get("jobs", "ann").json()["items"] == []


TERMS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kinds": ("sample",)}, "allows jobs of the kinds sample"),
    "model": ({"models": ("meta-llama/*",)}, "allows meta-llama/*"),
    "job_epsilon": ({"job_epsilon": 0.5}, "above 0.5, the most that one job may cost"),
    "expiry": ({"expires_at": datetime(2026, 2, 1, tzinfo=UTC)}, "expired at 2026-02-01"),
}


@pytest.mark.parametrize("name", TERMS)
def test_what_the_policy_does_not_allow_does_not_run(unchanged: GatewayWorld, name: str) -> None:
    changes, words = TERMS[name]
    unchanged.set_terms(**changes)
    try:
        denied(unchanged, fit(), 403, "policy_refused")
        assert words in unchanged.post("plans", fit()).json()["detail"]
    finally:
        unchanged.set_terms()


def test_data_that_is_not_ready_or_was_removed(world: GatewayWorld) -> None:
    def change(**values: Any) -> None:
        world.gateway.write(lambda connection: connection.execute(update(datasets).values(values)))

    change(state="probing")
    denied(world, fit(), 409, "not_ready")
    change(state="ready", removed_at_ms=1)
    denied(world, fit(), 404, "not_found")


@pytest.mark.parametrize("who", ["petra", "oscar", "otto"])
def test_without_a_grant_there_is_no_such_data(unchanged: GatewayWorld, who: str) -> None:
    denied(unchanged, fit(), 404, "not_found", who)


@pytest.mark.parametrize("who", ["ann", "adam"])
def test_without_the_role_nothing_is_asked(unchanged: GatewayWorld, who: str) -> None:
    denied(unchanged, fit(), 403, "forbidden", who)


@pytest.mark.parametrize("values", [{"revoked_at_ms": 1}, {"expires_at_ms": 1}])
def test_a_grant_that_is_over_gives_nothing(world: GatewayWorld, values: dict[str, int]) -> None:
    world.gateway.write(lambda connection: connection.execute(update(grant_terms).values(values)))
    denied(world, fit(), 404, "not_found")


def test_who_sees_which_jobs(world: GatewayWorld) -> None:
    job = world.submit(fit()).json()["id"]
    for who, status in (("paul", 200), ("olga", 200), ("ann", 200), ("petra", 404), ("oscar", 404)):
        assert world.get(f"jobs/{job}", who).status_code == status
        assert len(world.get("jobs", who).json()["items"]) == (status == 200)
    assert world.get(f"jobs/{job}", "adam").status_code == 403
    assert world.post(f"jobs/{job}/cancel", who="petra").status_code == 404
    assert world.post(f"jobs/{job}/cancel", who="ann").status_code == 403
    assert world.job_state(job) == "queued"


def test_jobs_come_by_pages_newest_first(world: GatewayWorld) -> None:
    made = []
    for number in range(5):
        made.append(world.submit(fit(target_epsilon=0.05), key=f"page-{number:04}").json()["id"])
        world.clock.forward(1)
    seen, cursor = [], ""
    while cursor is not None:
        page = world.get(f"jobs?limit=2{cursor and f'&cursor={cursor}'}").json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == made[::-1]
    assert world.get("jobs?cursor=bm8").status_code == 422
    assert len(world.get("jobs?state=queued&kind=fit").json()["items"]) == 5
    assert world.get("jobs?state=running").json()["items"] == []


def test_a_job_that_waits_is_cancelled_at_once_and_costs_nothing(world: GatewayWorld) -> None:
    job = world.submit(fit()).json()["id"]
    assert taken(world) > 0
    assert world.post(f"jobs/{job}/cancel").json()["state"] == "cancelled"
    assert taken(world) == 0
    assert world.post(f"jobs/{job}/cancel").json()["state"] == "cancelled"
    world.tick()
    assert world.launcher.orders == []


def test_an_evaluation_of_rows_is_priced_as_one_release(world: GatewayWorld) -> None:
    model = fitted(world)
    body = {
        "kind": "evaluate",
        "model": model,
        "data": {"dataset": "phee", "part": {"side": "test", "test_share": 0.1}},
        "text_field": "context",
        "target_epsilon": 0.5,
    }
    shown = world.post("plans", body).json()
    assert shown["plan"]["n_units"] == 110
    assert 0.2 < shown["plan"]["gain_std"] < 0.6  # nats per token
    assert shown["epsilon"] == pytest.approx(0.5, rel=2e-3)
    answer = world.submit(body, key="evaluation")
    assert answer.json()["state"] == "queued"
    assert taken(world) == pytest.approx(shown["share_of_budget"])
    assert world.submit(body, key=None).json()["code"] == "idempotency_key_missing"
    free = {"kind": "evaluate", "model": model, "public_texts": ["one", "two"]}
    assert world.submit(free, key=None).json()["policy"]["kind"] == "public"
    assert world.submit({"kind": "sample", "model": model, "prompts": ["a"]}, key=None).is_success
    for who in ("petra", "oscar"):
        denied_model = world.submit({"kind": "sample", "model": model, "prompts": ["a"]}, who, None)
        assert denied_model.json()["code"] == "not_found"


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({"kind": "sample", "prompts": ["a"], "max_new_tokens": 511}, "at most 510"),
        ({"kind": "synthesize", "n": 5, "max_new_tokens": 4096}, "at most 510"),
        ({"kind": "evaluate", "public_texts": ["a"], "max_tokens": 513}, "context of 512"),
    ],
)
def test_what_has_no_room_in_the_models_context_is_refused_and_runs_nothing(
    world: GatewayWorld, asked: dict[str, Any], remedy: str
) -> None:
    model = fitted(world)
    answer = world.submit({**asked, "model": model}, key=None)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), answer.text
    assert remedy in answer.json()["detail"]
    too_many = {"max_tokens": 512, "prompt": "a", "model": model}
    refused = world.post("completions", too_many)
    assert refused.status_code == 400
    assert "at most 510" in refused.json()["error"]["message"]
    assert [row["kind"] for row in world.get("jobs").json()["items"]] == ["fit"]
    most = {"kind": "sample", "prompts": ["a"], "max_new_tokens": 510, "model": model}
    assert world.submit(most, key=None).is_success


def fitted(world: GatewayWorld) -> str:
    """A model of paul's, as if a fit had made it."""
    from taciturn.server.schema.tables import models

    job = world.submit(fit(target_epsilon=0.05), key="for-a-model").json()
    row = {
        "id": "mod_00000000000000000000",
        "job_id": job["id"],
        "owner_id": world.users["paul"],
        "namespace": NAMESPACE,
        "base_model": "taciturn/tiny-medical",
        "report": "{}",
        "policy": '{"kind": "DP", "text": "DP (epsilon=0.05)"}',
        "created_at_ms": 1,
    }
    world.gateway.write(lambda connection: connection.execute(models.insert().values(row)))
    world.post(f"jobs/{job['id']}/cancel")
    return str(row["id"])

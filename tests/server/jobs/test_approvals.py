"""Two people, neither of them the asker, for exactly this request, once, in time."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from support.gateway import NAMESPACE, GatewayWorld, fit
from taciturn.server.ledger import job_statements, statement
from taciturn.server.schema.tables import jobs

UNLIMITED = fit(target_epsilon="unlimited")


def asked(
    world: GatewayWorld, body: dict[str, Any] | None = None, who: str = "paul"
) -> tuple[str, str]:
    """A job that waits, and its approval."""
    answer = world.submit(body or UNLIMITED, who)
    assert answer.json()["state"] == "awaiting_approval", answer.text
    return answer.json()["id"], answer.json()["approval"]


def decide(world: GatewayWorld, approval: str, who: str, decision: str = "approve") -> Any:
    return world.post(f"approvals/{approval}/decisions", {"decision": decision}, who)


def exceptions(world: GatewayWorld) -> int:
    return statement(world.gateway.engine, world.gateway.seal_key, NAMESPACE).exceptions


def test_without_a_guarantee_two_people_approve(world: GatewayWorld) -> None:
    assert world.post("plans", UNLIMITED).json()["needs_approval"] == "no_guarantee"
    job, approval = asked(world)
    world.tick()
    assert world.launcher.orders == []
    first = decide(world, approval, "otto")
    assert (first.status_code, first.json()["state"]) == (201, "open")
    world.tick()
    assert (world.job_state(job), world.launcher.orders, exceptions(world)) == (
        "awaiting_approval",
        [],
        0,
    )
    second = decide(world, approval, "bea").json()
    assert (second["state"], second["approved_by"]) == ("used", ["bea", "otto"])
    seen = world.get(f"jobs/{job}").json()
    assert seen["state"] == "queued"
    assert seen["policy"] == {
        "kind": "no guarantee",
        "text": "no guarantee (approved by bea, otto)",
    }
    assert exceptions(world) == 1
    assert world.get(f"jobs/{job}/approval").json() == second


def test_one_person_twice_is_one_person(world: GatewayWorld) -> None:
    job, approval = asked(world)
    for _ in range(3):
        assert decide(world, approval, "otto").status_code == 201
    assert world.job_state(job) == "awaiting_approval"
    assert decide(world, approval, "otto", "reject").json()["code"] == "conflict"


def test_nobody_approves_their_own(world: GatewayWorld) -> None:
    job, approval = asked(world, who="olga")
    answer = decide(world, approval, "olga")
    assert (answer.status_code, answer.json()["code"]) == (403, "separation_of_duty")
    decide(world, approval, "otto")
    assert world.job_state(job) == "awaiting_approval"


@pytest.mark.parametrize(
    ("who", "code"),
    [("paul", "forbidden"), ("ann", "forbidden"), ("oscar", "not_found"), ("petra", "forbidden")],
)
def test_who_is_no_approver_decides_nothing(world: GatewayWorld, who: str, code: str) -> None:
    job, approval = asked(world)
    assert decide(world, approval, who).json()["code"] == code
    assert decide(world, approval, who, "reject").json()["code"] == code
    assert world.job_state(job) == "awaiting_approval"


def test_one_rejection_ends_it(world: GatewayWorld) -> None:
    job, approval = asked(world)
    decide(world, approval, "otto")
    assert decide(world, approval, "olga", "reject").json()["state"] == "rejected"
    seen = world.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "rejected")
    assert decide(world, approval, "bea").json()["code"] == "conflict"
    world.tick()
    assert (world.launcher.orders, exceptions(world)) == ([], 0)


def test_nobody_decides_too_late(world: GatewayWorld) -> None:
    job, approval = asked(world)
    decide(world, approval, "otto")
    world.clock.forward(8 * 86_400)
    assert decide(world, approval, "bea").json()["code"] == "expired"
    world.tick()
    seen = world.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "expired")
    assert world.get(f"approvals/{approval}").json()["state"] == "expired"


def test_an_approval_is_for_this_request_alone(world: GatewayWorld) -> None:
    job, approval = asked(world)
    changed = update(jobs).where(jobs.c.id == job).values(request='{"kind": "fit"}')
    world.gateway.write(lambda connection: connection.execute(changed))
    assert decide(world, approval, "otto").json()["code"] == "conflict"
    _, other = asked_again(world)
    assert other != approval


def asked_again(world: GatewayWorld) -> tuple[str, str]:
    answer = world.submit(UNLIMITED, key="another-key").json()
    return answer["id"], answer["approval"]


def test_what_exceeds_a_grant_waits_and_counts_against_the_joint_budget(
    world: GatewayWorld,
) -> None:
    body = fit(target_epsilon=4.0)
    shown = world.post("plans", body).json()
    assert (shown["admitted"], shown["needs_approval"]) == (True, "exceeds_grant")
    assert shown["share_of_grant"] > 1 > shown["share_of_budget"]
    assert shown["fitting_epsilon"] < 4.0
    before = world.entries()
    job, approval = asked(world, body)
    assert world.entries() == before
    decide(world, approval, "otto")
    decide(world, approval, "olga")
    assert world.job_state(job) == "queued"
    (held,) = job_statements(world.gateway.engine, world.gateway.seal_key, NAMESPACE)
    assert (held.job, held.grants) == (job, ())


def test_an_approved_job_without_room_fails(world: GatewayWorld) -> None:
    job, approval = asked(world, fit(target_epsilon=4.0))
    for number in range(9):
        world.submit(fit(target_epsilon=3.0), "olga", f"meanwhile-{number}")
    decide(world, approval, "otto")
    decide(world, approval, "olga")
    seen = world.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "budget_exceeded")
    assert "nothing was spent" in seen["failure"]["text"]
    world.tick()
    assert job not in {order.job_id for order in world.launcher.orders}


def test_a_crash_after_the_second_approval_is_made_good(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, approval = asked(world)
    decide(world, approval, "otto")
    with monkeypatch.context() as crash:
        crash.setattr(type(world.services.jobs), "advance", lambda self, job_id: None)
        decide(world, approval, "bea")
    assert world.job_state(job) == "awaiting_approval"
    world.restart()
    world.tick()
    assert world.job_state(job) in ("queued", "provisioning")
    assert exceptions(world) == 1


def withdraw(world: GatewayWorld, approval: str, who: str, comment: str | None = None) -> Any:
    return world.post(f"approvals/{approval}/withdrawals", {"comment": comment}, who)


def test_a_yes_is_taken_back_and_given_again(world: GatewayWorld) -> None:
    job, approval = asked(world)
    world.post(f"approvals/{approval}/decisions", {"decision": "approve", "comment": "go"}, "otto")
    for _ in range(2):
        found = withdraw(world, approval, "otto", "another model was meant").json()
        assert (found["state"], found["approved_by"]) == ("open", [])
        (said,) = found["decisions"]
        assert (said["approver"], said["decision"]) == ("otto", "withdrawn")
        assert said["comment"] == "another model was meant"
    decide(world, approval, "bea")
    assert world.job_state(job) == "awaiting_approval"
    world.tick()
    assert (world.launcher.orders, exceptions(world)) == ([], 0)
    assert decide(world, approval, "otto").json()["state"] == "used"
    assert world.job_state(job) == "queued"


def test_a_yes_that_was_taken_back_may_become_a_no(world: GatewayWorld) -> None:
    job, approval = asked(world)
    decide(world, approval, "otto")
    withdraw(world, approval, "otto")
    assert decide(world, approval, "otto", "reject").json()["state"] == "rejected"
    assert world.job_state(job) == "failed"


def test_only_ones_own_yes_is_taken_back_and_only_until_it_is_used(world: GatewayWorld) -> None:
    job, approval = asked(world)
    decide(world, approval, "otto")
    for who, code in (("bea", "conflict"), ("olga", "conflict"), ("petra", "forbidden")):
        assert withdraw(world, approval, who).json()["code"] == code
    assert withdraw(world, approval, "oscar").json()["code"] == "not_found"
    decide(world, approval, "bea")
    refused = withdraw(world, approval, "otto").json()
    assert (refused["code"], "is used" in refused["detail"]) == ("conflict", True)
    assert world.get(f"approvals/{approval}").json()["approved_by"] == ["bea", "otto"]
    assert (world.job_state(job), exceptions(world)) == ("queued", 1)


def test_a_yes_that_was_taken_back_before_a_crash_is_made_good_holds_and_records_nothing(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, approval = asked(world)
    decide(world, approval, "otto")
    with monkeypatch.context() as late:
        late.setattr(type(world.services.jobs), "advance", lambda self, job_id: None)
        decide(world, approval, "bea")
    real, before = type(world.services.jobs)._advance_decided, world.entries()

    def meanwhile(self: Any, row: Any) -> None:
        assert withdraw(world, approval, "otto").json()["state"] == "open"
        real(self, row)

    with monkeypatch.context() as late:
        late.setattr(type(world.services.jobs), "_advance_decided", meanwhile)
        world.tick()
    assert (world.job_state(job), world.entries()) == ("awaiting_approval", before)
    decide(world, approval, "otto")
    assert world.job_state(job) == "queued"


def test_an_approver_sees_what_they_approve(world: GatewayWorld) -> None:
    body = fit(target_epsilon=4.0, purpose="a poster for the retreat")
    shown = world.post("plans", body).json()
    _, approval = asked(world, body)
    found = world.get(f"approvals/{approval}", "otto").json()
    assert {name: found[name] for name in ("kind", "dataset", "model", "purpose")} == {
        "kind": "fit",
        "dataset": "phee",
        "model": body["model"],
        "purpose": "a poster for the retreat",
    }
    assert (found["epsilon"], found["delta"]) == (shown["epsilon"], shown["delta"])
    assert found["steps"] == shown["plan"]["steps"]
    assert found["left"] == 1.0
    assert found["left_after"] == pytest.approx(1 - shown["share_of_budget"])
    listed = world.get("approvals", "otto").json()["items"][0]
    for name in ("model", "epsilon", "left", "left_after", "budget_epsilon"):
        assert listed[name] == found[name]
    assert listed["epsilon_taken"] is None
    world.post(f"approvals/{approval}/decisions", {"decision": "approve", "comment": "ok"}, "otto")
    world.clock.forward(60)
    decide(world, approval, "olga")
    spent = world.get("budgets/patients", "olga").json()
    assert 1 - spent["taken"] == pytest.approx(found["left_after"])
    said = world.get(f"approvals/{approval}", "ann").json()["decisions"]
    assert [(each["approver"], each["comment"]) for each in said] == [
        ("otto", "ok"),
        ("olga", None),
    ]


def test_what_an_unlike_job_would_leave_is_what_it_leaves(world: GatewayWorld) -> None:
    world.spend(world.add_job("fit"), ["user:paul"], steps=150)
    _, approval = asked(world, fit(target_epsilon=4.0))
    found = world.get(f"approvals/{approval}", "otto").json()
    assert found["left_after"] < found["left"]
    for who in ("otto", "olga"):
        decide(world, approval, who)
    budget = world.get("budgets/patients", "olga").json()
    assert 1 - budget["taken"] == pytest.approx(found["left_after"], abs=1e-9)
    decided = world.get(f"approvals/{approval}", "otto").json()
    assert (decided["state"], decided["left"], decided["left_after"]) == ("used", None, None)


def test_without_a_guarantee_the_budget_stays_as_it_is(world: GatewayWorld) -> None:
    _, approval = asked(world)
    found = world.get(f"approvals/{approval}", "otto").json()
    assert (found["epsilon"], found["steps"] > 0) == (None, True)
    assert (found["left"], found["left_after"]) == (1.0, 1.0)


def test_who_sees_which_approvals(world: GatewayWorld) -> None:
    _, approval = asked(world)
    for who, seen in (
        ("paul", True),
        ("olga", True),
        ("otto", True),
        ("bea", True),
        ("ann", True),
        ("petra", False),
        ("oscar", False),
    ):
        assert world.get(f"approvals/{approval}", who).is_success is seen
        items = world.get("approvals?state=open", who).json()["items"]
        assert [item["id"] for item in items] == [approval] * seen


def test_a_cancelled_job_leaves_no_open_approval(world: GatewayWorld) -> None:
    job, approval = asked(world)
    assert world.post(f"jobs/{job}/cancel").json()["state"] == "cancelled"
    assert world.get(f"approvals/{approval}").json()["state"] == "expired"
    assert decide(world, approval, "otto").json()["code"] == "expired"

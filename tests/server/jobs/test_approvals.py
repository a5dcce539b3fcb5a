"""Two people, neither of them the asker, for exactly this request, once, in time."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from gateways.world import NAMESPACE, fit
from taciturn.server.ledger import job_statements, statement
from taciturn.server.schema.tables import jobs
from ward import Ward

UNLIMITED = fit(target_epsilon="unlimited")


def asked(ward: Ward, body: dict[str, Any] | None = None, who: str = "paul") -> tuple[str, str]:
    """A job that waits, and its approval."""
    answer = ward.ask(body or UNLIMITED, who)
    assert answer.json()["state"] == "awaiting_approval", answer.text
    return answer.json()["id"], answer.json()["approval"]


def decide(ward: Ward, approval: str, who: str, decision: str = "approve") -> Any:
    return ward.post(f"approvals/{approval}/decisions", {"decision": decision}, who)


def exceptions(ward: Ward) -> int:
    return statement(ward.gateway.engine, ward.gateway.seal_key, NAMESPACE).exceptions


def test_without_a_guarantee_two_people_approve(ward: Ward) -> None:
    assert ward.post("plans", UNLIMITED).json()["needs_approval"] == "no_guarantee"
    job, approval = asked(ward)
    ward.tick()
    assert ward.launcher.orders == []
    first = decide(ward, approval, "otto")
    assert (first.status_code, first.json()["state"]) == (201, "open")
    ward.tick()
    assert (ward.state(job), ward.launcher.orders, exceptions(ward)) == ("awaiting_approval", [], 0)
    second = decide(ward, approval, "bea").json()
    assert (second["state"], second["approved_by"]) == ("used", ["bea", "otto"])
    seen = ward.get(f"jobs/{job}").json()
    assert seen["state"] == "queued"
    assert seen["policy"] == {
        "kind": "no guarantee",
        "text": "no guarantee (approved by bea, otto)",
    }
    assert exceptions(ward) == 1
    assert ward.get(f"jobs/{job}/approval").json() == second


def test_one_person_twice_is_one_person(ward: Ward) -> None:
    job, approval = asked(ward)
    for _ in range(3):
        assert decide(ward, approval, "otto").status_code == 201
    assert ward.state(job) == "awaiting_approval"
    assert decide(ward, approval, "otto", "reject").json()["code"] == "conflict"


def test_nobody_approves_their_own(ward: Ward) -> None:
    job, approval = asked(ward, who="olga")
    answer = decide(ward, approval, "olga")
    assert (answer.status_code, answer.json()["code"]) == (403, "separation_of_duty")
    decide(ward, approval, "otto")
    assert ward.state(job) == "awaiting_approval"


@pytest.mark.parametrize(
    ("who", "code"),
    [("paul", "forbidden"), ("ann", "forbidden"), ("oscar", "not_found"), ("petra", "forbidden")],
)
def test_who_is_no_approver_decides_nothing(ward: Ward, who: str, code: str) -> None:
    job, approval = asked(ward)
    assert decide(ward, approval, who).json()["code"] == code
    assert decide(ward, approval, who, "reject").json()["code"] == code
    assert ward.state(job) == "awaiting_approval"


def test_one_rejection_ends_it(ward: Ward) -> None:
    job, approval = asked(ward)
    decide(ward, approval, "otto")
    assert decide(ward, approval, "olga", "reject").json()["state"] == "rejected"
    seen = ward.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "rejected")
    assert decide(ward, approval, "bea").json()["code"] == "conflict"
    ward.tick()
    assert (ward.launcher.orders, exceptions(ward)) == ([], 0)


def test_nobody_decides_too_late(ward: Ward) -> None:
    job, approval = asked(ward)
    decide(ward, approval, "otto")
    ward.watch.forward(8 * 86_400)
    assert decide(ward, approval, "bea").json()["code"] == "expired"
    ward.tick()
    seen = ward.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "expired")
    assert ward.get(f"approvals/{approval}").json()["state"] == "expired"


def test_an_approval_is_for_this_request_alone(ward: Ward) -> None:
    job, approval = asked(ward)
    changed = update(jobs).where(jobs.c.id == job).values(request='{"kind": "fit"}')
    ward.gateway.write(lambda connection: connection.execute(changed))
    assert decide(ward, approval, "otto").json()["code"] == "conflict"
    _, other = asked_again(ward)
    assert other != approval


def asked_again(ward: Ward) -> tuple[str, str]:
    answer = ward.ask(UNLIMITED, key="another-key").json()
    return answer["id"], answer["approval"]


def test_what_exceeds_a_grant_waits_and_counts_against_the_joint_budget(ward: Ward) -> None:
    body = fit(target_epsilon=4.0)
    shown = ward.post("plans", body).json()
    assert (shown["admitted"], shown["needs_approval"]) == (True, "exceeds_grant")
    assert shown["share_of_grant"] > 1 > shown["share_of_budget"]
    assert shown["fitting_epsilon"] < 4.0
    before = ward.entries()
    job, approval = asked(ward, body)
    assert ward.entries() == before
    decide(ward, approval, "otto")
    decide(ward, approval, "olga")
    assert ward.state(job) == "queued"
    (held,) = job_statements(ward.gateway.engine, ward.gateway.seal_key, NAMESPACE)
    assert (held.job, held.grants) == (job, ())


def test_an_approved_job_without_room_fails(ward: Ward) -> None:
    job, approval = asked(ward, fit(target_epsilon=4.0))
    for number in range(9):
        ward.ask(fit(target_epsilon=3.0), "olga", f"meanwhile-{number}")
    decide(ward, approval, "otto")
    decide(ward, approval, "olga")
    seen = ward.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "budget_exceeded")
    assert "nothing was spent" in seen["failure"]["text"]
    ward.tick()
    assert job not in {order.job_id for order in ward.launcher.orders}


def test_a_crash_after_the_second_approval_is_made_good(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, approval = asked(ward)
    decide(ward, approval, "otto")
    with monkeypatch.context() as crash:
        crash.setattr(type(ward.services.jobs), "advance", lambda self, job_id: None)
        decide(ward, approval, "bea")
    assert ward.state(job) == "awaiting_approval"
    ward.restarted()
    ward.tick()
    assert ward.state(job) in ("queued", "provisioning")
    assert exceptions(ward) == 1


def withdraw(ward: Ward, approval: str, who: str, comment: str | None = None) -> Any:
    return ward.post(f"approvals/{approval}/withdrawals", {"comment": comment}, who)


def test_a_yes_is_taken_back_and_given_again(ward: Ward) -> None:
    job, approval = asked(ward)
    ward.post(f"approvals/{approval}/decisions", {"decision": "approve", "comment": "go"}, "otto")
    for _ in range(2):
        found = withdraw(ward, approval, "otto", "another model was meant").json()
        assert (found["state"], found["approved_by"]) == ("open", [])
        (said,) = found["decisions"]
        assert (said["approver"], said["decision"]) == ("otto", "withdrawn")
        assert said["comment"] == "another model was meant"
    decide(ward, approval, "bea")
    assert ward.state(job) == "awaiting_approval"
    ward.tick()
    assert (ward.launcher.orders, exceptions(ward)) == ([], 0)
    assert decide(ward, approval, "otto").json()["state"] == "used"
    assert ward.state(job) == "queued"


def test_a_yes_that_was_taken_back_may_become_a_no(ward: Ward) -> None:
    job, approval = asked(ward)
    decide(ward, approval, "otto")
    withdraw(ward, approval, "otto")
    assert decide(ward, approval, "otto", "reject").json()["state"] == "rejected"
    assert ward.state(job) == "failed"


def test_only_ones_own_yes_is_taken_back_and_only_until_it_is_used(ward: Ward) -> None:
    job, approval = asked(ward)
    decide(ward, approval, "otto")
    for who, code in (("bea", "conflict"), ("olga", "conflict"), ("petra", "forbidden")):
        assert withdraw(ward, approval, who).json()["code"] == code
    assert withdraw(ward, approval, "oscar").json()["code"] == "not_found"
    decide(ward, approval, "bea")
    refused = withdraw(ward, approval, "otto").json()
    assert (refused["code"], "is used" in refused["detail"]) == ("conflict", True)
    assert ward.get(f"approvals/{approval}").json()["approved_by"] == ["bea", "otto"]
    assert (ward.state(job), exceptions(ward)) == ("queued", 1)


def test_a_yes_that_was_taken_back_before_a_crash_is_made_good_holds_and_records_nothing(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, approval = asked(ward)
    decide(ward, approval, "otto")
    with monkeypatch.context() as late:
        late.setattr(type(ward.services.jobs), "advance", lambda self, job_id: None)
        decide(ward, approval, "bea")
    real, before = type(ward.services.jobs)._advance_decided, ward.entries()

    def meanwhile(self: Any, row: Any) -> None:
        assert withdraw(ward, approval, "otto").json()["state"] == "open"
        real(self, row)

    with monkeypatch.context() as late:
        late.setattr(type(ward.services.jobs), "_advance_decided", meanwhile)
        ward.tick()
    assert (ward.state(job), ward.entries()) == ("awaiting_approval", before)
    decide(ward, approval, "otto")
    assert ward.state(job) == "queued"


def test_an_approver_sees_what_they_approve(ward: Ward) -> None:
    body = fit(target_epsilon=4.0, purpose="a poster for the retreat")
    shown = ward.post("plans", body).json()
    _, approval = asked(ward, body)
    found = ward.get(f"approvals/{approval}", "otto").json()
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
    listed = ward.get("approvals", "otto").json()["items"][0]
    assert (listed["model"], listed["epsilon"], listed["left"]) == (
        body["model"],
        shown["epsilon"],
        None,
    )
    ward.post(f"approvals/{approval}/decisions", {"decision": "approve", "comment": "ok"}, "otto")
    ward.watch.forward(60)
    decide(ward, approval, "olga")
    spent = ward.get("budgets/patients", "olga").json()
    assert 1 - spent["taken"] == pytest.approx(found["left_after"])
    said = ward.get(f"approvals/{approval}", "ann").json()["decisions"]
    assert [(each["approver"], each["comment"]) for each in said] == [
        ("otto", "ok"),
        ("olga", None),
    ]


def test_without_a_guarantee_the_budget_stays_as_it_is(ward: Ward) -> None:
    _, approval = asked(ward)
    found = ward.get(f"approvals/{approval}", "otto").json()
    assert (found["epsilon"], found["steps"] > 0) == (None, True)
    assert (found["left"], found["left_after"]) == (1.0, 1.0)


def test_who_sees_which_approvals(ward: Ward) -> None:
    _, approval = asked(ward)
    for who, seen in (
        ("paul", True),
        ("olga", True),
        ("otto", True),
        ("bea", True),
        ("ann", True),
        ("petra", False),
        ("oscar", False),
    ):
        assert ward.get(f"approvals/{approval}", who).is_success is seen
        items = ward.get("approvals?state=open", who).json()["items"]
        assert [item["id"] for item in items] == [approval] * seen


def test_a_cancelled_job_leaves_no_open_approval(ward: Ward) -> None:
    job, approval = asked(ward)
    assert ward.post(f"jobs/{job}/cancel").json()["state"] == "cancelled"
    assert ward.get(f"approvals/{approval}").json()["state"] == "expired"
    assert decide(ward, approval, "otto").json()["code"] == "expired"

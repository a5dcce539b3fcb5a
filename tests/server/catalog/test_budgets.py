"""Balances and books: what people see of them is what the ledger has."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text

from support.gateway import GatewayWorld, gaussian_steps, refused
from taciturn.server.ledger import Anchor, statement, verify


def spent(world: GatewayWorld) -> None:
    """A namespace with two grants, one of which was drawn on."""
    world.ready()
    world.grant("user:paul")
    world.grant("group:cardio")
    world.spend("job-1", ["user:paul"])
    world.gateway.ledger.record_exception("op-x", "patients", "job-9", approvals=["a", "b"])


def pages(world: GatewayWorld, path: str, limit: int, who: str = "ann") -> list[Any]:
    """Everything in a list, page by page."""
    found: list[Any] = []
    cursor = ""
    while True:
        page = world.ask(who, "GET", f"{path}?limit={limit}{cursor}").json()
        assert len(page["items"]) <= limit
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


def test_a_balance_is_the_ledgers(world: GatewayWorld) -> None:
    spent(world)
    found = statement(world.gateway.engine, world.gateway.seal_key, "patients")
    shown = world.ask("olga", "GET", "/budgets/patients").json()
    assert (shown["epsilon"], shown["charged"]) == (8.0, found.budget.charged)
    assert shown["taken"] > 0
    assert shown["exceptions"] == 1
    assert {grant["holder"]: grant["charged"] for grant in shown["grants"]} == {
        "group:cardio": 0.0,
        "user:paul": found.grants["user:paul"].charged,
    }
    assert world.ask("ann", "GET", "/budgets").json()["items"] == [shown]


def test_a_practitioner_sees_the_joint_balance_and_their_own(lite: GatewayWorld) -> None:
    spent(lite)
    shown = lite.ask("petra", "GET", "/budgets/patients").json()
    assert shown["charged"] > 0
    assert [grant["holder"] for grant in shown["grants"]] == ["group:cardio"]
    refused(lite.ask("oscar", "GET", "/budgets/patients"), 404, "not_found")
    assert lite.ask("oscar", "GET", "/budgets").json()["items"] == []
    refused(lite.ask("adam", "GET", "/budgets/patients"), 403, "forbidden")


def test_entries_are_the_chain_by_pages(world: GatewayWorld) -> None:
    spent(world)
    found = pages(world, "/ledger/patients/entries", 3)
    assert [entry["sequence"] for entry in found] == list(range(1, len(found) + 1))
    assert found[0]["previous"] == "0" * 64
    assert all(a["digest"] == b["previous"] for a, b in pairwise(found))
    kinds = [entry["details"]["kind"] for entry in found]
    assert kinds[:3] == ["opened", "granted", "granted"]
    assert kinds[-1] == "excepted"
    assert pages(world, "/ledger/patients/entries", 200, "olga") == found


def test_jobs_say_what_they_took_and_what_they_cost(world: GatewayWorld) -> None:
    spent(world)
    world.spend("job-2", [], steps=3)
    found = pages(world, "/ledger/patients/jobs", 1)
    assert [job["job"] for job in found] == ["job-1", "job-2"]
    report = world.ask("olga", "GET", "/ledger/patients/jobs/job-1").json()
    assert report["charged"] == found[0]["charged"] > 0
    assert 0 < report["epsilon"] < 8
    assert report["delta"] == 1e-6
    refused(world.ask("olga", "GET", "/ledger/patients/jobs/none"), 404, "not_found")


def test_a_job_of_another_namespace_is_not_found_here(lite: GatewayWorld) -> None:
    spent(lite)
    lite.ready("oscar", name="b", source="/b.csv", namespace="oscars")
    answer = lite.ask("oscar", "GET", "/ledger/oscars/jobs/job-1")
    nothing = lite.ask("oscar", "GET", "/ledger/oscars/jobs/job-7")
    refused(answer, 404, "not_found")
    assert answer.json()["detail"] == nothing.json()["detail"].replace("job-7", "job-1")


@pytest.mark.parametrize("path", ["entries", "jobs", "jobs/job-1"])
def test_books_are_for_owner_and_auditor(lite: GatewayWorld, path: str) -> None:
    spent(lite)
    lite.grant("user:oscar")
    for who, status, code in (
        ("paul", 403, "forbidden"),
        ("adam", 403, "forbidden"),
        ("oscar", 404, "not_found"),  # a grant does not show the books
    ):
        refused(lite.ask(who, "GET", f"/ledger/patients/{path}"), status, code)
    refused(lite.ask("ann", "GET", "/ledger/none/entries"), 404, "not_found")


def test_a_ledger_in_order_is_verified_and_anchored(world: GatewayWorld) -> None:
    spent(world)
    anchors = world.ask("ann", "GET", "/ledger/anchors")
    assert "taciturn-anchors.json" in anchors.headers["content-disposition"]
    kept = [Anchor(**each) for each in anchors.json()]
    assert verify(world.gateway.engine, key=world.gateway.seal_key, anchors=kept).ok
    asked = {"anchors": anchors.json()}
    found = world.ask("ann", "POST", "/ledger/verifications", asked).json()
    assert (found["ok"], found["namespaces"], found["anchors_checked"]) == (True, 1, 1)
    assert found["seals_checked"]
    assert found["entries"] == anchors.json()[0]["entries"]


def test_an_edited_balance_is_found_and_used_by_nobody(lite: GatewayWorld) -> None:
    spent(lite)
    with lite.gateway.engine.begin() as connection:
        connection.execute(text("UPDATE ledger_accounts SET epsilon = 80"))
    for who in ("ann", "olga"):
        found = lite.ask(who, "POST", "/ledger/verifications", {}).json()
        assert not found["ok"]
        assert any(problem["namespace"] == "patients" for problem in found["problems"])
    answer = lite.ask("paul", "GET", "/budgets/patients")
    assert answer.status_code == 503
    assert answer.json()["code"] == "ledger_tampered"


def test_an_owner_hears_of_their_own_namespaces(lite: GatewayWorld) -> None:
    spent(lite)
    lite.ready("oscar", name="b", source="/b.csv", namespace="oscars")
    with lite.gateway.engine.begin() as connection:
        connection.execute(text("UPDATE ledger_grants SET epsilon = 80"))
    mine = lite.ask("oscar", "POST", "/ledger/verifications", {}).json()
    assert "patients" not in json.dumps(mine)
    assert [each["namespace"] for each in mine["anchors"]] == ["oscars"]
    assert (mine["namespaces"], mine["entries"]) == (1, 1)
    refused(lite.ask("paul", "POST", "/ledger/verifications", {}), 403, "forbidden")
    refused(lite.ask("paul", "GET", "/ledger/anchors"), 403, "forbidden")


def test_one_verification_at_a_time(lite: GatewayWorld) -> None:
    spent(lite)
    with lite.services.ledger_view._verifying:
        answer = lite.ask("ann", "POST", "/ledger/verifications", {})
    refused(answer, 429, "too_many_requests")
    assert answer.headers["retry-after"] == "60"


def test_an_anchor_from_elsewhere_is_missed(lite: GatewayWorld) -> None:
    spent(lite)
    asked = {"anchors": [{"namespace": "gone", "entries": 3, "head": "0" * 64}]}
    assert not lite.ask("ann", "POST", "/ledger/verifications", asked).json()["ok"]
    for bad in ({"namespace": "x", "entries": 0, "head": "0" * 64}, {"namespace": "x"}):
        answer = lite.ask("ann", "POST", "/ledger/verifications", {"anchors": [bad]})
        refused(answer, 422, "invalid")


def test_lists_go_by_pages(lite: GatewayWorld) -> None:
    for index in range(7):
        lite.ready(name=f"d{index}", source=f"/d{index}.csv", namespace=f"n{index % 3}")
    for path, key, count in (("/datasets", "name", 7), ("/policies", "namespace", 3),
                             ("/budgets", "namespace", 3)):  # fmt: skip
        for limit in (1, 2, 7, 200):
            names = [item[key] for item in pages(lite, path, limit)]
            assert names == sorted(set(names))
            assert len(names) == count
        assert pages(lite, path, 2, "otto") == []
        for bad in ("limit=0", "limit=201", "cursor=x", "cursor=MQ", "cursor=bnVsbA"):
            refused(lite.ask("ann", "GET", f"{path}?{bad}"), 422, "invalid")


def test_when_a_block_is_charged_is_the_owners_to_see(world: GatewayWorld) -> None:
    spent(world)
    book, event = world.gateway.ledger, gaussian_steps(10)
    book.reserve(
        "r-2", "job-2", namespace="patients", grants=["group:cardio"], event=event, hold_s=60
    )
    lease = book.acquire("a-2", "job-2", worker="w", lease_s=60)
    before = world.ask("petra", "GET", "/budgets/patients").json()
    grant = world.ask("petra", "GET", "/policies/patients/grants").json()
    owners = world.ask("olga", "GET", "/budgets/patients").json()
    for block in range(2):
        book.charge(f"c-{block}", "job-2", lease.token, gaussian_steps(4))
        assert world.ask("petra", "GET", "/budgets/patients").json() == before
        assert world.ask("petra", "GET", "/policies/patients/grants").json() == grant
        seen = world.ask("olga", "GET", "/budgets/patients").json()
        assert seen["charged"] > owners["charged"]
        assert seen["grants"] != owners["grants"]
        owners = seen
    book.commit("e-2", "job-2", lease.token)
    assert world.ask("petra", "GET", "/budgets/patients").json()["charged"] == owners["charged"]

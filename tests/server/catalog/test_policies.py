"""Policies: terms change by their owner, in order, and in step with the ledger."""

from __future__ import annotations

from typing import Any

import pytest

from support.gateway import BUDGET, GatewayWorld, refused
from taciturn.server.catalog.policies import Policy
from taciturn.server.ledger import Ledger, entries, statement

TERMS = {"budget": BUDGET}


def put(world: GatewayWorld, terms: dict[str, Any], version: int = 1, who: str = "olga") -> Any:
    path = "/policies/patients"
    return world.ask(who, "PUT", path, terms, If_Match=f'"{version}"')


def cap(world: GatewayWorld) -> tuple[float, float]:
    found = statement(world.gateway.engine, world.gateway.seal_key, "patients").budget
    return found.epsilon, found.delta


def kinds(world: GatewayWorld) -> list[str]:
    found = entries(world.gateway.engine, "patients", after=0, limit=100)
    return [entry.details.kind for entry in found]


def policy(world: GatewayWorld) -> Policy:
    found = world.gateway.read(
        lambda connection: world.services.policies.find(connection, "patients")
    )
    assert found is not None
    return found


def test_terms_change_and_the_ledger_hears_of_it(world: GatewayWorld) -> None:
    world.ready()
    read = world.ask("olga", "GET", "/policies/patients")
    assert read.headers["etag"] == '"1"'
    assert (read.json()["version"], read.json()["owner"]) == (1, "olga")
    terms = {"budget": {"epsilon": 4, "delta": 1e-6}, "job_epsilon": 2, "models": ["a/*"]}
    answer = put(world, {**terms, "kinds": ["fit"], "expires_at": "2027-01-01T00:00:00+02:00"})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    assert answer.json()["expires_at"] == "2026-12-31T22:00:00Z"
    assert cap(world) == (4, 1e-6)
    assert kinds(world) == ["opened", "capped"]
    assert put(world, {**terms, "kinds": []}, 2).json()["version"] == 3
    assert kinds(world) == ["opened", "capped"]  # the budget is as it was


def test_nobodys_change_is_lost(world: GatewayWorld) -> None:
    world.ready()
    mine, theirs = {**TERMS, "models": ["a"]}, {**TERMS, "models": ["b"]}
    assert put(world, mine).status_code == 200
    assert "version 2, not 1" in refused(put(world, theirs), 412, "precondition_failed")
    assert put(world, mine).json()["version"] == 2  # repeated, since the answer was lost
    refused(put(world, mine, 7), 412, "precondition_failed")
    bare = world.ask("olga", "PUT", "/policies/patients", mine)
    refused(bare, 428, "precondition_missing")
    bad = world.ask("olga", "PUT", "/policies/patients", mine, If_Match="*")
    refused(bad, 422, "invalid")
    assert policy(world).terms.models == ("a",)


@pytest.mark.parametrize("after", ["the row", "the ledger"])
def test_a_crash_in_between_is_made_good(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    world.ready()
    real = Ledger.set_cap

    def killed(self: Ledger, *args: Any, **named: Any) -> Any:
        if after == "the ledger":
            real(self, *args, **named)
        raise ConnectionError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "set_cap", killed)
        assert put(world, {"budget": {"epsilon": 4, "delta": 1e-6}}).status_code == 500
    assert not policy(world).settled
    world.services.policies.resume()
    assert policy(world).settled
    assert cap(world) == (4, 1e-6)
    assert kinds(world) == ["opened", "capped"]


def test_no_version_overtakes_one_that_the_ledger_lacks(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow first change must not land after a second one."""
    world.ready()
    late: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "set_cap", lambda *args, **named: late.append((args, named)) or 1 / 0)
        put(world, {"budget": {"epsilon": 4, "delta": 1e-6}})
    assert put(world, {"budget": {"epsilon": 6, "delta": 1e-6}}, 2).status_code == 200
    (args, named) = late[0]
    Ledger.set_cap(*args, **named)  # it lands after all, and changes nothing
    assert cap(world) == (6, 1e-6)
    assert kinds(world) == ["opened", "capped", "capped"]


def test_an_account_without_a_policy_is_taken_over(world: GatewayWorld) -> None:
    """The opener has crashed, and never comes back."""
    world.gateway.ledger.open_account("op-1", "patients", epsilon=3, delta=1e-7)
    world.ready()
    assert cap(world) == (8, 1e-6)
    assert policy(world).settled


def test_opening_again_with_another_budget_is_refused(lite: GatewayWorld) -> None:
    lite.ready()
    other = {"name": "b", "source": "/b.csv", "budget": {"epsilon": 9, "delta": 1e-6}}
    assert "without a budget" in refused(lite.register(**other), 409, "conflict")
    assert cap(lite) == (8, 1e-6)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"budget": {"epsilon": 8, "delta": 0.001}}, "below 1/units"),
        ({"budget": {"epsilon": 8, "delta": 0.9}}, "delta"),
        ({"budget": {"epsilon": 0.01, "delta": 1e-300}}, "delta"),
        ({**TERMS, "job_epsilon": 9}, "whole budget"),
        ({**TERMS, "approvers": ["user:nobody", "user:oscar"]}, "user nobody"),
        ({**TERMS, "approvers": ["group:none"]}, "group none"),
        ({**TERMS, "approvers": ["user:oscar"]}, "two have to approve"),
        ({**TERMS, "approvers": ["user:paul", "user:petra"]}, "two have to approve"),
        ({**TERMS, "approvers": ["oscar"]}, "approvers"),
        ({**TERMS, "expires_at": "9999-12-31T23:59:59-14:00"}, "year"),
        ({**TERMS, "kinds": ["steal"]}, "kinds"),
        ({**TERMS, "surprise": 1}, "surprise"),
    ],
)
def test_terms_that_cannot_be_are_refused(
    lite: GatewayWorld, terms: dict[str, Any], words: str
) -> None:
    lite.ready()
    assert words in refused(put(lite, terms), 422, "invalid")
    assert policy(lite).version == 1
    assert kinds(lite) == ["opened"]


def test_two_owners_or_a_group_of_them_may_approve(lite: GatewayWorld) -> None:
    lite.ready()
    for approvers in (["user:olga", "user:oscar"], ["group:board", "user:oscar"], []):
        answer = put(lite, {**TERMS, "approvers": approvers}, policy(lite).version)
        assert answer.json()["approvers"] == approvers


def test_who_sees_and_who_changes(world: GatewayWorld) -> None:
    world.ready()
    for who in ("paul", "oscar"):
        refused(world.ask(who, "GET", "/policies/patients"), 404, "not_found")
        assert world.ask(who, "GET", "/policies").json()["items"] == []
    refused(put(world, TERMS, who="oscar"), 404, "not_found")
    refused(put(world, TERMS, who="paul"), 403, "forbidden")
    refused(put(world, TERMS, who="ann"), 403, "forbidden")
    world.grant()
    world.grant("user:oscar")
    for who in ("olga", "oscar", "paul", "ann"):
        assert world.ask(who, "GET", "/policies/patients").status_code == 200
        assert len(world.ask(who, "GET", "/policies").json()["items"]) == 1
    refused(put(world, TERMS, who="oscar"), 403, "forbidden")
    assert policy(world).version == 1
    refused(world.ask("olga", "GET", "/policies/none"), 404, "not_found")

"""Grants: sub-caps that owners give, change and revoke, in step with the ledger."""

from __future__ import annotations

from typing import Any

import pytest

from support.gateway import GatewayWorld, gaussian_steps, refused
from taciturn.errors import BudgetExceededError
from taciturn.server.identity.namespace_access import live_holders
from taciturn.server.ledger import Ledger, statement

PATH = "/policies/patients/grants/user:paul"
TERMS = {"epsilon": 2.0, "delta": 1e-6}


def usable(world: GatewayWorld, who: str) -> str | None:
    caller = world.principal(who)
    now_ms = world.gateway.now_ms()
    holders = world.gateway.read(
        lambda connection: live_holders(connection, caller, "patients", now_ms)
    )
    return next(iter(holders), None)


def sub_cap(world: GatewayWorld, holder: str = "user:paul") -> tuple[float, float]:
    found = statement(world.gateway.engine, world.gateway.seal_key, "patients")
    return found.grants[holder].epsilon, found.grants[holder].delta


def test_a_grant_is_given_changed_revoked_and_given_again(world: GatewayWorld) -> None:
    world.ready()
    assert usable(world, "paul") is None
    made = world.ask("olga", "PUT", PATH, TERMS).json()
    assert (made["holder"], made["epsilon"], made["charged"]) == ("user:paul", 2.0, 0.0)
    assert usable(world, "paul") == "user:paul"
    world.spend("job-1", ["user:paul"])
    spent = world.ask("paul", "GET", PATH).json()
    assert spent["charged"] == spent["taken"] > 0
    assert world.ask("olga", "PUT", PATH, {**TERMS, "epsilon": 4}).json()["epsilon"] == 4
    assert sub_cap(world) == (4, 1e-6)
    assert world.ask("olga", "DELETE", PATH).status_code == 204
    assert world.ask("olga", "DELETE", PATH).status_code == 204
    revoked = world.ask("olga", "GET", PATH).json()
    assert revoked["revoked_at"] is not None
    assert revoked["charged"] > 0  # spent stays spent
    assert usable(world, "paul") is None
    again = world.ask("olga", "PUT", PATH, {**TERMS, "epsilon": 4}).json()
    assert (again["revoked_at"], again["charged"]) == (None, revoked["charged"])
    assert usable(world, "paul") == "user:paul"


def test_a_sub_cap_holds(world: GatewayWorld) -> None:
    world.ready()
    world.grant(epsilon=0.5)
    with pytest.raises(BudgetExceededError, match="user:paul"):
        world.gateway.ledger.reserve(
            "r-1", "job-1", namespace="patients", grants=["user:paul"],
            event=gaussian_steps(500), hold_s=60,
        )  # fmt: skip


def test_it_expires(lite: GatewayWorld) -> None:
    lite.ready()
    lite.grant(expires_at="2026-03-01T13:00:00")
    assert usable(lite, "paul") == "user:paul"
    lite.clock.forward(minutes=60)
    assert usable(lite, "paul") is None
    refused(lite.ask("paul", "GET", PATH), 404, "not_found")


def test_ones_own_grant_comes_before_the_groups(lite: GatewayWorld) -> None:
    lite.ready()
    lite.grant("group:cardio")
    assert usable(lite, "petra") == "group:cardio"
    lite.grant("user:petra")
    assert usable(lite, "petra") == "user:petra"
    assert usable(lite, "paul") is None


@pytest.mark.parametrize("after", ["the row", "the ledger"])
def test_a_grant_is_not_live_before_the_ledger_has_it(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    world.ready()
    real = Ledger.set_grant

    def killed(self: Ledger, *args: Any, **named: Any) -> Any:
        if after == "the ledger":
            real(self, *args, **named)
        raise ConnectionError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "set_grant", killed)
        assert world.ask("olga", "PUT", PATH, TERMS).status_code == 500
    assert usable(world, "paul") is None
    refused(world.ask("paul", "GET", "/datasets/phee"), 404, "not_found")
    if after == "the row":
        world.services.grants.resume()
    else:
        world.ask("olga", "PUT", PATH, TERMS)
    assert usable(world, "paul") == "user:paul"
    assert sub_cap(world) == (2, 1e-6)


@pytest.mark.parametrize(
    ("holder", "terms", "words"),
    [
        ("user:nobody", TERMS, "user nobody"),
        ("group:none", TERMS, "group none"),
        ("paul", TERMS, "holder"),
        ("user:paul", {**TERMS, "epsilon": 8.5}, "more than the joint budget"),
        ("user:paul", {**TERMS, "delta": 2e-6}, "more than the joint budget"),
        ("user:paul", {**TERMS, "epsilon": 0}, "epsilon"),
        ("user:paul", {"epsilon": 0.01, "delta": 1e-300}, "delta"),
        ("user:paul", {**TERMS, "expires_at": "0001-01-01T00:00:00"}, "year"),
    ],
)
def test_grants_that_cannot_be_are_refused(
    lite: GatewayWorld, holder: str, terms: dict[str, Any], words: str
) -> None:
    lite.ready()
    answer = lite.ask("olga", "PUT", f"/policies/patients/grants/{holder}", terms)
    assert words in refused(answer, 422, "invalid")
    assert lite.ask("olga", "GET", "/policies/patients/grants").json()["items"] == []
    assert statement(lite.gateway.engine, lite.gateway.seal_key, "patients").grants == {}


def test_who_sees_whose_and_who_gives(world: GatewayWorld) -> None:
    world.ready()
    for holder in ("user:paul", "group:cardio", "user:oscar"):
        world.grant(holder)

    def seen(who: str) -> list[str]:
        found = world.ask(who, "GET", "/policies/patients/grants").json()
        return [grant["holder"] for grant in found["items"]]

    everything = ["group:cardio", "user:oscar", "user:paul"]
    assert (seen("olga"), seen("ann")) == (everything, everything)
    assert (seen("paul"), seen("petra")) == (["user:paul"], ["group:cardio"])
    assert seen("oscar") == ["user:oscar"]
    refused(world.ask("petra", "GET", PATH), 404, "not_found")
    for who, status, code in (
        ("paul", 403, "forbidden"), ("ann", 403, "forbidden"), ("adam", 403, "forbidden"),
        ("oscar", 403, "forbidden"),
    ):  # fmt: skip
        refused(world.ask(who, "PUT", PATH, {**TERMS, "epsilon": 7}), status, code)
        refused(world.ask(who, "DELETE", PATH), status, code)
    assert sub_cap(world) == (2, 1e-6)
    assert usable(world, "paul") == "user:paul"
    world.ask("olga", "DELETE", "/policies/patients/grants/user:oscar")
    refused(world.ask("oscar", "PUT", PATH, TERMS), 404, "not_found")
    refused(world.ask("olga", "DELETE", "/policies/patients/grants/user:x"), 404, "not_found")

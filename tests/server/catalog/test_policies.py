"""Policies: terms change by their owner, in order, and in step with the ledger."""

from __future__ import annotations

from typing import Any

import pytest

from hospital import BUDGET, Hospital, refused
from taciturn.server.catalog.policies import Policy
from taciturn.server.ledger import Ledger, entries, statement
from taciturn.wire.identity import Role

TERMS = {"budget": BUDGET}


def put(hospital: Hospital, terms: dict[str, Any], version: int = 1, who: str = "olga") -> Any:
    path = "/policies/patients"
    return hospital.ask(who, "PUT", path, terms, If_Match=f'"{version}"')


def cap(hospital: Hospital) -> tuple[float, float]:
    found = statement(hospital.gateway.engine, hospital.gateway.seal_key, "patients").budget
    return found.epsilon, found.delta


def kinds(hospital: Hospital) -> list[str]:
    found = entries(hospital.gateway.engine, "patients", after=0, limit=100)
    return [entry.details.kind for entry in found]


def policy(hospital: Hospital) -> Policy:
    found = hospital.gateway.read(
        lambda connection: hospital.services.policies.find(connection, "patients")
    )
    assert found is not None
    return found


def test_terms_change_and_the_ledger_hears_of_it(hospital: Hospital) -> None:
    hospital.ready()
    read = hospital.ask("olga", "GET", "/policies/patients")
    assert read.headers["etag"] == '"1"'
    assert (read.json()["version"], read.json()["owner"]) == (1, "olga")
    terms = {"budget": {"epsilon": 4, "delta": 1e-6}, "job_epsilon": 2, "models": ["a/*"]}
    answer = put(hospital, {**terms, "kinds": ["fit"], "expires_at": "2027-01-01T00:00:00+02:00"})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    assert answer.json()["expires_at"] == "2026-12-31T22:00:00Z"
    assert cap(hospital) == (4, 1e-6)
    assert kinds(hospital) == ["opened", "capped"]
    assert put(hospital, {**terms, "kinds": []}, 2).json()["version"] == 3
    assert kinds(hospital) == ["opened", "capped"]  # the budget is as it was


def test_nobodys_change_is_lost(hospital: Hospital) -> None:
    hospital.ready()
    mine, theirs = {**TERMS, "models": ["a"]}, {**TERMS, "models": ["b"]}
    assert put(hospital, mine).status_code == 200
    assert "version 2, not 1" in refused(put(hospital, theirs), 412, "precondition_failed")
    assert put(hospital, mine).json()["version"] == 2  # repeated, since the answer was lost
    refused(put(hospital, mine, 7), 412, "precondition_failed")
    bare = hospital.ask("olga", "PUT", "/policies/patients", mine)
    refused(bare, 428, "precondition_missing")
    bad = hospital.ask("olga", "PUT", "/policies/patients", mine, If_Match="*")
    refused(bad, 422, "invalid")
    assert policy(hospital).terms.models == ("a",)


@pytest.mark.parametrize("after", ["the row", "the ledger"])
def test_a_crash_in_between_is_made_good(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    hospital.ready()
    real = Ledger.set_cap

    def killed(self: Ledger, *args: Any, **named: Any) -> Any:
        if after == "the ledger":
            real(self, *args, **named)
        raise ConnectionError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "set_cap", killed)
        assert put(hospital, {"budget": {"epsilon": 4, "delta": 1e-6}}).status_code == 500
    assert not policy(hospital).settled
    hospital.services.policies.resume()
    assert policy(hospital).settled
    assert cap(hospital) == (4, 1e-6)
    assert kinds(hospital) == ["opened", "capped"]


def test_no_version_overtakes_one_that_the_ledger_lacks(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow first change must not land after a second one."""
    hospital.ready()
    late: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "set_cap", lambda *args, **named: late.append((args, named)) or 1 / 0)
        put(hospital, {"budget": {"epsilon": 4, "delta": 1e-6}})
    assert put(hospital, {"budget": {"epsilon": 6, "delta": 1e-6}}, 2).status_code == 200
    (args, named) = late[0]
    Ledger.set_cap(*args, **named)  # it lands after all, and changes nothing
    assert cap(hospital) == (6, 1e-6)
    assert kinds(hospital) == ["opened", "capped", "capped"]


def test_an_account_without_a_policy_is_taken_over(hospital: Hospital) -> None:
    """The opener has crashed, and never comes back."""
    hospital.gateway.ledger.open_account("op-1", "patients", epsilon=3, delta=1e-7)
    hospital.ready()
    assert cap(hospital) == (8, 1e-6)
    assert policy(hospital).settled


def test_opening_again_with_another_budget_is_refused(clinic: Hospital) -> None:
    clinic.ready()
    other = {"name": "b", "source": "/b.csv", "budget": {"epsilon": 9, "delta": 1e-6}}
    assert "without a budget" in refused(clinic.register(**other), 409, "conflict")
    assert cap(clinic) == (8, 1e-6)


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
    clinic: Hospital, terms: dict[str, Any], words: str
) -> None:
    clinic.ready()
    assert words in refused(put(clinic, terms), 422, "invalid")
    assert policy(clinic).version == 1
    assert kinds(clinic) == ["opened"]


def test_two_owners_or_a_group_of_them_may_approve(clinic: Hospital) -> None:
    clinic.ready()
    clinic.add("otto", Role.OWNER, groups=["board"])
    for approvers in (["user:olga", "user:oscar"], ["group:board", "user:oscar"], []):
        answer = put(clinic, {**TERMS, "approvers": approvers}, policy(clinic).version)
        assert answer.json()["approvers"] == approvers


def test_who_sees_and_who_changes(hospital: Hospital) -> None:
    hospital.ready()
    for who in ("paul", "oscar"):
        refused(hospital.ask(who, "GET", "/policies/patients"), 404, "not_found")
        assert hospital.ask(who, "GET", "/policies").json()["items"] == []
    refused(put(hospital, TERMS, who="oscar"), 404, "not_found")
    refused(put(hospital, TERMS, who="paul"), 403, "forbidden")
    refused(put(hospital, TERMS, who="ann"), 403, "forbidden")
    hospital.grant()
    hospital.grant("user:oscar")
    for who in ("olga", "oscar", "paul", "ann"):
        assert hospital.ask(who, "GET", "/policies/patients").status_code == 200
        assert len(hospital.ask(who, "GET", "/policies").json()["items"]) == 1
    refused(put(hospital, TERMS, who="oscar"), 403, "forbidden")
    assert policy(hospital).version == 1
    refused(hospital.ask("olga", "GET", "/policies/none"), 404, "not_found")

"""Policies and grants by forms: what REST does and refuses, and consequences in words before."""

from __future__ import annotations

import html

import pytest

from support.console import look, send
from support.gateway import GatewayWorld
from taciturn.wire.jobs import JobKind

PATH = "/policies/patients"
TERMS = {
    "version": "1",
    "epsilon": "8",
    "delta": "1e-6",
    "job_epsilon": "",
    "models": "*",
    "kinds": [kind.value for kind in JobKind if kind is not JobKind.PROBE],
    "approvers": "user:otto\ngroup:board",
    "expires_at": "",
    "job_hours": "",
    "reset_wait_h": "24",
}
GRANT = {"holder": "user:petra", "epsilon": "2", "delta": "1e-6", "expires_at": ""}


def terms(world: GatewayWorld) -> dict[str, object]:
    view: dict[str, object] = world.get("policies/patients", "olga").json()
    return view


@pytest.mark.parametrize(
    ("who", "status"),
    [("olga", 200), ("paul", 200), ("ann", 200), ("petra", 404), ("oscar", 404), ("adam", 403)],
)
def test_terms_are_shown_to_those_who_may_read_them(
    console: GatewayWorld, who: str, status: int
) -> None:
    answer = look(console, who, PATH)
    assert answer.status_code == status
    assert ("Put these terms in force" in answer.text) == (who == "olga")
    assert ('name="holder"' in answer.text) == (who == "olga")
    assert ('<th scope="row">paul' in answer.text) == (status == 200)


@pytest.mark.parametrize(("who", "status"), [("paul", 403), ("ann", 403), ("oscar", 404)])
def test_others_change_nothing(console: GatewayWorld, who: str, status: int) -> None:
    before = terms(console)
    for end, fields in (
        ("", TERMS),
        ("/consequences", TERMS),
        ("/grants", GRANT),
        ("/grants/consequences", GRANT),
        ("/grants/revocations", {"holder": "user:paul"}),
    ):
        assert send(console, who, PATH + end, **fields).status_code == status, end
    assert terms(console) == before


def test_a_form_that_nobody_changed_changes_nothing(console: GatewayWorld) -> None:
    before = terms(console)
    answer = send(console, "olga", f"{PATH}/consequences", **TERMS)
    assert "Nothing changes" in answer.text
    assert send(console, "olga", PATH, **TERMS).headers["hx-redirect"] == PATH
    after = terms(console)
    for name in ("version", "updated_at"):
        before.pop(name), after.pop(name)
    assert after == before


def test_every_term_is_set_and_said_in_words_before(console: GatewayWorld) -> None:
    changes = {
        "epsilon": "10",
        "job_epsilon": "3",
        "models": "taciturn/*",
        "kinds": ["fit", "sample"],
        "approvers": "",
        "expires_at": "2027-01-31T12:00",
        "job_hours": "5",
        "reset_wait_h": "48",
    }
    before = console.entries()
    answer = send(console, "olga", f"{PATH}/consequences", **(TERMS | changes))
    for words in (
        "rises from epsilon 8",
        "weaker",
        "more than epsilon 3 is refused",
        "taciturn/*",
        "any more: audit, evaluate, synthesize",
        "refused at once",
        ">2027-01-31 at 12:00 UTC</time> on no job starts",
        "after 5 hours fails",
        "waits 48 hours",
    ):
        assert words in answer.text, words
    assert console.entries() == before, "nothing was changed"
    assert send(console, "olga", PATH, **(TERMS | changes)).headers["hx-redirect"] == PATH
    view = terms(console)
    assert view["budget"] == {"epsilon": 10.0, "delta": 1e-6}
    assert (view["job_epsilon"], view["job_hours"], view["reset_wait_h"]) == (3, 5, 48)
    assert (view["kinds"], view["approvers"]) == (["probe", "fit", "sample"], [])
    assert str(view["expires_at"]).startswith("2027-01-31T12:00:00")
    lower = TERMS | {"version": "2", "epsilon": "4"}
    answer = send(console, "olga", f"{PATH}/consequences", **lower)
    assert "falls from epsilon 10" in answer.text


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"version": "7"}, 412, "version"),
        ({"epsilon": "none"}, 422, "epsilon"),
        ({"delta": "0.9"}, 422, "delta"),
        ({"job_epsilon": "9"}, 422, "job_epsilon"),
        ({"kinds": ["dance"]}, 422, "kinds"),
        ({"approvers": "user:otto"}, 422, "two"),
        ({"approvers": "<b>"}, 422, "approvers"),
        ({"expires_at": "tomorrow"}, 422, "is no time"),
        ({"job_hours": "-1"}, 422, "job_hours"),
        ({"reset_wait_h": "1e9"}, 422, "reset_wait_h"),
    ],
)
def test_terms_that_rest_refuses_are_refused(
    console: GatewayWorld, changes: dict[str, object], status: int, word: str
) -> None:
    before = terms(console)
    answer = send(console, "olga", PATH, **(TERMS | changes))
    assert answer.status_code == status, answer.text
    assert word in html.unescape(answer.text)
    assert "<b>&" not in answer.text
    assert terms(console) == before


def test_a_grant_is_given_changed_and_revoked(console: GatewayWorld) -> None:
    assert look(console, "petra", "/datasets/phee").status_code == 404
    answer = send(console, "olga", f"{PATH}/grants/consequences", **GRANT)
    assert "petra may start jobs" in answer.text
    assert "ends when you revoke it" in answer.text
    assert look(console, "petra", "/datasets/phee").status_code == 404, "nothing was given"
    assert send(console, "olga", f"{PATH}/grants", **GRANT).headers["hx-redirect"] == PATH
    page = look(console, "petra", "/datasets/phee").text
    assert "Budget left for you" in page
    assert "Your grant" in page
    later = GRANT | {"epsilon": "3", "expires_at": "2026-03-08T00:00"}
    answer = send(console, "olga", f"{PATH}/grants/consequences", **later)
    assert "Before, it was epsilon 2" in answer.text
    assert ">2026-03-08 at 00:00 UTC</time>; jobs" in answer.text
    send(console, "olga", f"{PATH}/grants", **later)
    grant = console.get("policies/patients/grants/user:petra", "olga").json()
    assert (grant["epsilon"], grant["expires_at"][:10]) == (3, "2026-03-08")
    form = look(console, "olga", f"{PATH}?holder=user:petra").text
    assert 'value="2026-03-08T00:00"' in form
    console.clock.forward(days=8)
    assert look(console, "petra", "/datasets/phee").status_code == 404
    assert "expired" in look(console, "olga", PATH).text
    send(console, "olga", f"{PATH}/grants", **GRANT)
    answer = send(console, "olga", f"{PATH}/grants/revocations", holder="user:petra")
    assert answer.headers["hx-redirect"] == PATH
    assert look(console, "petra", "/datasets/phee").status_code == 404
    assert "revoked" in look(console, "olga", PATH).text
    answer = send(console, "olga", f"{PATH}/grants/consequences", **GRANT)
    assert "is live again" in answer.text


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"holder": "petra"}, 422),
        ({"holder": "user:nobody"}, 422),
        ({"holder": "user:<b>"}, 422),
        ({"epsilon": "9"}, 422),
        ({"epsilon": ""}, 422),
        ({"delta": "1e-5"}, 422),
        ({"expires_at": "31.1.2027"}, 422),
    ],
)
def test_grants_that_rest_refuses_are_refused(
    console: GatewayWorld, changes: dict[str, str], status: int
) -> None:
    before = console.entries()
    answer = send(console, "olga", f"{PATH}/grants", **(GRANT | changes))
    assert answer.status_code == status, answer.text
    assert console.entries() == before
    assert (
        send(console, "olga", f"{PATH}/grants/revocations", holder="user:petra").status_code == 404
    )


def test_a_group_is_told_that_it_shares(console: GatewayWorld) -> None:
    fields = GRANT | {"holder": "group:team"}
    answer = send(console, "olga", f"{PATH}/grants/consequences", **fields)
    assert "Everybody in the group team" in answer.text
    assert "share this one grant" in answer.text

"""Passwords and sessions: limited, constant in time, cookies that scripts and sites can't use."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from reception import PASSWORD, Reception, bearer
from taciturn.server.database import open_database
from taciturn.server.identity.passwords import Passwords
from taciturn.wire.identity import Role


def login(reception: Reception, password: str = PASSWORD, name: str = "ada") -> Any:
    return reception.client.post("/v1/login", json={"name": name, "password": password})


def test_a_password_gets_a_token_that_lasts_as_long_as_a_session(reception: Reception) -> None:
    reception.person("ada", Role.OWNER, password=PASSWORD)
    mine = bearer(login(reception).json()["token"])
    assert reception.client.get("/v1/self", headers=mine).json()["name"] == "ada"
    reception.clock.forward(seconds=reception.gateway.settings.session_s + 1)
    assert reception.client.get("/v1/self", headers=mine).status_code == 401


def test_all_refusals_are_alike(desk: Reception) -> None:
    """A wrong password, an unknown name, a name without a password, a disabled one."""
    root = desk.person("root", Role.ADMIN)
    desk.person("ada", Role.OWNER, password=PASSWORD)
    desk.person("out", Role.OWNER, password=PASSWORD)
    desk.person("oidc", Role.OWNER)
    desk.client.patch("/v1/users/out", headers=root, json={"disabled": True})
    wrong = login(desk, "not the password")
    others = [login(desk, name=name) for name in ("nobody", "oidc", "out")]
    assert wrong.status_code == 401
    assert all(each.json() == wrong.json() for each in others)


def test_an_unknown_user_takes_as_long_as_a_wrong_password() -> None:
    passwords = Passwords()
    kept = passwords.hash(PASSWORD)
    passwords.prepare()

    def seconds(against: str | None) -> float:
        began = time.process_time()
        assert not passwords.matches("not the password", against)
        return time.process_time() - began

    known = min(seconds(kept) for _ in range(3))
    assert known / 2 < min(seconds(None) for _ in range(3)) < known * 2


def test_each_failure_beyond_the_limit_waits_twice_as_long(reception: Reception) -> None:
    reception.person("ada", Role.OWNER, password=PASSWORD)
    most = reception.gateway.settings.login_attempts
    assert [login(reception, "wrong").status_code for _ in range(most)] == [401] * most
    waits = []
    for _ in range(12):
        refused = login(reception)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        waits.append(int(refused.headers["Retry-After"]))
        reception.clock.forward(seconds=waits[-1])
        assert login(reception, "wrong").status_code == 401
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    reception.clock.forward(seconds=900)
    assert login(reception).status_code == 201
    assert login(reception, "wrong").status_code == 401
    assert login(reception).status_code == 201


def login_from(
    reception: Reception, address: str, password: str = PASSWORD, name: str = "ada"
) -> Any:
    """An attempt on ada, or somebody else, from some machine."""
    client = TestClient(reception.app, base_url="https://testserver", client=(address, 50_000))
    return client.post("/v1/login", json={"name": name, "password": password})


def test_wrong_passwords_by_one_name_keep_no_other_name_out(desk: Reception) -> None:
    """Ten from one address once kept out everybody behind it."""
    for name in ("ada", "bob"):
        desk.person(name, Role.OWNER, password=PASSWORD)
    for _ in range(2 * desk.gateway.settings.login_attempts):
        login(desk, "wrong", "ada")
    assert login(desk).status_code == 429
    assert login(desk, name="bob").status_code == 201


@pytest.fixture
def few(migrated_file: Path, tmp_path: Path) -> Iterator[Reception]:
    """A reception where two attempts are free."""
    shutil.copy(migrated_file, tmp_path / "few.db")
    engine = open_database(f"sqlite:///{tmp_path / 'few.db'}")
    yield Reception(engine, tmp_path, login_attempts=2)
    engine.dispose()


def test_guessing_many_names_from_one_address_waits_and_keeps_nobody_out_who_is_known_there(
    few: Reception,
) -> None:
    few.person("ada", Role.OWNER, password=PASSWORD)
    few.person("new", Role.OWNER, password=PASSWORD)
    assert login_from(few, "10.0.0.1").status_code == 201
    answers = [login_from(few, "10.0.0.1", "wrong", f"guess{n}").status_code for n in range(22)]
    assert answers == [401] * 20 + [429] * 2
    assert login_from(few, "10.0.0.1", name="new").status_code == 429
    # Who has come in from there before waits for their own failures alone.
    assert login_from(few, "10.0.0.1").status_code == 201
    few.clock.forward(seconds=1)
    assert login_from(few, "10.0.0.1", name="new").status_code == 201


def test_a_network_of_ipv6_is_one_address(few: Reception) -> None:
    few.person("ada", Role.OWNER, password=PASSWORD)
    answers = [login_from(few, f"2001:db8:1:2::{n}", "wrong").status_code for n in range(1, 4)]
    assert answers == [401, 401, 429]
    assert login_from(few, "2001:db8:1:3::1").status_code == 201


def test_a_stranger_keeps_nobody_out_of_their_own_machine(reception: Reception) -> None:
    reception.person("ada", Role.OWNER, password=PASSWORD)
    assert login_from(reception, "10.0.0.1").status_code == 201
    most = reception.gateway.settings.login_attempts
    assert [login_from(reception, "10.6.6.6", "wrong").status_code for _ in range(most + 1)] == [
        *[401] * most,
        429,
    ]
    assert login_from(reception, "10.0.0.1").status_code == 201
    assert login_from(reception, "10.0.0.2").status_code == 201


def test_many_machines_together_are_slowed_down_too(few: Reception) -> None:
    few.person("ada", Role.OWNER, password=PASSWORD)
    assert login_from(few, "10.0.0.1").status_code == 201
    answers = [login_from(few, f"10.6.6.{n}", "wrong").status_code for n in range(30)]
    assert answers == [401] * 20 + [429] * 10
    # Where ada has come in before she still does, and whoever guesses there has the usual tries.
    assert login_from(few, "10.0.0.1").status_code == 201
    assert [login_from(few, "10.0.0.1", "wrong").status_code for _ in range(3)] == [401, 401, 429]
    assert login_from(few, "10.0.0.9").status_code == 429
    few.clock.forward(seconds=3)
    assert login_from(few, "10.0.0.9").status_code == 429  # 22 have failed: 4 s
    few.clock.forward(seconds=2)
    assert login_from(few, "10.0.0.9").status_code == 201
    few.clock.forward(days=100)
    for n in range(20):
        login_from(few, f"10.7.7.{n}", "wrong")
    assert login_from(few, "10.0.0.1").status_code == 429  # not known there any more


def test_a_changed_password_ends_every_other_token(desk: Reception) -> None:
    ada = desk.person("ada", Role.OWNER, password=PASSWORD)
    other = bearer(login(desk).json()["token"])
    body = {"current": "not the password", "new": "another horse battery"}
    assert desk.client.put("/v1/self/password", headers=ada, json=body).status_code == 401
    body["current"] = PASSWORD
    assert desk.client.put("/v1/self/password", headers=ada, json=body).status_code == 204
    assert desk.client.get("/v1/self", headers=other).status_code == 401
    assert desk.client.get("/v1/self", headers=ada).is_success
    assert login(desk).status_code == 401
    assert login(desk, "another horse battery").status_code == 201


@pytest.fixture
def browser(desk: Reception) -> tuple[Reception, str]:
    """A browser that has logged in, and the value of its CSRF header."""
    desk.person("root", Role.ADMIN, password=PASSWORD)
    began = desk.client.post("/v1/sessions", json={"name": "root", "password": PASSWORD})
    return desk, began.json()["csrf"]


NEW = {"name": "eve", "roles": ["owner"]}


def test_a_session_reads_by_cookie_and_writes_with_the_header(
    browser: tuple[Reception, str],
) -> None:
    desk, csrf = browser
    assert desk.client.get("/v1/self").json()["name"] == "root"
    assert desk.client.get("/v1/sessions/current").json()["csrf"] == csrf
    made = desk.client.post("/v1/users", json=NEW, headers={"Taciturn-CSRF": csrf})
    assert made.status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Taciturn-CSRF": "0" * 64},
        {"Taciturn-CSRF": "CSRF", "Origin": "https://evil.example"},
        {"Taciturn-CSRF": "CSRF", "Origin": "null"},
        {"Taciturn-CSRF": "CSRF", "Origin": "http://[evil"},
        {"Taciturn-CSRF": "CSRF", "Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_a_forged_write_is_refused_and_does_not_run(
    browser: tuple[Reception, str], headers: dict[str, str]
) -> None:
    desk, csrf = browser
    sent = {name: csrf if value == "CSRF" else value for name, value in headers.items()}
    refused = desk.client.post("/v1/users", json=NEW, headers=sent)
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf")
    assert desk.client.get("/v1/users/eve").status_code == 404


def test_another_sites_page_cannot_log_a_browser_in(desk: Reception) -> None:
    desk.person("ada", Role.OWNER, password=PASSWORD)
    refused = desk.client.post(
        "/v1/sessions",
        json={"name": "ada", "password": PASSWORD},
        headers={"Origin": "https://evil.example"},
    )
    assert refused.json()["code"] == "csrf"
    assert "set-cookie" not in refused.headers


def test_logging_out_revokes_the_session(browser: tuple[Reception, str]) -> None:
    desk, csrf = browser
    kept = dict(desk.client.cookies)
    assert desk.client.post("/v1/logout", headers={"Taciturn-CSRF": csrf}).status_code == 204
    assert dict(desk.client.cookies) == {}
    desk.client.cookies.update(kept)
    assert desk.client.get("/v1/self").status_code == 401


def test_a_sessions_token_counts_in_its_cookie_only_and_no_other_does(
    browser: tuple[Reception, str],
) -> None:
    desk, _ = browser
    stolen = desk.client.cookies["taciturn"]
    desk.client.cookies.clear()
    assert desk.client.get("/v1/self", headers=bearer(stolen)).status_code == 401
    token = desk.person("ada", Role.OWNER)["Authorization"].split()[1]
    assert desk.client.get("/v1/self", headers={"Cookie": f"taciturn={token}"}).status_code == 401


@pytest.mark.parametrize("public_url", [None, "https://gateway.example"])
def test_cookies_are_hidden_from_scripts_and_for_https_where_it_is(
    desk: Reception, public_url: str | None
) -> None:
    from taciturn.server.identity.sessions import Sessions
    from taciturn.server.settings import Settings

    sessions = Sessions(Settings(public_url=public_url))
    object.__setattr__(desk.services, "sessions", sessions)
    desk.person("ada", Role.OWNER, password=PASSWORD)
    body = {"name": "ada", "password": PASSWORD}
    answer = desk.client.post("/v1/sessions", json=body)
    cookies: SimpleCookie = SimpleCookie()
    for line in answer.headers.get_list("set-cookie"):
        cookies.load(line)
    session, csrf = cookies[sessions.cookie], cookies[sessions.csrf_cookie]
    assert session["httponly"]
    assert not csrf["httponly"]
    for each in (session, csrf):
        assert each["samesite"] == "lax"
        assert each["path"] == "/"
        assert bool(each["secure"]) == (public_url is not None)
    assert session.key.startswith("__Host-") == (public_url is not None)

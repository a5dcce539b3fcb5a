"""Passwords and sessions: limited, constant in time, cookies that scripts and sites can't use."""

from __future__ import annotations

import time
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from support.client import Client
from support.gateway import PASSWORD, GatewayWorld, bearer
from taciturn.server.identity.passwords import Passwords
from taciturn.wire.identity import Role


def login(world: GatewayWorld, password: str = PASSWORD, name: str = "ada") -> Any:
    return world.client.post("/v1/login", json={"name": name, "password": password})


def test_a_password_gets_a_token_that_lasts_as_long_as_a_session(world: GatewayWorld) -> None:
    world.person("ada", Role.OWNER, password=PASSWORD)
    mine = bearer(login(world).json()["token"])
    assert world.client.get("/v1/self", headers=mine).json()["name"] == "ada"
    world.clock.forward(seconds=world.gateway.settings.session_s + 1)
    assert world.client.get("/v1/self", headers=mine).status_code == 401


def test_all_refusals_are_alike(lite: GatewayWorld) -> None:
    """A wrong password, an unknown name, a name without a password, a disabled one."""
    root = lite.person("root", Role.ADMIN)
    lite.person("ada", Role.OWNER, password=PASSWORD)
    lite.person("out", Role.OWNER, password=PASSWORD)
    lite.person("oidc", Role.OWNER)
    lite.client.patch("/v1/users/out", headers=root, json={"disabled": True})
    wrong = login(lite, "not the password")
    others = [login(lite, name=name) for name in ("nobody", "oidc", "out")]
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


def test_each_failure_beyond_the_limit_waits_twice_as_long(world: GatewayWorld) -> None:
    world.person("ada", Role.OWNER, password=PASSWORD)
    most = world.gateway.settings.login_attempts
    assert [login(world, "wrong").status_code for _ in range(most)] == [401] * most
    waits = []
    for _ in range(12):
        refused = login(world)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        waits.append(int(refused.headers["Retry-After"]))
        world.clock.forward(seconds=waits[-1])
        assert login(world, "wrong").status_code == 401
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    world.clock.forward(seconds=900)
    assert login(world).status_code == 201
    assert login(world, "wrong").status_code == 401
    assert login(world).status_code == 201


def login_from(
    world: GatewayWorld, address: str, password: str = PASSWORD, name: str = "ada"
) -> Any:
    """An attempt on ada, or somebody else, from some machine."""
    client = Client(world.app, base_url="https://testserver", client=(address, 50_000))
    return client.post("/v1/login", json={"name": name, "password": password})


def test_wrong_passwords_by_one_name_keep_no_other_name_out(lite: GatewayWorld) -> None:
    """Ten from one address once kept out everybody behind it."""
    for name in ("ada", "bob"):
        lite.person(name, Role.OWNER, password=PASSWORD)
    for _ in range(2 * lite.gateway.settings.login_attempts):
        login(lite, "wrong", "ada")
    assert login(lite).status_code == 429
    assert login(lite, name="bob").status_code == 201


@pytest.fixture
def few(lite_engine: Engine, tmp_path: Path) -> GatewayWorld:
    """A gateway where two attempts are free."""
    return GatewayWorld.open(lite_engine, tmp_path, login_attempts=2)


def test_guessing_many_names_from_one_address_waits_and_keeps_nobody_out_who_is_known_there(
    few: GatewayWorld,
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


def test_a_network_of_ipv6_is_one_address(few: GatewayWorld) -> None:
    few.person("ada", Role.OWNER, password=PASSWORD)
    answers = [login_from(few, f"2001:db8:1:2::{n}", "wrong").status_code for n in range(1, 4)]
    assert answers == [401, 401, 429]
    assert login_from(few, "2001:db8:1:3::1").status_code == 201


def test_a_stranger_keeps_nobody_out_of_their_own_machine(world: GatewayWorld) -> None:
    world.person("ada", Role.OWNER, password=PASSWORD)
    assert login_from(world, "10.0.0.1").status_code == 201
    most = world.gateway.settings.login_attempts
    assert [login_from(world, "10.6.6.6", "wrong").status_code for _ in range(most + 1)] == [
        *[401] * most,
        429,
    ]
    assert login_from(world, "10.0.0.1").status_code == 201
    assert login_from(world, "10.0.0.2").status_code == 201


def test_many_machines_together_are_slowed_down_too(few: GatewayWorld) -> None:
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


def test_a_changed_password_ends_every_other_token(lite: GatewayWorld) -> None:
    ada = lite.person("ada", Role.OWNER, password=PASSWORD)
    other = bearer(login(lite).json()["token"])
    body = {"current": "not the password", "new": "another horse battery"}
    assert lite.client.put("/v1/self/password", headers=ada, json=body).status_code == 401
    body["current"] = PASSWORD
    assert lite.client.put("/v1/self/password", headers=ada, json=body).status_code == 204
    assert lite.client.get("/v1/self", headers=other).status_code == 401
    assert lite.client.get("/v1/self", headers=ada).is_success
    assert login(lite).status_code == 401
    assert login(lite, "another horse battery").status_code == 201


@pytest.fixture
def browser(lite: GatewayWorld) -> tuple[GatewayWorld, str]:
    """A browser that has logged in, and the value of its CSRF header."""
    lite.person("root", Role.ADMIN, password=PASSWORD)
    began = lite.client.post("/v1/sessions", json={"name": "root", "password": PASSWORD})
    return lite, began.json()["csrf"]


NEW = {"name": "eve", "roles": ["owner"]}


def test_a_session_reads_by_cookie_and_writes_with_the_header(
    browser: tuple[GatewayWorld, str],
) -> None:
    world, csrf = browser
    assert world.client.get("/v1/self").json()["name"] == "root"
    assert world.client.get("/v1/sessions/current").json()["csrf"] == csrf
    made = world.client.post("/v1/users", json=NEW, headers={"Taciturn-CSRF": csrf})
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
    browser: tuple[GatewayWorld, str], headers: dict[str, str]
) -> None:
    world, csrf = browser
    sent = {name: csrf if value == "CSRF" else value for name, value in headers.items()}
    refused = world.client.post("/v1/users", json=NEW, headers=sent)
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf")
    assert world.client.get("/v1/users/eve").status_code == 404


def test_another_sites_page_cannot_log_a_browser_in(lite: GatewayWorld) -> None:
    lite.person("ada", Role.OWNER, password=PASSWORD)
    refused = lite.client.post(
        "/v1/sessions",
        json={"name": "ada", "password": PASSWORD},
        headers={"Origin": "https://evil.example"},
    )
    assert refused.json()["code"] == "csrf"
    assert "set-cookie" not in refused.headers


def test_logging_out_revokes_the_session(browser: tuple[GatewayWorld, str]) -> None:
    world, csrf = browser
    kept = dict(world.client.cookies)
    assert world.client.post("/v1/logout", headers={"Taciturn-CSRF": csrf}).status_code == 204
    assert dict(world.client.cookies) == {}
    world.client.cookies.update(kept)
    assert world.client.get("/v1/self").status_code == 401


def test_a_sessions_token_counts_in_its_cookie_only_and_no_other_does(
    browser: tuple[GatewayWorld, str],
) -> None:
    world, _ = browser
    stolen = world.client.cookies["taciturn"]
    world.client.cookies.clear()
    assert world.client.get("/v1/self", headers=bearer(stolen)).status_code == 401
    token = world.person("ada", Role.OWNER)["Authorization"].split()[1]
    assert world.client.get("/v1/self", headers={"Cookie": f"taciturn={token}"}).status_code == 401


@pytest.mark.parametrize("public_url", [None, "https://gateway.example"])
def test_cookies_are_hidden_from_scripts_and_for_https_where_it_is(
    lite: GatewayWorld, public_url: str | None
) -> None:
    from taciturn.server.identity.sessions import Sessions
    from taciturn.server.settings import Settings

    sessions = Sessions(Settings(public_url=public_url))
    object.__setattr__(lite.services, "sessions", sessions)
    lite.person("ada", Role.OWNER, password=PASSWORD)
    body = {"name": "ada", "password": PASSWORD}
    answer = lite.client.post("/v1/sessions", json=body)
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

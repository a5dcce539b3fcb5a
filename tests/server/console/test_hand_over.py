"""A program asks to act as somebody, who says yes or no in a browser."""

from __future__ import annotations

from typing import Any

import pytest

from support.console import look, send
from support.gateway import GatewayWorld, bearer
from taciturn.server.identity.login_requests import LIFETIME_MS, normal
from taciturn.server.identity.permissions import Action


def begin(world: GatewayWorld, host: str = "ada's laptop") -> dict[str, Any]:
    answer = world.client.post("/v1/login-requests", json={"host": host})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def ask(world: GatewayWorld, request: dict[str, Any]) -> Any:
    return world.client.post("/v1/login-requests/answers", json={"secret": request["secret"]})


def test_a_program_gets_a_token_once_somebody_has_said_yes(console: GatewayWorld) -> None:
    request = begin(console)
    path = f"/login-requests/{request['code']}"
    assert request["url"].endswith(path)
    assert ask(console, request).json() == {"state": "open", "token": None}
    page = look(console, "paul", path).text
    assert "Let a program on ada&#39;s laptop act as you?" in page
    assert request["code"] in page
    assert request["secret"] not in page
    assert send(console, "paul", f"{path}/answers", answer="allow").headers["hx-redirect"] == path
    assert "Allowed" in look(console, "paul", path).text
    token = ask(console, request).json()["token"]
    assert token["name"] == "login on ada's laptop"
    person = console.client.get("/v1/self", headers=bearer(token["token"])).json()
    assert person["name"] == "paul"
    again = ask(console, request)
    assert again.status_code == 401
    assert "was used" in again.json()["detail"]
    assert send(console, "petra", f"{path}/answers", answer="allow").status_code == 409


def test_who_says_no_lets_nobody_in(console: GatewayWorld) -> None:
    request = begin(console)
    path = f"/login-requests/{request['code']}"
    send(console, "paul", f"{path}/answers", answer="deny")
    assert "Denied" in look(console, "paul", path).text
    assert ask(console, request).json() == {"state": "denied", "token": None}
    assert send(console, "paul", f"{path}/answers", answer="allow").status_code == 409


def test_a_request_is_over_after_ten_minutes(console: GatewayWorld) -> None:
    request = begin(console)
    path = f"/login-requests/{request['code']}"
    console.clock.forward(LIFETIME_MS / 1000 + 1)
    assert ask(console, request).status_code == 401
    assert look(console, "paul", path).status_code == 404
    assert send(console, "paul", f"{path}/answers", answer="allow").status_code == 404


def test_a_secret_that_is_wrong_and_a_code_get_nothing(console: GatewayWorld) -> None:
    request = begin(console)
    for text in (request["code"], request["secret"] + "x", "tac_x"):
        answer = console.client.post("/v1/login-requests/answers", json={"secret": text})
        assert answer.status_code == 401


def test_a_token_of_little_makes_no_larger_one(console: GatewayWorld) -> None:
    request = begin(console)
    scoped = console.token(console.users["paul"], [Action.TOKENS_MANAGE, Action.JOBS_READ])
    path = f"/login-requests/{request['code']}/answers"
    headers = bearer(scoped) | {"HX-Request": "true"}
    answer = console.client.post(path, data={"answer": "allow"}, headers=headers)
    assert answer.status_code == 403
    assert ask(console, request).json()["state"] == "open"


def test_an_address_has_so_many_requests_open(console: GatewayWorld) -> None:
    for _ in range(20):
        begin(console)
    answer = console.client.post("/v1/login-requests", json={"host": "x"})
    assert answer.status_code == 429
    console.clock.forward(LIFETIME_MS / 1000 + 1)
    begin(console)


def test_who_is_locked_out_meanwhile_stays_out(console: GatewayWorld) -> None:
    request = begin(console)
    path = f"/login-requests/{request['code']}/answers"
    send(console, "paul", path, answer="allow")
    console.ask("adam", "PATCH", "/users/paul", {"disabled": True})
    token = ask(console, request).json()["token"]["token"]
    assert console.client.get("/v1/self", headers=bearer(token)).status_code == 401


def test_a_host_that_is_hostile_is_text(console: GatewayWorld) -> None:
    request = begin(console, "<script>alert(1)</script>")
    page = look(console, "paul", f"/login-requests/{request['code']}").text
    assert "<script>alert" not in page
    assert console.client.post("/v1/login-requests", json={"host": "a\nb"}).status_code == 422


@pytest.mark.parametrize("typed", ["bcdfghjk", " BCDF - GHJK ", "bcdf-ghjk"])
def test_a_code_is_read_however_it_was_typed(console: GatewayWorld, typed: str) -> None:
    assert normal(typed) == "BCDF-GHJK"
    answer = send(console, "paul", "/login-requests", code=typed)
    assert answer.headers["hx-redirect"] == "/login-requests/BCDF-GHJK"
    assert 'name="code"' in look(console, "paul", "/login-requests").text


def test_looks_without_an_answer_are_not_on_record(console: GatewayWorld) -> None:
    request = begin(console)
    ask(console, request)
    entries = console.ask("ann", "GET", "/audit-log").json()["items"]
    resources = [entry["resource"] for entry in entries]
    assert "/v1/login-requests" in resources
    assert "/v1/login-requests/answers" not in resources

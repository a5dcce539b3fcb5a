"""Approvals: what is shown before somebody decides, and what stays of it."""

from __future__ import annotations

import pytest

from support.console import look, send
from support.gateway import GatewayWorld, fit
from taciturn.server.console.rendering import rounded_up, share


def open_request(world: GatewayWorld, **fields: object) -> str:
    world.set_terms(approvers=["user:otto", "group:board"])
    job = world.submit(fit(**{"target_epsilon": "unlimited", **fields})).json()
    return f"/approvals/{job['approval']}"


def test_it_says_what_would_be_left_of_epsilon(console: GatewayWorld) -> None:
    path = open_request(console, target_epsilon=5, purpose="a larger model")
    page = look(console, "otto", path).text
    assert "more than their grant allows" in page
    assert "a larger model" in page
    view = console.ask("otto", "GET", path).json()
    assert (view["budget_epsilon"], view["left"], view["epsilon_taken"]) == (8.0, 1.0, 0.0)
    assert 5 <= view["epsilon_taken_after"] < 8
    assert f"After this, {share(view['left_after'])} of epsilon 8 are left." in page
    inbox = look(console, "otto", "/approvals").text
    assert f"{share(view['left_after'])} of 8<span" in inbox
    assert "after this; now 100%" in inbox
    assert f"to epsilon {rounded_up(view['epsilon_taken_after'])} together" in page


def test_without_a_guarantee_it_says_so(console: GatewayWorld) -> None:
    page = look(console, "otto", open_request(console)).text
    assert "The model may repeat private text" in page
    assert "100% of epsilon 8 are left, before and after." in page
    assert "No purpose was given. Ask paul before you decide." in page


def test_what_is_open_and_what_was_decided_are_apart(console: GatewayWorld) -> None:
    path = open_request(console)
    assert path in look(console, "otto", "/approvals").text
    assert path not in look(console, "otto", "/approvals?tab=decided").text
    send(console, "otto", f"{path}/decisions", decision="reject", comment="not for this")
    assert path not in look(console, "otto", "/approvals").text
    assert path in look(console, "otto", "/approvals?tab=decided").text
    page = look(console, "paul", path).text
    assert "One no is enough" in page
    assert "not for this" in page
    assert 'value="approve"' not in page
    decided = console.ask("paul", "GET", "/approvals?state=decided").json()["items"]
    assert [item["state"] for item in decided] == ["rejected"]


def test_who_has_approved_is_offered_to_take_it_back(console: GatewayWorld) -> None:
    path = open_request(console)
    send(console, "otto", f"{path}/decisions", decision="approve")
    page = look(console, "otto", path).text
    assert "Take my approval back" in page
    assert 'value="approve"' not in page
    assert "1 more person has to approve" in page
    send(console, "otto", f"{path}/withdrawals", comment="another model was meant")
    page = look(console, "otto", path).text
    assert "another model was meant" in page
    assert 'value="approve"' in page


def test_once_used_nothing_is_taken_back(console: GatewayWorld) -> None:
    path = open_request(console)
    for who in ("otto", "bea"):
        send(console, who, f"{path}/decisions", decision="approve")
    page = look(console, "otto", path).text
    assert "cannot be taken back any more" in page
    assert "Take my approval back" not in page
    assert send(console, "otto", f"{path}/withdrawals").status_code == 409


def test_a_request_ends_by_time_or_with_its_job(console: GatewayWorld) -> None:
    path = open_request(console)
    job = console.ask("paul", "GET", path).json()["job"]
    send(console, "paul", f"/jobs/{job}/cancellations")
    assert "The job was ended before two people had decided" in look(console, "otto", path).text
    job = console.submit(fit(target_epsilon="unlimited"), key="key-00002").json()
    path = f"/approvals/{job['approval']}"
    console.clock.forward(days=8)
    console.tick()
    assert "Nobody decided in time" in look(console, "otto", path).text
    assert send(console, "otto", f"{path}/decisions", decision="approve").status_code == 410


def test_a_form_is_refused_as_rest_refuses(console: GatewayWorld) -> None:
    path = open_request(console)
    for who, status in (("paul", 403), ("oscar", 404), ("ann", 403), ("adam", 403)):
        answer = send(console, who, f"{path}/decisions", decision="approve")
        assert answer.status_code == status
    long = send(console, "otto", f"{path}/decisions", decision="approve", comment="x" * 201)
    assert long.status_code == 422
    lines = send(console, "otto", f"{path}/decisions", decision="approve", comment="a\nb")
    assert lines.status_code == 422
    assert "comment" in lines.text


@pytest.mark.parametrize("who", ["oscar", "petra"])
def test_others_do_not_see_it(console: GatewayWorld, who: str) -> None:
    path = open_request(console)
    assert look(console, who, path).status_code == 404
    assert path not in look(console, who, "/approvals").text

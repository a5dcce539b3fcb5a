"""The page of one's own notifications: what it shows and never shows, and forms that work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import Engine

from support.console import look, send
from support.gateway import GatewayWorld
from support.receivers import receiver
from support.told import Told, told

PAGE = "/account/notifications"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"


@pytest.fixture
def mailing(lite_engine: Engine, tmp_path: Path) -> Told:
    """Where it sends mail, to a server that nobody asks."""
    return told(lite_engine, tmp_path, 25)


def test_each_role_chooses_among_what_concerns_it(console: GatewayWorld) -> None:
    for who, shown, hidden in (
        ("adam", "The launcher does not answer", "An approval waits for me"),
        ("olga", "An approval waits for me", "The launcher does not answer"),
        ("paul", "A job of mine is done", "50, 80 or 95"),
        ("ann", "An audit finds more", "A job of mine is done"),
    ):
        text = look(console, who, PAGE).text
        assert shown in text
        assert hidden not in text
        assert "This gateway sends no e-mail" in text
        assert f'href="{PAGE}"' in text


def test_the_grid_is_kept(mailing: Told) -> None:
    answer = send(mailing.world, "paul", f"{PAGE}/preferences", email=["job.failed"])
    assert answer.headers["HX-Redirect"] == PAGE
    text = look(mailing.world, "paul", PAGE).text
    ticked = set(re.findall(r'name="(email|webhook)" value="([^"]+)"[^>]* checked', text))
    assert ticked == {("email", "job.failed")}


def test_an_address_and_its_code(mailing: Told) -> None:
    world = mailing.world
    assert "olga@hospital.example" in look(world, "olga", PAGE).text
    answer = send(world, "olga", f"{PAGE}/address", address="not an address")
    assert (answer.status_code, answer.headers["HX-Retarget"]) == (422, "#notice")
    assert send(world, "olga", f"{PAGE}/address", address="o@h.example").status_code == 204
    assert "Code that was sent to o@h.example" in look(world, "olga", PAGE).text
    answer = send(world, "olga", f"{PAGE}/address/confirmations", code="AAAA-AAAA-AAAA")
    assert answer.status_code == 422
    assert send(world, "olga", f"{PAGE}/address/removals").status_code == 204
    assert "olga@hospital.example" not in look(world, "olga", PAGE).text


def test_a_receiver_from_its_secret_to_its_end(mailing: Told) -> None:
    world = mailing.world
    with receiver() as hook:
        answer = send(
            world, "paul", f"{PAGE}/endpoints", name=HOSTILE, url=hook.url, layout="teams"
        )
        assert "whsec_" in answer.text
        assert "<script" not in answer.text
        text = look(world, "paul", PAGE).text
        assert "whsec_" not in text
        assert "/hook?" not in text
        assert "<script>alert" not in text
        assert "49" not in re.findall(r"\{\{.*?\}\}", text)
        found = re.search(r"whk_[0-9a-z]{20}", text)
        assert found is not None
        assert send(world, "paul", f"{PAGE}/tests", endpoint=found[0]).status_code == 204
        assert "waiting" in look(world, "paul", PAGE).text
        mailing.turn()
        assert len(hook.arrivals) == 1
        assert "it answered 204" in look(world, "paul", PAGE).text
        second = send(world, "paul", f"{PAGE}/endpoints/{found[0]}/secrets")
        assert "signs too for a day" in second.text
        other = send(world, "olga", f"{PAGE}/endpoints/{found[0]}/removals")
        assert other.status_code == 404
        assert send(world, "paul", f"{PAGE}/endpoints/{found[0]}/removals").status_code == 204
        assert "No webhook yet" in look(world, "paul", PAGE).text


def test_a_private_address_is_refused_in_words(console: GatewayWorld) -> None:
    answer = send(console, "paul", f"{PAGE}/endpoints", name="x", url="http://127.0.0.1:1/")
    assert answer.status_code == 422
    assert "TACITURN_NOTIFICATION_NETWORKS" in answer.text

"""People choose what they are told, and where; nobody reads or changes what is another's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from support.gateway import refused
from support.receivers import Mailbox, Receiver, assert_signed
from support.told import Told, told
from taciturn.server.notifications.preferences import MOST_ENDPOINTS, MOST_TRIALS, MOST_TRIES
from taciturn.server.schema.tables import notification_endpoints, notifications


def code_in(mailbox: Mailbox) -> str:
    found = re.search(r"[A-Z0-9]{4}-[A-Z0-9]{4}-[A-Z0-9]{4}", mailbox.letters[-1].get_content())
    assert found is not None
    return found[0]


def test_an_address_counts_once_its_code_is_entered(mailing: Told, mailbox: Mailbox) -> None:
    view = mailing.ask("ann", "PUT", "/address", {"address": "new@hospital.example"}).json()
    assert (view["address"], view["pending_address"]) == (
        "ann@hospital.example",
        "new@hospital.example",
    )
    mailing.turn()
    assert mailbox.letters[-1]["To"] == "new@hospital.example"
    code = code_in(mailbox)
    kept = mailing.world.gateway.rows(select(notifications))
    assert code not in str(kept), "a copy of the database does not tell it"
    refused(mailing.ask("ann", "POST", "/address/confirmations", {"code": "AAAA"}), 422, "invalid")
    refused(mailing.ask("adam", "POST", "/address/confirmations", {"code": code}), 422, "invalid")
    view = mailing.ask("ann", "POST", "/address/confirmations", {"code": code.lower()}).json()
    assert (view["address"], view["pending_address"]) == ("new@hospital.example", None)
    refused(mailing.ask("ann", "POST", "/address/confirmations", {"code": code}), 422, "invalid")


def test_a_code_is_tried_so_often_and_for_a_day(mailing: Told, mailbox: Mailbox) -> None:
    for spoil in ("tries", "time"):
        mailing.ask("ann", "PUT", "/address", {"address": "new@hospital.example"})
        mailing.turn()
        if spoil == "tries":
            for _ in range(MOST_TRIES):
                mailing.ask("ann", "POST", "/address/confirmations", {"code": "WRONG"})
        else:
            mailing.world.clock.forward(days=1, seconds=1)
        answer = mailing.ask("ann", "POST", "/address/confirmations", {"code": code_in(mailbox)})
        refused(answer, 422, "invalid")


def test_codes_and_tests_are_not_sent_for_ever(mailing: Told, mailbox: Mailbox) -> None:
    for _ in range(MOST_TRIALS):
        assert mailing.ask("ann", "POST", "/tests", {}).status_code == 202
    refused(mailing.ask("ann", "POST", "/tests", {}), 429, "too_many_requests")
    new = {"address": "victim@elsewhere.example"}
    refused(mailing.ask("ann", "PUT", "/address", new), 429, "too_many_requests")
    mailing.turn()
    assert len(mailbox.letters) == MOST_TRIALS
    assert {letter["To"] for letter in mailbox.letters} == {"ann@hospital.example"}


def test_an_address_is_one_and_can_be_removed(mailing: Told, mailbox: Mailbox) -> None:
    for address in (
        "x",
        "a@b",
        "a@b.example\r\nBcc: c@d.example",
        "a b@c.example",
        "a@b.example,c@d.e",
    ):
        refused(mailing.ask("ann", "PUT", "/address", {"address": address}), 422, "invalid")
    assert mailing.ask("ann", "DELETE", "/address").status_code == 204
    refused(mailing.ask("ann", "POST", "/tests", {}), 409, "conflict")


def test_without_a_mail_server_there_is_no_mail(quiet: Told) -> None:
    view = quiet.ask("ann", "GET", "").json()
    assert view["mail"] is False
    refused(quiet.ask("ann", "PUT", "/address", {"address": "a@b.example"}), 409, "conflict")
    refused(quiet.ask("ann", "POST", "/tests", {}), 409, "conflict")


def test_a_secret_is_shown_once_and_a_url_never(quiet: Told, hook: Receiver) -> None:
    made = quiet.add("paul", hook)
    assert made["secret"].startswith("whsec_")
    assert made["host"] == "127.0.0.1"
    shown = quiet.ask("paul", "GET", "").text
    assert "whsec" not in shown
    assert "/hook" not in shown
    kept = str(quiet.world.gateway.rows(select(notification_endpoints)))
    assert made["secret"] not in kept
    assert "/hook" not in kept
    assert "whsec" not in str(quiet.world.recorded())


def test_after_a_change_both_secrets_sign_for_a_day(quiet: Told, hook: Receiver) -> None:
    first = quiet.add("paul", hook)
    second = quiet.ask("paul", "POST", f"/endpoints/{first['id']}/secrets").json()
    assert second["secret"] != first["secret"]
    for days in (0, 2):
        quiet.world.clock.forward(days=days)
        assert quiet.ask("paul", "POST", "/tests", {"endpoint": first["id"]}).status_code == 202
        quiet.turn()
        assert_signed(hook.arrivals[-1], second["secret"])
        n_signatures = len(hook.arrivals[-1].headers["webhook-signature"].split(" "))
        assert n_signatures == (2 if days == 0 else 1)


def test_what_is_another_s_is_not_there(quiet: Told, hook: Receiver) -> None:
    endpoint = quiet.add("paul", hook)["id"]
    for method, path, body in (
        ("POST", f"/endpoints/{endpoint}/secrets", None),
        ("DELETE", f"/endpoints/{endpoint}", None),
        ("POST", "/tests", {"endpoint": endpoint}),
    ):
        refused(quiet.ask("adam", method, path, body), 404, "not_found")
    assert quiet.ask("adam", "GET", "").json()["endpoints"] == []
    quiet.ask("paul", "POST", "/tests", {"endpoint": endpoint})
    assert quiet.deliveries("adam") == []


def test_a_removed_receiver_gets_nothing_more(quiet: Told, hook: Receiver) -> None:
    endpoint = quiet.add("paul", hook)["id"]
    quiet.ask("paul", "POST", "/tests", {"endpoint": endpoint})
    assert quiet.ask("paul", "DELETE", f"/endpoints/{endpoint}").status_code == 204
    quiet.turn()
    assert hook.arrivals == []
    assert quiet.states("paul") == ["test webhook dropped"]


def test_there_are_so_many_receivers(quiet: Told, hook: Receiver) -> None:
    for _ in range(MOST_ENDPOINTS):
        quiet.add("paul", hook)
    new = {"name": "more", "url": hook.url}
    refused(quiet.ask("paul", "POST", "/endpoints", new), 409, "conflict")


def test_private_addresses_are_for_the_operator_to_allow(
    lite_engine: Engine, tmp_path: Path, hook: Receiver
) -> None:
    here = told(lite_engine, tmp_path, None, notification_networks=())
    answer = here.ask("paul", "POST", "/endpoints", {"name": "x", "url": hook.url})
    assert "TACITURN_NOTIFICATION_NETWORKS" in refused(answer, 422, "invalid")
    assert hook.arrivals == []


def test_preferences_are_kept(quiet: Told) -> None:
    before: Any = quiet.ask("paul", "GET", "").json()["preferences"]
    assert all(choice["email"] and choice["webhook"] for choice in before)
    choice = {"kind": "grant.ends", "email": False, "webhook": True}
    after = quiet.ask("paul", "PUT", "/preferences", {"preferences": [choice]}).json()
    assert choice in after["preferences"]
    assert len(after["preferences"]) == len(before)

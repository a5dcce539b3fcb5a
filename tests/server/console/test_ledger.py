"""The ledger's pages: entries in words, checks, and who sees whose chain."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from sqlalchemy import text

from support.console import look, send
from support.gateway import NAMESPACE, GatewayWorld, fit
from support.statements import count_statements
from taciturn.server.console.oversight.ledger import in_words
from taciturn.wire.ledger import LedgerEntryView

PAGE = f"/ledger/{NAMESPACE}"


def test_entries_say_what_happened_in_words(console: GatewayWorld) -> None:
    console.running(fit(target_epsilon=1, steps=20))
    page = look(console, "ann", PAGE).text
    assert "The budget was opened with epsilon 8 at delta 1e-06." in page
    assert "paul may spend up to epsilon 4" in page
    assert "holds its whole plan of 20 steps in the budget, and in the grant of paul." in page
    assert "has a worker, which alone may spend from here on." in page


def test_every_kind_of_entry_has_words() -> None:
    details = (
        {"kind": "capped", "epsilon": 2.0, "delta": 1e-6},
        {"kind": "extended", "job": "job_1", "prices": [{"count": 1}]},
        {"kind": "charged", "job": "job_1"},
        {"kind": "closed", "job": "job_1", "reason": "committed"},
        {"kind": "excepted", "job": "job_1", "approvals": ["otto", "bea"]},
    )
    for value in details:
        entry = LedgerEntryView(
            namespace="n",
            sequence=1,
            operation_id="op",
            recorded_at=datetime(2026, 3, 1, tzinfo=UTC),
            details=value,
            previous="0" * 64,
            digest="1" * 64,
        )
        line = in_words(entry)
        assert "does not know" not in line.text
        assert line.text.endswith(".")
    unknown = entry.model_copy(update={"details": {"kind": "later"}})
    assert "does not know" in in_words(unknown).text


def test_entries_are_paged_from_the_newest_back(console: GatewayWorld) -> None:
    for number in range(60):
        console.gateway.ledger.set_grant(
            f"op-{number}", NAMESPACE, f"user:{number:03}", epsilon=1.0, delta=1e-6
        )
    newest = look(console, "ann", PAGE).text
    assert "059 may spend" in newest
    assert "was opened" not in newest
    older = look(console, "ann", f"{PAGE}?before=13").text
    assert "was opened" in older
    assert "059 may" not in older
    assert "Show the newest entries" in look(console, "ann", f"{PAGE}?before=1").text
    assert look(console, "ann", f"{PAGE}?before=0").status_code == 422


def test_one_chain_is_checked_by_itself(console: GatewayWorld) -> None:
    console.open_namespace("others", "more")
    answer = send(console, "ann", "/ledger/verifications", namespace=NAMESPACE)
    assert "This chain is in order" in answer.text
    assert "of 1 budget " in answer.text
    change = text("UPDATE ledger_accounts SET epsilon = 9 WHERE namespace = 'others'")
    console.gateway.write(lambda connection: connection.execute(change))
    assert "This chain is in order" in (
        send(console, "ann", "/ledger/verifications", namespace=NAMESPACE).text
    )
    broken = send(console, "ann", "/ledger/verifications", namespace="others").text
    assert "is not as it was written" in broken
    assert "is not as it was written" in send(console, "ann", "/ledger/verifications").text
    body = {"namespace": "others"}
    assert not console.post("ledger/verifications", body, "ann").json()["ok"]


def test_anchors_are_compared(console: GatewayWorld) -> None:
    anchors = json.dumps(console.ask("ann", "GET", "/ledger/anchors").json())
    answer = send(console, "ann", "/ledger/verifications", anchors=anchors)
    assert "1 anchor compared" in answer.text
    false = anchors.replace(json.loads(anchors)[0]["head"], "0" * 64)
    answer = send(console, "ann", "/ledger/verifications", anchors=false)
    assert "history was rewritten" in answer.text
    wrong = send(console, "ann", "/ledger/verifications", anchors="{")
    assert wrong.status_code == 422
    assert "anchors: give the whole content" in wrong.text


def test_a_chain_is_for_its_owner_and_auditors(console: GatewayWorld) -> None:
    assert look(console, "olga", PAGE).status_code == 200
    for who, status in (("oscar", 404), ("paul", 403), ("adam", 403)):
        assert look(console, who, PAGE).status_code == status
        form = {"namespace": NAMESPACE}
        answer = send(console, who, "/ledger/verifications", **form)
        assert answer.status_code == status
    assert "patients" not in look(console, "oscar", "/ledger").text


def test_the_last_check_is_known_from_the_audit_log(console: GatewayWorld) -> None:
    assert "knows of no earlier check" in look(console, "ann", "/ledger").text
    assert "Check the chains of the ledger" in look(console, "ann", "/").text
    send(console, "ann", "/ledger/verifications")
    assert "It was last done" in look(console, "ann", "/ledger").text
    assert "Check the chains of the ledger" not in look(console, "ann", "/").text
    console.clock.forward(days=8)
    assert "more than 7 days ago" in look(console, "ann", "/").text
    assert "It was last done" not in look(console, "olga", "/ledger").text


def test_certificates_are_listed_with_their_signer(console: GatewayWorld) -> None:
    assert "No model has a certificate yet" in look(console, "ann", "/certificates").text
    model = console.add_model(console.add_job("fit", state="succeeded"))
    assert model not in look(console, "ann", "/certificates").text
    assert look(console, "adam", "/certificates").status_code == 403


def test_a_page_of_budgets_takes_as_many_statements_as_one(console: GatewayWorld) -> None:
    console.running(fit(target_epsilon=1, steps=20))
    people = ("olga", "ann")
    pages = {("/ledger", who): 0 for who in people} | {("/", "olga"): 0, ("/", "paul"): 0}
    for number in (2, 30):
        for at in range(number):
            name = f"budget-{number:02}-{at:02}"
            console.open_namespace(name, f"data-{name}")
        for path, who in pages:
            look(console, who, path)
            with count_statements(console.gateway.engine) as count:
                page = look(console, who, path).text
            if number == 2:
                pages[path, who] = count.statements
            elif path == "/ledger":
                assert page.count('href="/ledger/') == 33
                assert count.statements == pages[path, who] < 15
            else:
                assert count.statements <= pages[path, who] + 1
    one = console.get(f"budgets/{NAMESPACE}", "paul").json()
    assert one in console.get("budgets", "paul").json()["items"]
    assert one["charged"] < console.get(f"budgets/{NAMESPACE}", "olga").json()["charged"] + 1e-12

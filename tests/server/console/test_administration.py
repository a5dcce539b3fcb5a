"""Pages of administrators: people, base models, operations, settings, retention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from support.console import look, send
from support.gateway import GatewayWorld, fit
from taciturn.server.console.account.account import SCOPES
from taciturn.server.identity.permissions import Action
from taciturn.server.settings import Settings, described
from taciturn.wire.identity import Role


def test_a_person_is_let_in_changed_and_locked_out(console: GatewayWorld) -> None:
    fields = {"role": ["owner"], "groups": "board, ward", "sources": "s3://hospital/\n/srv/x/\n"}
    answer = send(console, "adam", "/people", name="nora", display_name="Nora", **fields)
    assert answer.headers["hx-redirect"] == "/people/nora"
    page = look(console, "adam", "/people/nora").text
    assert "s3://hospital/" in page
    assert "board, ward" in page
    send(console, "adam", "/people/nora", role=["practitioner"], groups="ward")
    person = console.ask("adam", "GET", "/users/nora").json()
    assert (person["roles"], person["groups"], person["sources"]) == (
        ["practitioner"],
        ["ward"],
        [],
    )
    send(console, "adam", "/people/nora/state", disabled="true")
    assert "locked out" in look(console, "adam", "/people/nora").text
    send(console, "adam", "/people/nora/state", disabled="false")
    assert not console.ask("adam", "GET", "/users/nora").json()["disabled"]


def test_a_link_is_shown_once(console: GatewayWorld) -> None:
    answer = send(console, "adam", "/people/paul/password-links")
    assert "/v1/password#tac_" in answer.text
    page = look(console, "adam", "/people/paul").text
    assert "tac_" not in page
    assert "adam made a link" in page
    assert "not used yet" in page
    assert send(console, "ann", "/people/paul/password-links").status_code == 403


@pytest.mark.parametrize(
    ("path", "fields", "status", "words"),
    [
        ("/people", {"name": "paul", "role": ["owner"]}, 409, "there is a user"),
        ("/people", {"name": "no blanks", "role": ["owner"]}, 422, "name"),
        ("/people", {"name": "nora"}, 422, "roles"),
        ("/people", {"name": "nora", "role": ["king"]}, 422, "roles"),
        ("/people", {"name": "nora", "role": ["auditor", "owner"]}, 403, "no other role"),
        ("/people/paul", {}, 422, "give one at least"),
        ("/people/nobody", {"role": ["owner"]}, 404, "there is no user"),
        ("/people/adam/state", {"disabled": "true"}, 403, "your own"),
    ],
)
def test_a_form_is_refused_as_rest_refuses(
    console: GatewayWorld, path: str, fields: dict[str, object], status: int, words: str
) -> None:
    answer = send(console, "adam", path, **fields)
    assert answer.status_code == status
    assert words.lower() in answer.text.lower()


def test_people_are_found_by_a_part_of_their_name(console: GatewayWorld) -> None:
    page = look(console, "adam", "/people?text=ETR").text
    assert "/people/petra" in page
    assert "/people/paul" not in page
    assert "Nobody&#39;s name contains this" in look(console, "adam", "/people?text=%25").text or (
        "Nobody's name contains this" in look(console, "adam", "/people?text=%25").text
    )


def test_an_auditor_reads_people_and_changes_nobody(console: GatewayWorld) -> None:
    page = look(console, "ann", "/people/paul").text
    assert "Access changed" in page
    assert "<button>Save" not in page
    assert send(console, "ann", "/people", name="x", role=["owner"]).status_code == 403
    assert look(console, "olga", "/people").status_code == 403


def test_base_models_are_registered_and_removed(console: GatewayWorld) -> None:
    fields = {"name": "org/m-1b", "parameters": "1,235,814,400", "context_length": "4096"}
    send(console, "adam", "/base-models", **fields, vocabulary="32000")
    assert "1,235,814,400" in look(console, "paul", "/base-models").text
    taken = send(console, "adam", "/base-models", **fields, vocabulary="31999")
    assert taken.status_code == 409
    wrong = send(console, "adam", "/base-models", **fields, vocabulary="many")
    assert wrong.status_code == 422
    assert "vocabulary" in wrong.text
    assert send(console, "paul", "/base-models/removals", name="org/m-1b").status_code == 403
    send(console, "adam", "/base-models/removals", name="org/m-1b")
    assert "org/m-1b" not in look(console, "paul", "/base-models").text
    assert send(console, "adam", "/base-models/removals", name="org/m-1b").status_code == 404


def test_operations_show_jobs_without_what_they_are_about(console: GatewayWorld) -> None:
    job = console.submit(fit(target_epsilon=1, purpose="secret purpose")).json()["id"]
    page = look(console, "adam", "/operations").text
    assert job in page
    assert "The oldest job in the queue" in page
    assert "secret purpose" not in page
    assert "phee" not in page
    for query, shown in (
        ("state=queued&kind=fit&requester=paul", True),
        ("state=running", False),
        ("kind=sample", False),
        ("requester=petra", False),
    ):
        assert (job in look(console, "adam", f"/operations?{query}").text) == shown
        items = console.ask("adam", "GET", f"/operations/jobs?{query}").json()["items"]
        assert bool(items) == shown
    assert look(console, "adam", "/operations?state=odd").status_code == 422
    console.tick()
    page = look(console, "adam", "/operations").text
    assert f"{job}-1" in page
    assert send(console, "paul", "/operations/cancellations", job=job).status_code == 403
    send(console, "adam", "/operations/cancellations", job=job)
    assert console.job_state(job) == "cancelled"


def test_the_launcher_is_asked_for_its_workers(console: GatewayWorld) -> None:
    assert "no living worker" in look(console, "adam", "/operations/machines").text
    console.running(fit(target_epsilon=1))
    assert "1 living worker:" in look(console, "adam", "/operations/machines").text
    console.launcher.away = True
    assert "does not answer" in look(console, "adam", "/operations/machines").text


def test_costs_of_machines_are_added_up(console: GatewayWorld) -> None:
    from taciturn.wire.events import NodeEvent
    from taciturn.wire.machines import MachineUse

    job = console.submit(fit(target_epsilon=1)).json()["id"]
    use = MachineUse(node="n1", ended="released", node_seconds=600, cost=1.25, currency="EUR")
    event = NodeEvent(code="node.released", text="the machine is gone", use=use)
    for _ in range(2):
        console.gateway.write(
            lambda connection: console.services.events.append(connection, job, event)
        )
    assert "cost 2.50 EUR" in look(console, "adam", "/operations/machines").text


def test_settings_say_where_they_come_from_and_no_secret(
    console: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACITURN_METRICS_TOKEN", "m" * 20)
    monkeypatch.setenv("TACITURN_TICK_S", "7")
    monkeypatch.setenv("TACITURN_STORAGE_URL", "https://key:secret@store.example/x?sig=hidden")
    settings = Settings(port=9000, database_url=SecretStr("postgresql+psycopg://ada:secret@db/x"))
    rows = {row.variable: row for row in described(settings)}
    assert len(rows) == len(Settings.model_fields)
    assert all(row.description for row in rows.values())
    assert (rows["TACITURN_TICK_S"].value, rows["TACITURN_TICK_S"].source) == ("7", "environment")
    assert rows["TACITURN_PORT"].source == "taciturn serve"
    assert rows["TACITURN_HOST"].source == "default"
    assert rows["TACITURN_METRICS_TOKEN"].value == "set"
    assert rows["TACITURN_LEDGER_KEY"].value == "not set"
    texts = " ".join(row.value for row in rows.values())
    assert "secret" not in texts
    assert "hidden" not in texts
    assert "m" * 20 not in texts
    page = look(console, "adam", "/settings").text
    assert "TACITURN_BACKUP_FILE is not set" in page
    assert "Python" in page
    for who in ("olga", "paul", "ann"):
        assert look(console, who, "/settings").status_code == 403


def test_what_is_over_is_removed_when_asked(
    open_copy: Callable[[Path], Engine], tmp_path: Path
) -> None:
    world = GatewayWorld.open(open_copy(tmp_path), tmp_path, audit_log_days=1)
    world.person("adam", Role.ADMIN)
    world.person("ann", Role.AUDITOR)
    look(world, "adam", "/")
    world.clock.forward(days=2)
    page = look(world, "adam", "/retention").text
    assert "kept 1 day" in page
    assert "hx-confirm" in page
    assert "into 1 file" in send(world, "adam", "/retention/prunes").text
    assert send(world, "ann", "/retention/prunes").status_code == 403
    assert "/v1/retention/exports/1" in look(world, "ann", "/retention/exports").text
    assert look(world, "adam", "/retention/exports").status_code == 403


def test_every_scope_has_words() -> None:
    assert set(SCOPES) == set(Action)

"""The start page: what waits for each role, and what to do first on a new gateway."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, update

from support.console import look, send
from support.gateway import NAMESPACE, GatewayWorld, fit
from support.statements import count_statements
from taciturn.server.schema.tables import datasets
from taciturn.server.timestamps import moment
from taciturn.wire.identity import Role


def home(world: GatewayWorld, who: str) -> str:
    return look(world, who, "/").text


def test_a_request_waits_for_who_may_decide_it(console: GatewayWorld) -> None:
    console.set_terms(approvers=["user:otto", "group:board"])
    console.submit(fit(target_epsilon="unlimited", purpose="compare"))
    assert "paul asks for a fit without any guarantee on phee" in home(console, "otto")
    assert "Your request for a fit without any guarantee" in home(console, "paul")
    assert "without any guarantee" not in home(console, "oscar")
    assert "without any guarantee" not in home(console, "ann")


def test_failed_jobs_are_shown_to_who_asked_for_a_week(console: GatewayWorld) -> None:
    now_ms = console.gateway.now_ms()
    console.add_job("fit", state="failed", failure="time", updated_at_ms=now_ms)
    assert "Your fit of phee failed" in home(console, "paul")
    assert "has taken all the time" in home(console, "paul")
    assert "failed" not in home(console, "olga")
    console.clock.forward(days=8)
    assert "Your fit of phee failed" not in home(console, "paul")


def test_what_runs_says_how_far_it_is(console: GatewayWorld) -> None:
    worker = console.running(fit(target_epsilon=1, steps=20))
    said = {"type": "progress", "step": 10, "steps": 20, "epsilon": 0.5}
    answer = worker.say("events", {"first": 0, "events": [said]})
    assert answer.status_code < 300, answer.text
    console.clock.forward(seconds=10)
    for who in ("paul", "olga"):
        page = home(console, who)
        assert '<progress value="10" max="20"' in page
        assert "10 of 20" in page
    assert "No job runs or waits" in home(console, "oscar") or "First steps" in home(
        console, "oscar"
    )


def test_a_grant_that_ends_is_shown_to_holder_and_owner(console: GatewayWorld) -> None:
    soon = moment(console.gateway.now_ms() + 20 * 86_400_000).isoformat()
    late = moment(console.gateway.now_ms() + 40 * 86_400_000).isoformat()
    console.grant("user:paul", expires_at=soon)
    console.grant("group:team", expires_at=late)
    assert "Your grant ends" in home(console, "paul")
    assert "The grant of paul ends" in home(console, "olga")
    assert "The grant of team ends" not in home(console, "olga")
    assert "grant" not in home(console, "petra").split("<main")[1].split("Budgets")[0]


def test_columns_wait_for_the_owner(console: GatewayWorld) -> None:
    change = update(datasets).values(state="unconfirmed")
    console.gateway.write(lambda connection: connection.execute(change))
    assert "Confirm the columns of phee" in home(console, "olga")
    assert "Confirm the columns" not in home(console, "paul")


def test_a_budget_that_is_nearly_spent_is_said(console: GatewayWorld) -> None:
    assert "nearly spent" not in home(console, "olga")
    console.grant("user:paul", epsilon=8.0)
    for number in range(10, 40):
        if console.ask("olga", "GET", f"/budgets/{NAMESPACE}").json()["taken"] > 0.8:
            break
        answer = console.submit(fit(target_epsilon=2, steps=20), key=f"key-000{number}")
        assert answer.status_code == 201, answer.text
    assert f"The budget {NAMESPACE} is nearly spent" in home(console, "olga")
    # However many others come before it by name.
    for number in range(8):
        console.open_namespace(f"a-budget-{number}", f"a-dataset-{number}")
    with count_statements(console.gateway.engine) as count:
        page = home(console, "olga")
    assert page.count("is nearly spent") == 1
    assert f'<a href="/policies/{NAMESPACE}">The budget {NAMESPACE} is nearly spent' in page
    assert count.statements < 40


def test_an_outage_is_for_the_administrator(console: GatewayWorld) -> None:
    console.services.outage.hear(True)
    assert "Workers cannot be started" in home(console, "adam")
    assert "Workers cannot be started" not in home(console, "paul")


def test_a_backup_that_is_old_or_missing_is_said(
    open_copy: Callable[[Path], Engine], tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    world = GatewayWorld.open(open_copy(tmp_path), tmp_path, backup_file=folder)
    world.person("adam", Role.ADMIN)
    assert "No backup is known" in home(world, "adam")
    dump = folder / "today.dump"
    dump.write_bytes(b"x")
    now_s = world.gateway.now_ms() / 1000
    os.utime(dump, (now_s - 3600, now_s - 3600))
    assert "backup" not in home(world, "adam").split("<main")[1].split("This gateway")[0].lower()
    os.utime(dump, (now_s - 30 * 3600, now_s - 30 * 3600))
    assert "The last backup is old" in home(world, "adam")
    assert "see whether the backup job still runs" in look(world, "adam", "/settings").text


def test_a_new_gateway_says_what_to_do_first(
    open_copy: Callable[[Path], Engine], tmp_path: Path
) -> None:
    world = GatewayWorld.open(open_copy(tmp_path), tmp_path)
    world.person("adam", Role.ADMIN)
    assert "Add people" in home(world, "adam")
    world.person("olga", Role.OWNER)
    world.person("paul", Role.PRACTITIONER)
    world.person("ann", Role.AUDITOR)
    assert "Add people" not in home(world, "adam")
    assert "Register your first dataset" in home(world, "olga")
    assert "Ask a data owner for a grant" in home(world, "paul")
    assert "Nothing is here to check yet" in home(world, "ann")
    send(world, "ann", "/ledger/verifications")

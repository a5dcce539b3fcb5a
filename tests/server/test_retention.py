"""What is over is removed: of the audit log, once it is in a file whose digest stays."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, update

from support.gateway import GatewayWorld, refused
from taciturn.server import retention
from taciturn.server.audit_log import Record
from taciturn.server.retention import RetentionService
from taciturn.server.schema.tables import audit_log, audit_log_exports, incidents
from taciturn.wire.identity import AuditLogExport, Role

DAYS = 7


@pytest.fixture
def kept(engine: Engine, tmp_path: Path) -> GatewayWorld:
    """A gateway that keeps its audit log for a week."""
    return GatewayWorld.open(engine, tmp_path, audit_log_days=DAYS)


def write(world: GatewayWorld, number: int) -> None:
    values = Record(
        world.gateway.now_ms(), "user:ada", "self:read", "/é", 200, None, "req_1", None, "tok_1"
    ).values()
    world.gateway.write(lambda connection: connection.execute(insert(audit_log), [values] * number))


def exports(world: GatewayWorld, eve: dict[str, str]) -> list[AuditLogExport]:
    found = world.client.get("/v1/retention/exports", headers=eve).json()["items"]
    return [AuditLogExport.model_validate(each) for each in found]


def test_rows_that_are_over_are_in_a_file_before_they_are_gone(
    kept: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_ENTRIES", 2)
    root, eve = kept.person("root", Role.ADMIN), kept.person("eve", Role.AUDITOR)
    write(kept, 5)
    kept.clock.forward(days=3)
    write(kept, 1)
    kept.clock.forward(days=DAYS - 2)
    before = [row for row in kept.recorded() if row.at_ms < kept.gateway.now_ms() - DAYS * 86_400e3]
    done = kept.client.post("/v1/retention/prunes", headers=root)
    assert done.status_code == 200, done.text
    found = exports(kept, eve)
    assert [export.entries for export in found] == [2, 2, 1]
    assert [export.digest for export in found] == [export.chained() for export in found]
    assert [each.previous for each in found] == ["0" * 64, found[0].digest, found[1].digest]
    lines = []
    for export in found:
        text = kept.client.get(f"/v1/retention/exports/{export.id}", headers=eve).text
        lines += [json.loads(line) for line in text.splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in before]
    assert lines[0]["resource"] == "/é"
    assert lines[0]["token"] == "tok_1"
    left = kept.recorded()
    assert [row.id for row in left if row.action == "self:read"] == [before[-1].id + 1]
    pruned = [row for row in left if row.action == "retention:prune" and "audit" in row.resource]
    assert [(row.actor, row.resource) for row in pruned] == [
        ("user:root", f"audit_log/{export.first_entry}-{export.last_entry}") for export in found
    ]
    assert kept.services.retention.prune().exports == ()


def test_the_number_of_a_row_is_never_given_again(kept: GatewayWorld) -> None:
    write(kept, 3)
    last = kept.recorded()[-1].id
    kept.clock.forward(days=DAYS + 1)
    kept.services.retention.prune()
    write(kept, 1)
    numbers = [row.id for row in kept.recorded()]
    assert len(numbers) == 2
    assert min(numbers) > last


def test_nothing_is_removed_where_the_file_cannot_be_written_or_another_one_was_first(
    kept: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(kept, 3)
    kept.clock.forward(days=DAYS + 1)
    store = type(kept.services.retention.store)
    real = store.write

    def full(*_: Any) -> None:
        raise OSError("full")

    def late(*given: Any) -> Any:
        monkeypatch.setattr(store, "write", real)
        kept.services.retention.prune()
        return real(*given)

    monkeypatch.setattr(store, "write", full)
    with pytest.raises(OSError, match="full"):
        kept.services.retention.prune()
    assert len(kept.recorded()) == 3
    monkeypatch.setattr(store, "write", late)
    with pytest.raises(retention.ProblemError, match="another gateway"):
        kept.services.retention.prune()
    assert [row.action for row in kept.recorded()] == ["retention:prune"]


def test_what_is_not_in_the_file_is_not_removed(
    kept: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(kept, 3)
    kept.clock.forward(days=DAYS + 1)
    real = retention._oldest
    monkeypatch.setattr(retention, "_oldest", lambda *given: [real(*given)[0], real(*given)[2]])
    with pytest.raises(retention.ProblemError, match="another gateway"):
        kept.services.retention.prune()
    assert [row.action for row in kept.recorded()] == ["self:read"] * 3


def test_a_changed_export_is_found(kept: GatewayWorld) -> None:
    write(kept, 3)
    kept.clock.forward(days=DAYS + 1)
    kept.services.retention.prune()
    eve = kept.person("eve", Role.AUDITOR)
    change = update(audit_log_exports).values(entries=2)
    kept.gateway.write(lambda connection: connection.execute(change))
    for path in ("exports", "exports/1"):
        answer = kept.client.get(f"/v1/retention/{path}", headers=eve)
        assert (answer.status_code, answer.json()["code"]) == (503, "ledger_tampered")
    assert kept.client.get("/v1/retention/exports/2", headers=eve).status_code == 404


def test_without_a_setting_the_audit_log_stays(lite: GatewayWorld) -> None:
    write(lite, 3)
    lite.clock.forward(days=5000)
    root = lite.person("root", Role.ADMIN)
    assert lite.services.retention.prune().exports == ()
    assert len(lite.recorded()) == 3
    shown = lite.client.get("/v1/retention", headers=root).json()
    assert shown == {
        "audit_log_days": None,
        "incident_days": 30,
        "audit_log_entries": 3,
        "incidents": 0,
    }


def test_incidents_go_after_their_time(world: GatewayWorld) -> None:
    world.add_people().ready()
    job = world.add_job("fit")

    def add(connection: Any) -> None:
        row = {"job_id": job, "namespace": "patients", "log": b"a row"}
        at_ms = world.gateway.now_ms()
        connection.execute(insert(incidents).values(id="inc_1", created_at_ms=at_ms, **row))

    world.gateway.write(add)
    assert world.ask("olga", "GET", "/incidents/inc_1").json()["log"] == "a row"
    world.clock.forward(days=29)
    assert world.services.retention.prune().incidents == 0
    world.clock.forward(days=2)
    assert world.services.retention.prune("user:adam").incidents == 1
    assert "30 days" in refused(world.ask("olga", "GET", "/incidents/inc_1"), 404, "not_found")
    count = select(func.count()).select_from(incidents)
    assert world.gateway.read(lambda connection: connection.scalar(count)) == 0


def test_what_an_incident_quoted_is_not_left_in_the_file(
    lite: GatewayWorld, tmp_path: Path
) -> None:
    """SQLite keeps what was deleted in pages that are free, until something else needs them."""
    lite.add_people().ready()
    row = {
        "id": "inc_1",
        "job_id": lite.add_job("fit"),
        "namespace": "patients",
        "created_at_ms": 0,
    }
    log = b"Franz-Josef-4711 " * 2000
    lite.gateway.write(
        lambda connection: connection.execute(insert(incidents).values(log=log, **row))
    )

    def file() -> bytes:
        with lite.gateway.engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return (tmp_path / "lite.db").read_bytes()

    assert b"Franz-Josef-4711" in file()
    assert lite.services.retention.prune().incidents == 1
    assert b"Franz-Josef-4711" not in file()


def test_a_gateway_prunes_by_itself(kept: GatewayWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = threading.Event()
    monkeypatch.setattr(RetentionService, "prune", lambda self: pruned.set())
    kept.services.attend()
    kept.services.background.start()
    try:
        assert pruned.wait(120)
    finally:
        kept.services.background.stop()

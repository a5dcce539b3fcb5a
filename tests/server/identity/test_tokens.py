"""Tokens for oneself: no more than one's own permissions, hashed, expiring, revoked at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import inspect, text

from support.gateway import GatewayWorld, bearer
from support.statements import count_statements
from taciturn.errors import DatabaseUnavailableError
from taciturn.server.identity import remembered, token_uses
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.token_uses import TokenUses
from taciturn.wire.identity import Role


def made(world: GatewayWorld, headers: dict[str, str], **body: Any) -> Any:
    return world.client.post("/v1/tokens", headers=headers, json={"name": "t", **body})


def test_a_token_is_made_listed_and_revoked(world: GatewayWorld) -> None:
    ada, client = world.person("ada", Role.OWNER), world.client
    new = made(world, ada, expires_in_days=1).json()
    mine = bearer(new["token"])
    assert client.get("/v1/self", headers=mine).is_success
    listed = client.get("/v1/tokens", headers=ada).json()["items"]
    assert {each["name"] for each in listed} == {"t", "test"}
    assert new["token"].split("_", 2)[2] not in str(listed)
    assert client.delete(f"/v1/tokens/{new['id']}", headers=ada).status_code == 204
    assert client.get("/v1/self", headers=mine).status_code == 401


def test_a_token_ends_on_time_even_where_it_is_remembered(world: GatewayWorld) -> None:
    ada, client = world.person("ada", Role.OWNER), world.client
    mine = bearer(made(world, ada, expires_in_days=1).json()["token"])
    assert client.get("/v1/self", headers=mine).is_success
    world.clock.forward(days=1, milliseconds=1)
    assert client.get("/v1/self", headers=mine).status_code == 401
    world.services.directory.remembered.forget()
    assert client.get("/v1/self", headers=mine).status_code == 401


def test_no_secret_is_in_the_database(lite: GatewayWorld) -> None:
    ada = lite.person("ada", Role.OWNER)
    secret = made(lite, ada).json()["token"].split("_", 2)[2]
    lite.client.get("/v1/self", headers=bearer(f"tac_{'a' * 20}_{secret}"))
    with lite.gateway.engine.connect() as connection:
        for table in inspect(connection).get_table_names():
            assert secret not in str(connection.execute(text(f"SELECT * FROM {table}")).all())


def test_nobody_gives_a_token_more_than_the_one_in_hand_may_do(lite: GatewayWorld) -> None:
    ada = lite.person("ada", Role.PRACTITIONER)
    assert made(lite, ada, scopes=["audit-log:read"]).json()["code"] == "forbidden"
    assert made(lite, ada, scopes=["no:such"]).json()["code"] == "invalid"
    narrow = bearer(made(lite, ada, scopes=["tokens:manage", "jobs:read"]).json()["token"])
    assert made(lite, narrow, scopes=["jobs:create"]).json()["code"] == "forbidden"
    # Without scopes it would have all that the roles allow; from a narrow one, it is as narrow.
    child = made(lite, narrow).json()
    assert set(child["scopes"]) == {"tokens:manage", "jobs:read"}
    assert lite.client.get("/v1/self", headers=bearer(child["token"])).status_code == 403


def test_another_persons_tokens_are_not_there(lite: GatewayWorld) -> None:
    ada, eve = lite.person("ada", Role.OWNER), lite.person("eve", Role.ADMIN)
    token_id = made(lite, ada).json()["id"]
    refused = lite.client.delete(f"/v1/tokens/{token_id}", headers=eve)
    assert refused.json()["code"] == "not_found"
    assert token_id not in lite.client.get("/v1/tokens", headers=eve).text


def test_another_process_notices_a_revocation_within_two_seconds(lite: GatewayWorld) -> None:
    """Its memory of an authentication is that old at most; the clock of memories is monotonic."""
    now = [0.0]
    there = Directory(lite.gateway, remembered.Remembered(lambda: now[0]))
    headers = lite.person("ada", Role.OWNER)
    token = headers["Authorization"].split()[1]
    there.authenticate(token)
    lite.client.post("/v1/logout", headers=headers)
    now[0] = 2.0
    assert there.cached_principal(token) is None
    assert remembered.KEPT_S < 2.0


def test_what_is_read_before_a_revocation_is_not_remembered_after_it() -> None:
    memory: remembered.Remembered[str] = remembered.Remembered()
    generation = memory.generation
    memory.forget()
    memory.keep("digest", "stale", generation)
    assert memory.get("digest") is None


def test_the_last_use_is_written_once_a_minute_and_not_at_each_request(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "KEPT_S", -1.0)  # each request looks its token up
    ada, client, uses = world.person("ada", Role.OWNER), world.client, world.services.directory.uses
    new = made(world, ada, expires_in_days=1).json()
    mine, started = bearer(new["token"]), world.gateway.now_ms()

    def last_used() -> Any:
        items = client.get("/v1/tokens", headers=ada).json()["items"]
        return next(item["last_used_at"] for item in items if item["id"] == new["id"])

    assert last_used() is None
    with count_statements(world.gateway.engine) as count:
        for _ in range(5):
            assert client.get("/v1/self", headers=mine).is_success
    assert count.statements == 15, "looks at token and person, and the record of the request"
    assert last_used() is None
    uses.write()
    assert last_used() == datetime.fromtimestamp(started / 1000, UTC).isoformat().replace(
        "+00:00", "Z"
    )
    with count_statements(world.gateway.engine) as count:
        world.services.directory.uses._uses.clear()
        uses.write()
    assert count.statements == 0

    # Another process has seen a later use, and writes first.
    later = TokenUses(world.gateway)
    uses.note(new["id"])
    world.clock.forward(90)
    later.note(new["id"])
    later.stop()
    uses.write()
    assert last_used().startswith("2026-03-01T12:01:30")

    monkeypatch.setattr(token_uses, "_write", Mock(side_effect=DatabaseUnavailableError("away")))
    uses.note(new["id"])
    with pytest.raises(DatabaseUnavailableError):
        uses.write()
    uses.stop()
    monkeypatch.undo()
    world.clock.forward(60)
    uses.write()
    assert last_used().startswith("2026-03-01T12:01:30"), "the time of the use, not of the writing"

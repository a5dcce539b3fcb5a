"""Tokens for oneself: no more than one's own permissions, hashed, expiring, revoked at once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import inspect, text

from reception import Reception, bearer
from taciturn.server.identity import remembered
from taciturn.server.identity.directory import Directory
from taciturn.wire.identity import Role


def made(reception: Reception, headers: dict[str, str], **body: Any) -> Any:
    return reception.client.post("/v1/tokens", headers=headers, json={"name": "t", **body})


def test_a_token_is_made_listed_and_revoked(reception: Reception) -> None:
    ada, client = reception.person("ada", Role.OWNER), reception.client
    new = made(reception, ada, expires_in_days=1).json()
    mine = bearer(new["token"])
    assert client.get("/v1/self", headers=mine).is_success
    listed = client.get("/v1/tokens", headers=ada).json()["items"]
    assert {each["name"] for each in listed} == {"t", "test"}
    assert new["token"].split("_", 2)[2] not in str(listed)
    assert client.delete(f"/v1/tokens/{new['id']}", headers=ada).status_code == 204
    assert client.get("/v1/self", headers=mine).status_code == 401


def test_a_token_ends_on_time_even_where_it_is_remembered(reception: Reception) -> None:
    ada, client = reception.person("ada", Role.OWNER), reception.client
    mine = bearer(made(reception, ada, expires_in_days=1).json()["token"])
    assert client.get("/v1/self", headers=mine).is_success
    reception.clock.forward(days=1, milliseconds=1)
    assert client.get("/v1/self", headers=mine).status_code == 401
    reception.services.directory.remembered.forget()
    assert client.get("/v1/self", headers=mine).status_code == 401


def test_no_secret_is_in_the_database(desk: Reception) -> None:
    ada = desk.person("ada", Role.OWNER)
    secret = made(desk, ada).json()["token"].split("_", 2)[2]
    desk.client.get("/v1/self", headers=bearer(f"tac_{'a' * 20}_{secret}"))
    with desk.gateway.engine.connect() as connection:
        for table in inspect(connection).get_table_names():
            assert secret not in str(connection.execute(text(f"SELECT * FROM {table}")).all())


def test_nobody_gives_a_token_more_than_the_one_in_hand_may_do(desk: Reception) -> None:
    ada = desk.person("ada", Role.PRACTITIONER)
    assert made(desk, ada, scopes=["audit-log:read"]).json()["code"] == "forbidden"
    assert made(desk, ada, scopes=["no:such"]).json()["code"] == "invalid"
    narrow = bearer(made(desk, ada, scopes=["tokens:manage", "jobs:read"]).json()["token"])
    assert made(desk, narrow, scopes=["jobs:create"]).json()["code"] == "forbidden"
    # Without scopes it would have all that the roles allow; from a narrow one, it is as narrow.
    child = made(desk, narrow).json()
    assert set(child["scopes"]) == {"tokens:manage", "jobs:read"}
    assert desk.client.get("/v1/self", headers=bearer(child["token"])).status_code == 403


def test_another_persons_tokens_are_not_there(desk: Reception) -> None:
    ada, eve = desk.person("ada", Role.OWNER), desk.person("eve", Role.ADMIN)
    token_id = made(desk, ada).json()["id"]
    refused = desk.client.delete(f"/v1/tokens/{token_id}", headers=eve)
    assert refused.json()["code"] == "not_found"
    assert token_id not in desk.client.get("/v1/tokens", headers=eve).text


def test_another_process_notices_a_revocation_within_two_seconds(desk: Reception) -> None:
    """Its memory of an authentication is that old at most; the clock of memories is monotonic."""
    now = [0.0]
    there = Directory(desk.gateway, remembered.Remembered(lambda: now[0]))
    headers = desk.person("ada", Role.OWNER)
    token = headers["Authorization"].split()[1]
    there.authenticate(token)
    desk.client.post("/v1/logout", headers=headers)
    now[0] = 2.0
    assert there.cached_principal(token) is None
    assert remembered.KEPT_S < 2.0


def test_what_is_read_before_a_revocation_is_not_remembered_after_it() -> None:
    memory: remembered.Remembered[str] = remembered.Remembered()
    generation = memory.generation
    memory.forget()
    memory.keep("digest", "stale", generation)
    assert memory.get("digest") is None

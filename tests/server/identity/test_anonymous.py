"""Requests of nobody in particular: so many an address, so many in all, and few rows beyond."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from support.client import Client
from support.gateway import PASSWORD, GatewayWorld, bearer
from taciturn.server.identity.anonymous import Anonymous, network
from taciturn.wire.identity import Role

LIMIT = 6


class Watch:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def few(lite_engine: Engine, tmp_path: Path) -> GatewayWorld:
    world = GatewayWorld.open(lite_engine, tmp_path, anonymous_per_minute=LIMIT)
    watch = Watch()
    for counted in (world.services.entrants, world.services.strangers):
        counted.clock = watch
        counted.__post_init__()
    return world


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/self", {}),
        ("/v1/self", bearer("tac_01234567890123456789_x")),
        ("/v1/self", {"Authorization": "Basic x"}),
        ("/v1/self", {"Cookie": "taciturn=tac_x"}),
        ("/nowhere", {}),
        ("/metrics", {}),
        ("/openapi.json", {}),
        ("/v1/oidc/login", {}),
    ],
    ids=str,
)
def test_what_nobody_in_particular_writes_into_the_audit_log_is_bounded(
    few: GatewayWorld, path: str, headers: dict[str, str]
) -> None:
    answers = [few.client.get(path, headers=headers) for _ in range(100)]
    assert {each.status_code for each in answers[LIMIT:]} == {429}
    assert 429 not in {each.status_code for each in answers[:LIMIT]}
    assert answers[-1].headers["Retry-After"] == "10"
    assert [row.status for row in few.recorded()][LIMIT:] == [429]


def test_whoever_shows_a_token_is_not_counted(few: GatewayWorld) -> None:
    """Also behind the address of somebody who has used up what strangers have."""
    ada = few.person("ada", Role.OWNER, password=PASSWORD)
    for _ in range(2 * LIMIT):
        few.client.get("/v1/self")
    assert {few.client.get("/v1/self", headers=ada).status_code for _ in range(20)} == {200}
    assert {few.client.get("/v1/health").status_code for _ in range(20)} == {200}
    body = {"name": "ada", "password": PASSWORD}
    assert few.client.post("/v1/login", json=body).status_code == 201


def test_logins_are_refused_before_a_password_is_looked_at(few: GatewayWorld) -> None:
    few.person("ada", Role.OWNER, password=PASSWORD)
    bodies = [{"name": f"guess{n}", "password": "wrong"} for n in range(LIMIT)]
    assert {few.client.post("/v1/login", json=body).status_code for body in bodies} == {401}
    assert few.client.post("/v1/login", content=b"{").status_code == 429
    assert len(few.recorded()) == LIMIT + 1


def test_too_large_a_body_of_a_stranger_counts_too(few: GatewayWorld) -> None:
    body = b"x" * (few.gateway.settings.request_limit_bytes + 1)
    answers = [few.client.post("/v1/users", content=body).status_code for _ in range(2 * LIMIT)]
    assert answers == [413] * LIMIT + [429] * LIMIT
    assert len(few.recorded()) == LIMIT + 1


def test_other_addresses_are_others_up_to_the_limit_of_all(few: GatewayWorld) -> None:
    def ask(number: int) -> int:
        client = Client(few.app, client=(f"10.0.{number // 250}.{number % 250}", 1))
        return client.get("/v1/self").status_code

    answers = [ask(number) for number in range(20 * LIMIT)]
    assert answers == [401] * 10 * LIMIT + [429] * 10 * LIMIT
    assert len(few.recorded()) == 10 * LIMIT + 1


def test_it_fills_up_again_with_time() -> None:
    watch = Watch()
    counted = Anonymous(LIMIT, watch)
    assert [counted.enter("10.0.0.1") for _ in range(LIMIT)] == [None] * LIMIT
    refused = [counted.enter("10.0.0.1") for _ in range(3)]
    assert [each.on_record for each in refused if each] == [True, False, False]
    watch.now_s = 60 / LIMIT
    assert counted.enter("10.0.0.1") is None
    assert counted.enter("10.0.0.1") is not None
    watch.now_s = 120
    assert [counted.enter("10.0.0.1") is None for _ in range(LIMIT + 1)] == [True] * LIMIT + [False]


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    watch = Watch()
    counted = Anonymous(10**6, watch)
    for number in range(20_000):
        counted.enter(f"address {number}")
    assert len(counted._buckets) == 10_000


@pytest.mark.parametrize(
    ("address", "of"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_whose_address_it_is(address: str, of: str) -> None:
    assert network(address) == of

"""Ways in which a gateway lets the wrong ones in: each is killed by the check that is for it.

(The guard that looks a caller up and ignores the verdict is in tests/server/test_deny_matrix.py.)
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import false, true, update

from support.databases import open_quickly
from support.gateway import NAMESPACE, PASSWORD, GatewayWorld, bearer, fit
from taciturn.server.audit_log import AuditLog
from taciturn.server.catalog import policies
from taciturn.server.http.middleware import _Exchange
from taciturn.server.identity import directory, links, logins, secret, users
from taciturn.server.identity.anonymous import Anonymous
from taciturn.server.identity.oidc import Oidc
from taciturn.server.identity.remembered import Remembered
from taciturn.server.identity.sessions import Sessions
from taciturn.server.jobs import approvals
from taciturn.server.schema import versions
from taciturn.wire.identity import Role

Patch = pytest.MonkeyPatch


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GatewayWorld]:
    engine = open_quickly(f"sqlite:///{tmp_path / 'gateway.db'}")
    versions.upgrade(engine)
    yield GatewayWorld.open(engine, tmp_path)
    engine.dispose()


def enters(world: GatewayWorld, headers: dict[str, str]) -> bool:
    return bool(world.client.get("/v1/self", headers=headers).is_success)


def another_secret(world: GatewayWorld) -> None:
    """A token's id alone opens nothing."""
    known = world.person("ada", Role.OWNER)["Authorization"].split()[1]
    assert not enters(world, bearer(known[:-8] + "AAAAAAAA"))


def expired(world: GatewayWorld) -> None:
    ada = world.person("ada", Role.OWNER)
    world.clock.forward(days=31)
    assert not enters(world, ada)


def revoked(world: GatewayWorld) -> None:
    ada = world.person("ada", Role.OWNER)
    token_id = world.client.get("/v1/tokens", headers=ada).json()["items"][0]["id"]
    world.client.delete(f"/v1/tokens/{token_id}", headers=ada)
    assert not enters(world, ada)


def scoped(world: GatewayWorld) -> None:
    user_id = world.services.directory.create_user("ada", [Role.AUDITOR])
    narrow = bearer(world.token(user_id, ["tokens:manage"]))
    assert world.client.get("/v1/audit-log", headers=narrow).status_code == 403


def forged(world: GatewayWorld) -> None:
    """Another site's page makes a logged-in browser write."""
    world.person("root", Role.ADMIN, password=PASSWORD)
    world.client.post("/v1/sessions", json={"name": "root", "password": PASSWORD})
    body = {"name": "eve", "roles": ["admin"]}
    assert world.client.post("/v1/users", json=body).status_code == 403


def last_admin(world: GatewayWorld) -> None:
    """Two tokens of two admins, both established before either is used."""
    one, two = world.person("one", Role.ADMIN), world.person("two", Role.ADMIN)
    who = [
        world.services.directory.authenticate(each["Authorization"].split()[1])
        for each in (one, two)
    ]
    change = users.UserChange(roles=(Role.OWNER,))
    world.services.users.change(who[0], "two", change)  # type: ignore[arg-type]
    with pytest.raises(users.ProblemError):
        world.services.users.change(who[1], "one", change)  # type: ignore[arg-type]


def guessed(world: GatewayWorld) -> None:
    world.person("ada", Role.OWNER, password=PASSWORD)
    for _ in range(20):
        world.client.post("/v1/login", json={"name": "ada", "password": "wrong"})
    body = {"name": "ada", "password": PASSWORD}
    assert world.client.post("/v1/login", json=body).status_code == 429


def auditor_alone(world: GatewayWorld) -> None:
    root = world.person("root", Role.ADMIN)
    body = {"name": "eve", "roles": ["auditor", "owner"]}
    assert world.client.post("/v1/users", headers=root, json=body).status_code == 403


def recorded_first(world: GatewayWorld) -> None:
    """When the answer comes, its row is there."""
    ada = world.person("ada", Role.OWNER)
    for _ in range(20):
        before = len(world.recorded())
        enters(world, ada)
        assert len(world.recorded()) == before + 1


def code_once(world: GatewayWorld) -> None:
    user_id = world.services.directory.create_user("ada", [Role.OWNER])
    verifier = "v" * 43
    shown = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode()[:43]
    oidc = world.services.oidc
    code = oidc.one_time_code(user_id, shown)
    oidc.redeem(code, verifier)
    with pytest.raises(users.ProblemError):
        oidc.redeem(code, verifier)


def reset(world: GatewayWorld) -> dict[str, str]:
    """An administrator makes a link for ada and redeems it; what whoever has it sends then."""
    root = world.person("root", Role.ADMIN)
    link = world.client.post("/v1/users/ada/password-links", headers=root).json()["url"]
    body = {"link": link, "password": PASSWORD}
    assert world.client.post("/v1/password-links/redemptions", json=body).status_code == 200
    login = {"name": "ada", "password": PASSWORD}
    token = world.client.post("/v1/login", json=login).json()["token"]
    again = world.client.post("/v1/password-links/redemptions", json=body).status_code
    assert again == 401, "a link serves once"
    return bearer(token)


def noticed(world: GatewayWorld) -> None:
    """Ada's own token and password end, so she notices; and she is shown who it was."""
    ada = world.person("ada", Role.OWNER, password="before horse battery staple")
    impostor = reset(world)
    assert not enters(world, ada)
    old = {"name": "ada", "password": "before horse battery staple"}
    assert world.client.post("/v1/login", json=old).status_code == 401
    shown = world.client.get("/v1/self", headers=impostor).json()["password_links"]
    assert [(each["made_by"], bool(each["redeemed_at"])) for each in shown] == [("root", True)]


def trusted_later(world: GatewayWorld) -> None:
    """Who was reset a moment ago approves nothing and changes no terms."""
    world = GatewayWorld.for_jobs(world.gateway.engine, world.gateway.settings.data_dir)
    world.clock.forward(60)
    asked = world.submit(fit(target_epsilon="unlimited")).json()["approval"]
    for name in ("otto", "olga"):
        link = world.post(f"users/{name}/password-links", None, "adam").json()["url"]
        body = {"link": link, "password": PASSWORD}
        world.client.post("/v1/password-links/redemptions", json=body)
        login = {"name": name, "password": PASSWORD}
        world.tokens[name] = world.client.post("/v1/login", json=login).json()["token"]
        yes = world.post(f"approvals/{asked}/decisions", {"decision": "approve"}, name)
        assert yes.status_code == 403
    terms = {"budget": {"epsilon": 100, "delta": 1e-6}}
    headers = {**world.headers("olga"), "If-Match": '"1"'}
    changed = world.client.put(f"/v1/policies/{NAMESPACE}", json=terms, headers=headers)
    assert changed.status_code == 403


def strangers_write_little(world: GatewayWorld) -> None:
    most, began_s = world.gateway.settings.anonymous_per_minute, time.monotonic()
    for _ in range(2 * most):
        world.client.get("/v1/self")
        world.client.post("/v1/login", content=b"{")
    # Of each kind as many as there may be, what came back in time, and a few that say so.
    minutes = (time.monotonic() - began_s) / 60
    assert len(world.recorded()) < 2 * most * (1 + minutes) + 0.1 * most


def no_end(patch: Patch) -> None:
    real = directory._TokenRecord.principal
    patch.setattr(directory._TokenRecord, "principal", lambda found, now_ms, to: real(found, 0, to))


def roles_alone(patch: Patch) -> None:
    real = directory._TokenRecord.principal

    def principal(found: Any, now_ms: int) -> Any:
        caller = real(found, now_ms)
        return replace(caller, actions=directory.actions_of(caller.roles))

    patch.setattr(directory._TokenRecord, "principal", principal)


def answers_at_once(patch: Patch) -> None:
    async def record(exchange: Any, status: int) -> None:
        exchange.around.audit_log.keep(exchange._of(status))

    patch.setattr(_Exchange, "_record", record)
    real = AuditLog._write_all

    def late(log: AuditLog) -> None:
        import time

        time.sleep(0.2)  # as a busy disk would
        real(log)

    patch.setattr(AuditLog, "_write_all", late)


def a_link_for_ever(patch: Patch) -> None:
    """The change that says it was used goes nowhere."""
    patch.setattr(links, "update", lambda table: update(table).where(column_of(table)))


def column_of(table: Any) -> Any:
    return true() if table is links.users else false()


Mutation = Callable[[Patch], None]


def replaced(target: Any, name: str, broken: Any) -> Mutation:
    """Return the mutation that puts `broken` into the place of one thing."""
    return lambda patch: patch.setattr(target, name, broken)


MUTANTS: dict[str, tuple[Mutation, Callable[[GatewayWorld], None]]] = {
    "digests are not compared": (
        replaced(secret, "matches", lambda text, kept: True),
        another_secret,
    ),
    "expired tokens are accepted": (no_end, expired),
    "revocation does nothing": (replaced(directory.Directory, "revoke", lambda *_: None), revoked),
    "memory outlives revocation": (replaced(Remembered, "forget", lambda _: None), revoked),
    "scopes are ignored": (roles_alone, scoped),
    "CSRF is not checked": (replaced(Sessions, "check_csrf", lambda *_: None), forged),
    "the last admin can go": (
        replaced(users, "check_an_admin_is_left", lambda _: None),
        last_admin,
    ),
    "logins are not limited": (replaced(logins, "_check_rate", lambda *_: None), guessed),
    "an auditor owns data": (replaced(directory, "check_roles", lambda _: None), auditor_alone),
    "answers do not wait for the record": (answers_at_once, recorded_first),
    "a one-time code serves twice": (replaced(Oidc, "_use", lambda *_: None), code_once),
    "a password is reset without the person: their tokens and password stay": (
        replaced(links, "revoke_all", lambda *_: None),
        noticed,
    ),
    "a password is reset without the person: they are not told": (
        replaced(links.PasswordLinks, "history", lambda *_: (0, ())),
        noticed,
    ),
    "a link serves twice": (a_link_for_ever, noticed),
    "a password is reset without the person: who has it approves": (
        replaced(approvals, "check_access_is_settled", lambda *_: None),
        trusted_later,
    ),
    "a password is reset without the person: who has it changes terms": (
        replaced(policies, "check_access_is_settled", lambda *_: None),
        trusted_later,
    ),
    "anonymous requests are written without limit": (
        replaced(Anonymous, "enter", lambda *_: None),
        strangers_write_little,
    ),
    "anonymous requests but logins are written without limit": (
        replaced(_Exchange, "_limit", lambda _: None),
        strangers_write_little,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_real_gateway_passes_and_the_mutant_does_not(
    world: GatewayWorld, tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    mutate, check = MUTANTS[name]
    check(world)
    engine = open_quickly(f"sqlite:///{tmp_path / 'mutant.db'}")
    versions.upgrade(engine)
    mutant = GatewayWorld.open(engine, tmp_path)
    mutate(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(mutant)
    engine.dispose()

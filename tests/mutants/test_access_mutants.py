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

from gateways.world import NAMESPACE, fit
from reception import PASSWORD, Reception, bearer
from taciturn.server.audit_log import AuditLog
from taciturn.server.catalog import policies
from taciturn.server.database import open_database
from taciturn.server.http.middleware import _Exchange
from taciturn.server.identity import directory, links, logins, secret, users
from taciturn.server.identity.anonymous import Anonymous
from taciturn.server.identity.oidc import Oidc
from taciturn.server.identity.remembered import Remembered
from taciturn.server.identity.sessions import Sessions
from taciturn.server.jobs import approvals
from taciturn.server.schema import versions
from taciturn.wire.identity import Role
from ward import make_ward

Patch = pytest.MonkeyPatch


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Reception]:
    engine = open_database(f"sqlite:///{tmp_path / 'gateway.db'}")
    versions.upgrade(engine)
    yield Reception(engine, tmp_path)
    engine.dispose()


def enters(desk: Reception, headers: dict[str, str]) -> bool:
    return bool(desk.client.get("/v1/self", headers=headers).is_success)


def another_secret(desk: Reception) -> None:
    """A token's id alone opens nothing."""
    known = desk.person("ada", Role.OWNER)["Authorization"].split()[1]
    assert not enters(desk, bearer(known[:-8] + "AAAAAAAA"))


def expired(desk: Reception) -> None:
    ada = desk.person("ada", Role.OWNER)
    desk.clock.forward(days=31)
    assert not enters(desk, ada)


def revoked(desk: Reception) -> None:
    ada = desk.person("ada", Role.OWNER)
    token_id = desk.client.get("/v1/tokens", headers=ada).json()["items"][0]["id"]
    desk.client.delete(f"/v1/tokens/{token_id}", headers=ada)
    assert not enters(desk, ada)


def scoped(desk: Reception) -> None:
    user_id = desk.services.directory.create_user("ada", [Role.AUDITOR])
    narrow = bearer(desk.token(user_id, ["tokens:manage"]))
    assert desk.client.get("/v1/audit-log", headers=narrow).status_code == 403


def forged(desk: Reception) -> None:
    """Another site's page makes a logged-in browser write."""
    desk.person("root", Role.ADMIN, password=PASSWORD)
    desk.client.post("/v1/sessions", json={"name": "root", "password": PASSWORD})
    body = {"name": "eve", "roles": ["admin"]}
    assert desk.client.post("/v1/users", json=body).status_code == 403


def last_admin(desk: Reception) -> None:
    """Two tokens of two admins, both established before either is used."""
    one, two = desk.person("one", Role.ADMIN), desk.person("two", Role.ADMIN)
    who = [
        desk.services.directory.authenticate(each["Authorization"].split()[1])
        for each in (one, two)
    ]
    change = users.UserChange(roles=(Role.OWNER,))
    desk.services.users.change(who[0], "two", change)  # type: ignore[arg-type]
    with pytest.raises(users.ProblemError):
        desk.services.users.change(who[1], "one", change)  # type: ignore[arg-type]


def guessed(desk: Reception) -> None:
    desk.person("ada", Role.OWNER, password=PASSWORD)
    for _ in range(20):
        desk.client.post("/v1/login", json={"name": "ada", "password": "wrong"})
    body = {"name": "ada", "password": PASSWORD}
    assert desk.client.post("/v1/login", json=body).status_code == 429


def auditor_alone(desk: Reception) -> None:
    root = desk.person("root", Role.ADMIN)
    body = {"name": "eve", "roles": ["auditor", "owner"]}
    assert desk.client.post("/v1/users", headers=root, json=body).status_code == 403


def recorded_first(desk: Reception) -> None:
    """When the answer comes, its row is there."""
    ada = desk.person("ada", Role.OWNER)
    for _ in range(20):
        before = len(desk.recorded())
        enters(desk, ada)
        assert len(desk.recorded()) == before + 1


def code_once(desk: Reception) -> None:
    user_id = desk.services.directory.create_user("ada", [Role.OWNER])
    verifier = "v" * 43
    shown = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode()[:43]
    oidc = desk.services.oidc
    code = oidc.one_time_code(user_id, shown)
    oidc.redeem(code, verifier)
    with pytest.raises(users.ProblemError):
        oidc.redeem(code, verifier)


def reset(desk: Reception) -> dict[str, str]:
    """An administrator makes a link for ada and redeems it; what whoever has it sends then."""
    root = desk.person("root", Role.ADMIN)
    link = desk.client.post("/v1/users/ada/password-links", headers=root).json()["url"]
    body = {"link": link, "password": PASSWORD}
    assert desk.client.post("/v1/password-links/redemptions", json=body).status_code == 200
    login = {"name": "ada", "password": PASSWORD}
    token = desk.client.post("/v1/login", json=login).json()["token"]
    again = desk.client.post("/v1/password-links/redemptions", json=body).status_code
    assert again == 401, "a link serves once"
    return bearer(token)


def noticed(desk: Reception) -> None:
    """Ada's own token and password end, so she notices; and she is shown who it was."""
    ada = desk.person("ada", Role.OWNER, password="before horse battery staple")
    impostor = reset(desk)
    assert not enters(desk, ada)
    old = {"name": "ada", "password": "before horse battery staple"}
    assert desk.client.post("/v1/login", json=old).status_code == 401
    shown = desk.client.get("/v1/self", headers=impostor).json()["password_links"]
    assert [(each["made_by"], bool(each["redeemed_at"])) for each in shown] == [("root", True)]


def trusted_later(desk: Reception) -> None:
    """Who was reset a moment ago approves nothing and changes no terms."""
    ward = make_ward(desk.gateway.engine, desk.gateway.settings.data_dir)
    ward.watch.forward(60)
    asked = ward.ask(fit(target_epsilon="unlimited")).json()["approval"]
    for name in ("otto", "olga"):
        link = ward.post(f"users/{name}/password-links", None, "adam").json()["url"]
        body = {"link": link, "password": PASSWORD}
        ward.client.post("/v1/password-links/redemptions", json=body)
        login = {"name": name, "password": PASSWORD}
        ward.world.tokens[name] = ward.client.post("/v1/login", json=login).json()["token"]
        yes = ward.post(f"approvals/{asked}/decisions", {"decision": "approve"}, name)
        assert yes.status_code == 403
    terms = {"budget": {"epsilon": 100, "delta": 1e-6}}
    headers = {**ward.world.as_("olga"), "If-Match": '"1"'}
    changed = ward.client.put(f"/v1/policies/{NAMESPACE}", json=terms, headers=headers)
    assert changed.status_code == 403


def strangers_write_little(desk: Reception) -> None:
    most, began_s = desk.gateway.settings.anonymous_per_minute, time.monotonic()
    for _ in range(2 * most):
        desk.client.get("/v1/self")
        desk.client.post("/v1/login", content=b"{")
    # Of each kind as many as there may be, what came back in time, and a few that say so.
    minutes = (time.monotonic() - began_s) / 60
    assert len(desk.recorded()) < 2 * most * (1 + minutes) + 0.1 * most


def any_secret(desk: Reception, patch: Patch) -> None:
    patch.setattr(secret, "matches", lambda text, kept: True)


def no_end(desk: Reception, patch: Patch) -> None:
    real = directory._TokenRecord.principal
    patch.setattr(directory._TokenRecord, "principal", lambda found, now_ms, to: real(found, 0, to))


def no_revocation(desk: Reception, patch: Patch) -> None:
    patch.setattr(directory.Directory, "revoke", lambda *_: None)


def a_long_memory(desk: Reception, patch: Patch) -> None:
    patch.setattr(Remembered, "forget", lambda _: None)


def roles_alone(desk: Reception, patch: Patch) -> None:
    real = directory._TokenRecord.principal

    def principal(found: Any, now_ms: int) -> Any:
        caller = real(found, now_ms)
        return replace(caller, actions=directory.actions_of(caller.roles))

    patch.setattr(directory._TokenRecord, "principal", principal)


def cookies_suffice(desk: Reception, patch: Patch) -> None:
    patch.setattr(Sessions, "check_csrf", lambda *_: None)


def nobody_counts_admins(desk: Reception, patch: Patch) -> None:
    patch.setattr(users, "check_an_admin_is_left", lambda _: None)


def nobody_counts_guesses(desk: Reception, patch: Patch) -> None:
    patch.setattr(logins, "_check_rate", lambda *_: None)


def any_roles(desk: Reception, patch: Patch) -> None:
    patch.setattr(directory, "check_roles", lambda _: None)


def answers_at_once(desk: Reception, patch: Patch) -> None:
    async def record(exchange: Any, status: int) -> None:
        exchange.around.audit_log.keep(exchange._of(status))

    patch.setattr(_Exchange, "_record", record)
    real = AuditLog._write_all

    def late(log: AuditLog) -> None:
        import time

        time.sleep(0.2)  # as a busy disk would
        real(log)

    patch.setattr(AuditLog, "_write_all", late)


def codes_for_ever(desk: Reception, patch: Patch) -> None:
    patch.setattr(Oidc, "_use", lambda *_: None)


def a_reset_leaves_what_was(desk: Reception, patch: Patch) -> None:
    patch.setattr(links, "revoke_all", lambda *_: None)


def a_reset_is_shown_to_nobody(desk: Reception, patch: Patch) -> None:
    patch.setattr(links.PasswordLinks, "history", lambda *_: (0, ()))


def a_link_for_ever(desk: Reception, patch: Patch) -> None:
    """The change that says it was used goes nowhere."""
    patch.setattr(links, "update", lambda table: update(table).where(column_of(table)))


def column_of(table: Any) -> Any:
    return true() if table is links.users else false()


def approvers_from_now_on(desk: Reception, patch: Patch) -> None:
    patch.setattr(approvals, "check_access_is_settled", lambda *_: None)


def terms_from_now_on(desk: Reception, patch: Patch) -> None:
    patch.setattr(policies, "check_access_is_settled", lambda *_: None)


def strangers_without_limit(desk: Reception, patch: Patch) -> None:
    patch.setattr(Anonymous, "enter", lambda *_: None)


def only_logins_are_limited(desk: Reception, patch: Patch) -> None:
    patch.setattr(_Exchange, "_limit", lambda _: None)


Mutation = Callable[[Reception, Patch], None]

MUTANTS: dict[str, tuple[Mutation, Callable[[Reception], None]]] = {
    "digests are not compared": (any_secret, another_secret),
    "expired tokens are accepted": (no_end, expired),
    "revocation does nothing": (no_revocation, revoked),
    "memory outlives revocation": (a_long_memory, revoked),
    "scopes are ignored": (roles_alone, scoped),
    "CSRF is not checked": (cookies_suffice, forged),
    "the last admin can go": (nobody_counts_admins, last_admin),
    "logins are not limited": (nobody_counts_guesses, guessed),
    "an auditor owns data": (any_roles, auditor_alone),
    "answers do not wait for the record": (answers_at_once, recorded_first),
    "a one-time code serves twice": (codes_for_ever, code_once),
    "a password is reset without the person: their tokens and password stay": (
        a_reset_leaves_what_was,
        noticed,
    ),
    "a password is reset without the person: they are not told": (
        a_reset_is_shown_to_nobody,
        noticed,
    ),
    "a link serves twice": (a_link_for_ever, noticed),
    "a password is reset without the person: who has it approves": (
        approvers_from_now_on,
        trusted_later,
    ),
    "a password is reset without the person: who has it changes terms": (
        terms_from_now_on,
        trusted_later,
    ),
    "anonymous requests are written without limit": (
        strangers_without_limit,
        strangers_write_little,
    ),
    "anonymous requests but logins are written without limit": (
        only_logins_are_limited,
        strangers_write_little,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_real_gateway_passes_and_the_mutant_does_not(
    desk: Reception, tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    mutate, check = MUTANTS[name]
    check(desk)
    engine = open_database(f"sqlite:///{tmp_path / 'mutant.db'}")
    versions.upgrade(engine)
    mutant = Reception(engine, tmp_path)
    mutate(mutant, monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(mutant)
    engine.dispose()

"""Logins by local password: who may try, how often, and what they get.

An attempt is counted before the password is looked at, so that many at once are no way around a
limit. Attempts that failed are counted in three ways: by a name from an address, and, ten times as
many, by an address whatever the names, and by a name from wherever. Up to the limit nobody waits;
beyond it the next attempt has to wait, one second, two, four, up to a quarter of an hour. Where a
name has come in from an address before, only what failed by that very name from that very address
counts: so a stranger keeps nobody out of their own machine, and whoever shares an address with
somebody who guesses still comes in. A success is taken back and forgets what failed by that name
from that address; the other counts stay, else an attacker's own account would reset what they may
try on others. Of IPv6 an address is its /64.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from taciturn.server.context import Gateway
from taciturn.server.identity.anonymous import network
from taciturn.server.identity.directory import Directory, revoke_all
from taciturn.server.identity.passwords import Passwords
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import NewSecret
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import logins, users
from taciturn.wire.identity import Login, NewPassword

REMEMBERED_MS = 86_400_000
"""How long a failure counts."""
FIRST_WAIT_MS, LONGEST_WAIT_MS = 1000, 15 * 60_000
KNOWN_MS = 90 * 86_400_000
"""How long an address stays one from which a name is known to come."""
_KNOWN = "known:"
_TOGETHER = 10  # so many more attempts by all names, or from all addresses, together
_DOUBLINGS = 20


@dataclass(frozen=True, slots=True)
class Logins:
    """Lets people in who know their password."""

    gateway: Gateway
    directory: Directory
    passwords: Passwords

    def log_in(self, login: Login, address: str, *, kind: str) -> NewSecret:
        """A token of this kind (`api`, or `session` for a browser) that lasts as a session does.

        Raises:
            ProblemError: `unauthenticated`, in the same words and time whatever was wrong;
                `too_many_requests` with Retry-After.
        """
        user_id = self._proven(login.name, login.password.get_secret_value(), address)
        return self.start(user_id, kind=kind)

    def change_password(self, caller: Principal, change: NewPassword, address: str) -> None:
        """Another password for the caller, who shows the current one. Ends every other token of
        theirs: whoever had the old password may have made some. Raises as `log_in` does."""
        user_id = self._proven(caller.name, change.current.get_secret_value(), address)
        hashed = self.passwords.hash(change.new.get_secret_value())
        now_ms = self.gateway.now_ms()

        def work(connection: Connection) -> None:
            own = update(users).where(users.c.id == user_id)
            connection.execute(own.values(password_hash=hashed))
            revoke_all(connection, user_id, now_ms, but=caller.token_id)

        self.gateway.write(work)
        self.directory.remembered.forget()

    def _proven(self, name: str, password: str, address: str) -> str:
        """The id of the user whose password this is."""
        subjects = _Subjects.of(name, address)
        attempt = self._count(subjects)
        user = self._user(name)
        password_hash = user.password_hash if user is not None and not user.disabled else None
        if not self.passwords.matches(password, password_hash) or user is None:
            raise ProblemError("unauthenticated", "name or password is wrong")
        self._take_back(subjects, attempt)
        return str(user.id)

    def start(self, user_id: str, *, kind: str, name: str | None = None) -> NewSecret:
        """A token for somebody who has shown who they are."""
        lifetime_ms = round(self.gateway.settings.session_s * 1000)
        name = name or ("browser" if kind == "session" else "login")
        return self.directory.create_token(
            kind=kind, name=name, user_id=user_id, lifetime_ms=lifetime_ms
        )

    @staticmethod
    def forgive(connection: Connection, name: str, address: str) -> None:
        """Forget what failed by a name, from this address and in all, whose password is new."""
        subjects = _Subjects.of(name, address)
        failed = logins.c.subject.in_((subjects.pair, subjects.name))
        connection.execute(delete(logins).where(failed))

    def _count(self, subjects: _Subjects) -> list[int]:
        now_ms, most = self.gateway.now_ms(), self.gateway.settings.login_attempts

        def work(connection: Connection) -> list[int]:
            _forget(connection, now_ms)
            _check_rate(connection, subjects.pair, most, now_ms)
            if not _is_known(connection, subjects):
                _check_rate(connection, subjects.address, most * _TOGETHER, now_ms)
                _check_rate(connection, subjects.name, most * _TOGETHER, now_ms)
            inserts = [
                connection.execute(insert(logins).values(subject=subject, at_ms=now_ms))
                for subject in (subjects.pair, subjects.address, subjects.name)
            ]
            return [int((inserted.inserted_primary_key or (0,))[0]) for inserted in inserts]

        return self.gateway.write(work)

    def _take_back(self, subjects: _Subjects, attempt: list[int]) -> None:
        """The name has come in from this address: it is known there from now on."""
        own_attempts = logins.c.subject.in_((subjects.pair, subjects.known_address))
        known_address = {"subject": subjects.known_address, "at_ms": self.gateway.now_ms()}

        def work(connection: Connection) -> None:
            connection.execute(delete(logins).where(logins.c.id.in_(attempt) | own_attempts))
            connection.execute(insert(logins).values(known_address))

        self.gateway.write(work)

    def _user(self, name: str) -> Row[Any] | None:
        query = select(users).where(users.c.name == name)
        return self.gateway.read(lambda connection: connection.execute(query).first())


def _check_rate(connection: Connection, subject: str, most: int, now_ms: int) -> None:
    query = select(func.count(), func.max(logins.c.at_ms)).where(logins.c.subject == subject)
    n_attempts, last_ms = connection.execute(query).one()
    if n_attempts < most:
        return
    pause_ms = min(LONGEST_WAIT_MS, FIRST_WAIT_MS << min(n_attempts - most, _DOUBLINGS))
    left_ms = last_ms + pause_ms - now_ms
    if left_ms <= 0:
        return
    wait_s = max(1, -(-left_ms // 1000))
    raise ProblemError(
        "too_many_requests",
        f"{n_attempts} attempts failed; wait {wait_s} s, or ask an administrator for a link to set "
        "another password",
        headers={"Retry-After": str(wait_s)},
    )


@dataclass(frozen=True, slots=True)
class _Subjects:
    """Keys that attempts are counted under, and `known_address`, which is no attempt."""

    pair: str
    address: str
    name: str
    known_address: str

    @classmethod
    def of(cls, name: str, address: str) -> _Subjects:
        """Names are kept as digests: people type passwords into the wrong field."""
        address = network(address)
        digest = hashlib.sha256(name.encode()).hexdigest()
        pair = hashlib.sha256(f"{digest} {address}".encode()).hexdigest()
        return cls(f"pair:{pair}", f"address:{address}", f"name:{digest}", f"{_KNOWN}{pair}")


def _forget(connection: Connection, now_ms: int) -> None:
    is_known = logins.c.subject.startswith(_KNOWN)
    attempts = ~is_known & (logins.c.at_ms < now_ms - REMEMBERED_MS)
    connection.execute(delete(logins).where(attempts))
    connection.execute(delete(logins).where(is_known & (logins.c.at_ms < now_ms - KNOWN_MS)))


def _is_known(connection: Connection, subjects: _Subjects) -> bool:
    query = select(logins.c.id).where(logins.c.subject == subjects.known_address).limit(1)
    return connection.execute(query).first() is not None

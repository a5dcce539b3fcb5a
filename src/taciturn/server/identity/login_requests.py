"""Logins of programs that a person allows in a browser where they are signed in.

A program asks, and gets two codes: a secret one that it keeps, with which it asks again until it is
answered, and a short one that it shows. The person opens the console's page with the short code,
compares it, and says yes or no; only then does the secret code get a token, once. What a request
says of its host is the program's own word; the address is what the gateway has seen. Nobody gets in
by the short code, so it may be in an address.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from taciturn.server.context import Gateway
from taciturn.server.identity import secret
from taciturn.server.identity.anonymous import network
from taciturn.server.identity.logins import Logins
from taciturn.server.identity.permissions import actions_of
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import login_requests
from taciturn.server.timestamps import moment
from taciturn.wire.identity import LoginRequest, LoginState, NewLoginRequest

LIFETIME_MS = 10 * 60_000
INTERVAL_S = 3
PAGE = "/login-requests"
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels, so no words; RFC 8628
_LENGTH = 8
_MOST_OPEN = 20
"""Requests of one address that nobody has answered yet."""


@dataclass(frozen=True, slots=True)
class LoginQuestion:
    """A request as the person who answers it sees it."""

    code: str
    host: str
    address: str
    created_at_ms: int
    expires_at_ms: int
    state: LoginState


@dataclass(frozen=True, slots=True)
class LoginRequests:
    """Takes requests of programs, and people's answers."""

    gateway: Gateway
    logins: Logins

    def begin(self, new: NewLoginRequest, address: str) -> LoginRequest:
        """Open a request; raises ProblemError `too_many_requests` where an address has too many."""
        now_ms, device = self.gateway.now_ms(), secret.new_secret()
        code, subject = _new_code(), network(address)

        def work(connection: Connection) -> None:
            over = login_requests.c.expires_at_ms <= now_ms
            connection.execute(delete(login_requests).where(over))
            of_address = login_requests.c.network == subject
            is_open = login_requests.c.state == LoginState.OPEN.value
            query = select(func.count()).select_from(login_requests).where(of_address, is_open)
            if (connection.scalar(query) or 0) >= _MOST_OPEN:
                raise ProblemError(
                    "too_many_requests",
                    f"{_MOST_OPEN} programs at this address wait for an answer in a browser "
                    "already; answer them, or wait until they are over",
                    headers={"Retry-After": "60"},
                )
            connection.execute(
                insert(login_requests).values(
                    id=device.id.replace("tok_", "lgr_"),
                    code=code,
                    digest=device.digest,
                    host=new.host,
                    address=address[:60],
                    network=subject,
                    state=LoginState.OPEN.value,
                    created_at_ms=now_ms,
                    expires_at_ms=now_ms + LIFETIME_MS,
                )
            )

        self.gateway.write(work)
        settings = self.gateway.settings
        own = settings.public_url or f"http://{settings.host}:{settings.port}"
        return LoginRequest(
            secret=device.text,
            code=code,
            url=f"{own.rstrip('/')}{PAGE}/{code}",
            expires_at=moment(now_ms + LIFETIME_MS),
            interval_s=INTERVAL_S,
        )

    def question(self, code: str) -> LoginQuestion:
        """Return the request with this short code; raises ProblemError `not_found`."""
        return _question(self.gateway.read(lambda connection: self._row(connection, code)))

    def answer(self, caller: Principal, code: str, *, allow: bool) -> LoginQuestion:
        """Let the program act as the caller, or refuse it.

        Raises:
            ProblemError: `not_found`; `conflict` where it was answered already; `forbidden` to a
                token that may do less than its holder, which could otherwise make itself a larger
                one.
        """
        if allow and caller.actions != actions_of(caller.roles):
            raise ProblemError(
                "forbidden",
                "this token may do less than you; sign in to the console to let a program act as "
                "you",
            )

        def work(connection: Connection) -> None:
            row = self._row(connection, code)
            if row.state != LoginState.OPEN:
                raise ProblemError("conflict", f"the request {row.code} was answered already")
            state = LoginState.ALLOWED if allow else LoginState.DENIED
            values = {"state": state.value, "user_id": caller.user_id if allow else None}
            change = update(login_requests).where(login_requests.c.id == row.id)
            connection.execute(change.values(**values))

        self.gateway.write(work)
        return self.question(code)

    def redeem(self, text: str) -> tuple[LoginState, secret.NewSecret | None]:
        """Return the state of the request with this secret, and its token, once.

        Raises ProblemError `unauthenticated`, in the same words whatever is wrong with the secret.
        """

        def work(connection: Connection) -> tuple[LoginState, Row[Any]]:
            query = select(login_requests).where(
                login_requests.c.digest == secret.digest(text.strip()),
                login_requests.c.expires_at_ms > self.gateway.now_ms(),
            )
            row = connection.execute(query).first()
            if row is None or row.state == LoginState.USED:
                raise ProblemError(
                    "unauthenticated",
                    "this login was not begun here, is over, or was used; begin again",
                )
            if row.state == LoginState.ALLOWED:
                change = update(login_requests).where(login_requests.c.id == row.id)
                connection.execute(change.values(state=LoginState.USED.value))
            return LoginState(row.state), row

        state, row = self.gateway.write(work)
        if state is not LoginState.ALLOWED:
            return state, None
        name = f"login on {row.host}"
        return state, self.logins.start(row.user_id, kind="api", name=name)

    def _row(self, connection: Connection, code: str) -> Row[Any]:
        query = select(login_requests).where(
            login_requests.c.code == normal(code),
            login_requests.c.expires_at_ms > self.gateway.now_ms(),
        )
        row: Row[Any] | None = connection.execute(query).first()
        if row is None:
            raise ProblemError(
                "not_found",
                "no program waits with this code: it was mistyped, or its ten minutes are over; "
                "run taciturn login again",
            )
        return row


def normal(code: str) -> str:
    """Return a short code as it is kept, however it was typed."""
    letters = "".join(character for character in code.upper() if character in _LETTERS)[:_LENGTH]
    return f"{letters[:4]}-{letters[4:]}"


def _new_code() -> str:
    return normal("".join(secrets.choice(_LETTERS) for _ in range(_LENGTH)))


def _question(row: Row[Any]) -> LoginQuestion:
    return LoginQuestion(
        code=row.code,
        host=row.host,
        address=row.address,
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
        state=LoginState(row.state),
    )

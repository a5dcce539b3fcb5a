"""The gateway as processes: a uvicorn in each, from the first admin's token to a graceful end."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Connection, Row, insert, select, update
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from taciturn.server import logs
from taciturn.server.allocator import share_arenas, widen_names
from taciturn.server.app import create_app
from taciturn.server.audit_log import Record
from taciturn.server.bootstrap import open_gateway
from taciturn.server.context import Gateway
from taciturn.server.http.middleware import SECURITY_HEADERS
from taciturn.server.identity import secret
from taciturn.server.identity.anonymous import network
from taciturn.server.identity.directory import revoke_all, role_text
from taciturn.server.launchers.base import Launcher
from taciturn.server.problems import MEDIA_TYPE, ProblemError
from taciturn.server.schema.tables import audit_log, tokens, users
from taciturn.server.settings import Settings
from taciturn.server.siblings import Siblings
from taciturn.server.supervising import supervise
from taciturn.wire.identity import Role

GRACE_S = 30
KEEP_ALIVE_S = 75
"""Longer than clients and proxies keep an idle connection, so that they close it: a request
that is under way while the gateway closes would be lost."""
FIRST_ADMIN = "admin"
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
_LINGER_S, _LINGER_BYTES = 2.0, 2**20
_KEPT_FILES = 128
"""Of the files that a process may open: not for connections, but for database, storage, logs."""
_log = logging.getLogger("taciturn.connections")
_COLLECT = (10_000, 20, 20)
_FIRST_TOKEN_MS = 7 * 86_400_000
_RECOVERY_TOKEN_MS = 86_400_000


def first_admin(gateway: Gateway) -> str | None:
    """On a database without people: an administrator, and their token, which is nowhere else.

    One transaction, so that of several gateways one makes them, and a crash leaves nobody who has
    no token.
    """
    made, now_ms = secret.new_secret(), gateway.now_ms()

    def work(connection: Connection) -> bool:
        if connection.execute(select(users.c.id).limit(1)).first() is not None:
            return False
        user_id = _add_admin(connection, now_ms)
        _add_token(connection, made, user_id, "first", now_ms, _FIRST_TOKEN_MS)
        return True

    return made.text if gateway.write(work) else None


def recovered_admin(gateway: Gateway) -> str:
    """A new token for the first administrator, who is made again, let in again and given the role
    again where that is needed; what tokens they had before are revoked.

    For whoever can open the gateway's database, and so could write there anyway. It is on record,
    in the same transaction.
    """
    made, now_ms = secret.new_secret(), gateway.now_ms()

    def work(connection: Connection) -> None:
        row = connection.execute(select(users).where(users.c.name == FIRST_ADMIN)).first()
        user_id = _add_admin(connection, now_ms) if row is None else _let_in(connection, row)
        revoke_all(connection, user_id, now_ms)
        _add_token(connection, made, user_id, "recovery", now_ms, _RECOVERY_TOKEN_MS)
        record = Record(
            at_ms=now_ms,
            actor="operator",
            action="admin:recover",
            resource=f"users/{FIRST_ADMIN}",
            status=201,
            code=None,
            request_id=secret.new_id("req"),
            address=None,
            token_id=made.id,
        )
        connection.execute(insert(audit_log).values(record.values()))

    gateway.write(work)
    return made.text


def _add_admin(connection: Connection, now_ms: int) -> str:
    user_id = secret.new_id("usr")
    connection.execute(
        insert(users).values(
            id=user_id,
            name=FIRST_ADMIN,
            roles=role_text([Role.ADMIN]),
            disabled=False,
            created_at_ms=now_ms,
            access_changed_at_ms=now_ms,
        )
    )
    return user_id


def _let_in(connection: Connection, row: Row[Any]) -> str:
    """Not disabled, and an administrator and nothing besides: duties stay separate."""
    change = update(users).where(users.c.id == row.id)
    connection.execute(change.values(disabled=False, roles=role_text([Role.ADMIN])))
    return str(row.id)


def _add_token(
    connection: Connection,
    made: secret.NewSecret,
    user_id: str,
    name: str,
    now_ms: int,
    lifetime_ms: int,
) -> None:
    connection.execute(
        insert(tokens).values(
            id=made.id,
            kind="api",
            user_id=user_id,
            name=name,
            digest=made.digest,
            scopes="[]",
            created_at_ms=now_ms,
            expires_at_ms=now_ms + lifetime_ms,
        )
    )


class GatewayServer(uvicorn.Server):
    """Uvicorn that tells the gateway at once when it is asked to stop, so that event streams end
    and do not hold the others up; and that has then ended well, by its own exit code."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen. What is there by now stays: the collector need not look at it again with
        every few hundred requests."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECT)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing new, finish what was asked, stop what runs in the background."""
        self._app.state.services.background.announce_stop()
        await super().shutdown(sockets)
        self._captured_signals.clear()


def serve(gateway: Gateway, *, launcher: Launcher | None = None) -> int:
    """Serve until SIGTERM or SIGINT, in as many processes as the settings say; the exit code.
    Workers go on, and report to the next gateway.

    Args:
        launcher: instead of the one that the settings name.

    Raises:
        SpecError: the address is taken.
    """
    logs.set_up()
    share_arenas()  # here, so that all processes have it and none has threads yet
    widen_names()
    settings = gateway.settings
    if settings.process_count == 1:
        _serve(gateway, Siblings(), launcher, None)
        return 0
    gateway.engine.dispose()  # no connection may be open in two processes

    def one(siblings: Siblings, sockets: list[socket.socket]) -> None:
        _serve(open_gateway(settings), siblings, launcher, sockets)

    return supervise(settings.host, settings.port, settings.process_count, one)


def _serve(
    gateway: Gateway,
    siblings: Siblings,
    launcher: Launcher | None,
    sockets: list[socket.socket] | None,
) -> None:
    app = create_app(gateway, siblings=siblings, launcher=launcher)
    GatewayServer(config(gateway.settings, app), app).run(sockets)
    gateway.engine.dispose()


class Callers:
    """Who is connected to this process: how many from each address, and how many at all.

    A proxy stands for many people, so the connections of trusted ones are limited in total only.
    """

    def __init__(self, settings: Settings, files: int | None = None) -> None:
        """`files`: how many this process may open; by default what the system says."""
        if files is None:
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = settings.address_connections
        self._most_of_all = max(files // 2, files - _KEPT_FILES)
        trusted = settings.trusted_proxies
        self._proxies = (
            None if trusted is None else ProxyHeadersMiddleware(_nobody, trusted).trusted_hosts
        )
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> ProblemError | None:
        """Count a connection, which has to `leave` in any case; why it is refused, if it is."""
        own = network(address)
        self._open[own] += 1
        if self._open.total() > self._most_of_all:
            return ProblemError(
                "unavailable",
                f"{self._most_of_all} connections are open here, which is all that this process "
                "takes; try again",
                headers={"Retry-After": "5"},
            )
        trusted = self._proxies is not None and address in self._proxies
        if trusted or self._open[own] <= self._most:
            return None
        return ProblemError(
            "too_many_requests",
            f"more than {self._most} connections from {own}; close some, or have the operator "
            "raise TACITURN_ADDRESS_CONNECTIONS or name the proxy in TACITURN_TRUSTED_PROXIES",
            headers={"Retry-After": "5"},
        )

    def leave(self, address: str) -> None:
        """Count it no more."""
        own = network(address)
        self._open[own] -= 1
        if self._open[own] <= 0:
            del self._open[own]


async def _nobody(*_: Any) -> None:
    """An application that is never asked."""


class GatewayConfig(uvicorn.Config):
    """How uvicorn is set up: our own logs and limits, no word of what serves, addresses from
    proxies that were named only."""

    def __init__(self, settings: Settings, app: FastAPI) -> None:
        super().__init__(
            app,
            host=settings.host,
            port=settings.port,
            http=LimitedConnection,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=settings.trusted_proxies is not None,
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=KEEP_ALIVE_S,
            ws="none",
        )
        self.settings, self.callers = settings, Callers(settings)


def config(settings: Settings, app: FastAPI) -> uvicorn.Config:
    """How uvicorn is set up."""
    return GatewayConfig(settings, app)


class _Reader(h11.Connection):
    """What a client says, as HTTP within limits; `refusal` is why reading has ended early.

    A method that is not HTTP's is refused here: each would be a label of a figure.
    """

    def __init__(self, settings: Settings, limit_bytes: int) -> None:
        super().__init__(h11.SERVER, limit_bytes)
        self.settings, self.limit_bytes = settings, limit_bytes
        self.refusal: ProblemError | None = None
        self.requests = 0
        self.body_bytes = 0

    def next_event(self) -> Any:
        """As h11; raises RemoteProtocolError where a limit is passed."""
        reading_head = self.their_state is h11.IDLE
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal = self._reason(reading_head, error)
            raise
        if isinstance(event, h11.Request):
            self.requests, self.body_bytes = self.requests + 1, 0
            self.refusal = self._beyond(event)
            if self.refusal is not None:
                raise h11.RemoteProtocolError(self.refusal.detail)
        elif isinstance(event, h11.Data):
            self.body_bytes += len(event.data)
        return event

    def _reason(self, reading_head: bool, error: h11.RemoteProtocolError) -> ProblemError:
        if error.error_status_hint != 431:
            return ProblemError("malformed", "the request is not valid HTTP/1.1; correct it")
        if not reading_head:
            return ProblemError(
                "malformed",
                f"a chunk's head or the trailer is longer than {self.limit_bytes} bytes",
            )
        if b"\n" not in self.trailing_data[0]:
            return _long_target(self.settings.target_limit_bytes)
        return ProblemError(
            "headers_too_large",
            f"the head is longer than {self.settings.header_limit_bytes} bytes; send less",
        )

    def _beyond(self, request: h11.Request) -> ProblemError | None:
        settings = self.settings
        fields = len(request.headers)
        size = len(request.target) + sum(
            len(name) + len(value) + 4 for name, value in request.headers
        )
        if len(request.target) > settings.target_limit_bytes:
            return _long_target(settings.target_limit_bytes)
        if size > self.limit_bytes:
            return ProblemError(
                "headers_too_large",
                f"the head is longer than {settings.header_limit_bytes} bytes; send less",
            )
        if fields > settings.header_fields + self.limit_bytes // settings.header_limit_bytes - 1:
            return ProblemError(
                "headers_too_large",
                f"the head has {fields} fields, and {settings.header_fields} are allowed; "
                "send fewer",
            )
        if request.method not in _METHODS:
            return ProblemError("method_not_allowed", "this method is not one of HTTP's; use those")
        return None


def _long_target(limit_bytes: int) -> ProblemError:
    return ProblemError(
        "target_too_long", f"path and query are longer than {limit_bytes} bytes; send less"
    )


class LimitedConnection(H11Protocol):
    """One connection, which can cost this process little before anybody knows who it is.

    h11 reads a head once, in pieces of at most its limit, so that no head, however long, is parsed
    to its end. A head has to come in time, and a body at a rate; what is beyond is answered if
    nothing has been answered yet, and the connection is closed. A connection without an address
    comes through the door between the processes, whose other end has the limits.
    """

    conn: _Reader

    def __init__(
        self,
        config: GatewayConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings, self._callers = config.settings, config.callers
        self._unread = bytearray()
        self._refused = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._requests = 0
        self._wire_bytes = 0
        self._discarded_bytes = 0
        self._began_s = self._last_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, or say that there are too many."""
        super().connection_made(transport)
        # What a sibling hands on has a field more, which says whose it is.
        times = 2 if self.client is None else 1
        self.conn = _Reader(self._settings, times * self._settings.header_limit_bytes)
        if self.client is None:
            return
        refusal = self._callers.enter(self.client[0])
        if refusal is not None:
            self._refuse(refusal)
            return
        self._set("head", self._settings.head_s, self._late_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        super().connection_lost(exc)
        for name in list(self._timers):
            self._unset(name)
        self._unset_keepalive_if_required()
        self._unread.clear()
        if self.client is not None:
            self._callers.leave(self.client[0])

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is refused: then it is thrown away, so that the answer gets there."""
        if self._refused:
            self._discard(len(data), _LINGER_BYTES)
            return
        self._unread += data
        self._feed()

    def _feed(self) -> None:
        while self._unread and not self._refused and not self.transport.is_closing():
            if self.conn.their_state is h11.DONE:  # the next one, sent before this is answered
                self.flow.pause_reading()
                return
            if self.conn.their_state in (h11.MUST_CLOSE, h11.CLOSED):  # it has said: the last one
                self._discard(len(self._unread), _LINGER_BYTES)
                self._unread.clear()
                return
            piece = bytes(self._unread[: self.conn.limit_bytes])
            del self._unread[: len(piece)]
            super().data_received(piece)
            self._attend(len(piece))

    def _attend(self, came: int) -> None:
        """Start and end what waits for the client, after `came` more bytes."""
        if self.client is None or self._refused or self.transport.is_closing():
            return
        now_s, state = self.loop.time(), self.conn.their_state
        if self.conn.requests != self._requests:
            self._requests = self.conn.requests
            self._began_s, self._wire_bytes, self._discarded_bytes = now_s, 0, 0
            self._unset("head")
        if state is h11.SEND_BODY:
            self._last_s = now_s
            self._wire_bytes += came
            if "body" not in self._timers:
                self._set("body", self._settings.body_idle_s, self._late_body)
            # A chunk costs more than its bytes: a body in chunks of one byte would be expensive.
            most = self.conn.body_bytes * 17 // 16 + 4 * self.conn.limit_bytes
            if self._wire_bytes > most:
                self._refuse(
                    ProblemError("malformed", "the chunks are too small; send larger ones")
                )
            elif self.cycle.response_complete:  # nobody reads it any more
                self._discard(came, self._settings.request_limit_bytes)
            return
        self._unset("body")
        if state is h11.IDLE and "head" not in self._timers and self.conn.trailing_data[0]:
            self._set("head", self._settings.head_s, self._late_head)

    def _late_head(self) -> None:
        self._unset("head")
        if self.conn.trailing_data[0]:
            self._refuse(
                ProblemError(
                    "too_slow", f"the head has not come within {self._settings.head_s:g} s"
                )
            )
        else:
            self.transport.close()  # nothing was asked, so nothing is answered

    def _late_body(self) -> None:
        self._unset("body")
        now_s, idle_s = self.loop.time(), self._settings.body_idle_s
        if self.flow.read_paused:  # the gateway is slow, not the client
            self._began_s, self._last_s, self._wire_bytes = now_s, now_s, 0
            self._set("body", idle_s, self._late_body)
            return
        owed = (now_s - self._began_s - idle_s) * self._settings.body_rate_bytes_per_s
        rests_s = self._last_s + idle_s - now_s
        if rests_s > 0.001 and self._wire_bytes >= owed:
            self._set("body", rests_s, self._late_body)
            return
        self._refuse(
            ProblemError(
                "too_slow",
                f"the body has rested for {idle_s:g} s, or come with less than "
                f"{self._settings.body_rate_bytes_per_s} bytes a second; send it again, faster",
            )
        )

    def pause_writing(self) -> None:
        """An answer waits for a client that does not read it; it does so for a while."""
        super().pause_writing()
        self._expect_reading(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._unset("write")

    def _expect_reading(self, left: int) -> None:
        def look() -> None:
            now = self.transport.get_write_buffer_size()
            if now < left:
                self._expect_reading(now)
            else:
                self.transport.abort()

        self._set("write", self._settings.body_idle_s, look)

    def on_response_complete(self) -> None:
        """Go on with what was sent meanwhile."""
        super().on_response_complete()
        self._attend(0)
        self._feed()

    def send_400_response(self, msg: str) -> None:
        """What h11 or a limit does not take: a problem, in the place of uvicorn's bare words."""
        self._refuse(self.conn.refusal or ProblemError("malformed", msg))

    def _refuse(self, problem: ProblemError) -> None:
        """Answer, if no answer has begun, and close when the client had time to read it."""
        self._refused = True
        for name in list(self._timers):
            self._unset(name)
        self._unset_keepalive_if_required()
        self._unread.clear()
        unanswered = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        cycle: Any = self.cycle  # none before the first request
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # whoever works on it is told, and answers nobody
            cycle.message_event.set()
        address = self.client[0] if self.client else None
        _log.info("refused", extra={"code": problem.code, "address": address})
        if not unanswered:
            self.transport.close()
            return
        self.flow.resume_reading()  # a socket that is closed with bytes unread drops the answer
        self.transport.write(_answer(problem))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set("linger", _LINGER_S, self.transport.abort)

    def _discard(self, came: int, limit_bytes: int) -> None:
        self._discarded_bytes += came
        if self._discarded_bytes > limit_bytes:
            self.transport.close()

    def _set(self, name: str, delay_s: float, work: Callable[[], None]) -> None:
        self._unset(name)
        self._timers[name] = self.loop.call_later(delay_s, work)

    def _unset(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def _answer(problem: ProblemError) -> bytes:
    """A problem as bytes, from outside of the application."""
    body = problem.problem()
    data = json.dumps(body.model_dump(exclude_none=True)).encode()
    headers = {
        **SECURITY_HEADERS,
        **problem.headers,
        "Content-Type": MEDIA_TYPE,
        "Content-Length": str(len(data)),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {body.status} {HTTPStatus(body.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data

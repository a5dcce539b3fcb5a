"""Connections that cost little before anybody knows who is at their other end: limits on how many
there are, on the head and body of a request, and on the time that these may take."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from taciturn.server.http.middleware import SECURITY_HEADERS
from taciturn.server.identity.anonymous import network
from taciturn.server.problems import MEDIA_TYPE, ProblemError
from taciturn.server.settings import Settings

ANNOUNCE_STOP = "announce_stop"
"""Key in the lifespan's state of a callback: a stop was asked for, so that event streams end."""

_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
_LINGER_S, _LINGER_BYTES = 2.0, 2**20
_RESERVED_FILES = 128
"""Of the files that a process may open: not for connections, but for database, storage, logs."""
_log = logging.getLogger("taciturn.connections")


class Callers:
    """Connections to this process, counted by address and in total.

    A proxy stands for many people, so the connections of trusted ones are limited in total only.
    """

    def __init__(self, settings: Settings, files: int | None = None) -> None:
        """`files`: how many this process may open; by default what the system says."""
        if files is None:
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = settings.address_connections
        self._most_of_all = max(files // 2, files - _RESERVED_FILES)
        trusted = settings.trusted_proxies
        self._proxies = (
            None
            if trusted is None
            else ProxyHeadersMiddleware(_no_application, trusted).trusted_hosts
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


async def _no_application(*_: Any) -> None:
    """An application that is never asked."""


class _Reader(h11.Connection):
    """Parser of a client's HTTP, within limits; `refusal` says why reading has ended early.

    A method that is not HTTP's is refused here: each would be a label of a figure.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(h11.SERVER, settings.header_limit_bytes)
        self.settings, self.limit_bytes = settings, settings.header_limit_bytes
        self.refusal: ProblemError | None = None
        self.requests = 0
        self.body_bytes = 0

    def next_event(self) -> Any:
        """Return h11's next event; raises RemoteProtocolError where a limit is passed."""
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
        if fields > settings.header_fields:
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
    nothing has been answered yet, and the connection is closed.
    """

    conn: _Reader

    def __init__(
        self,
        config: Any,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`config`: uvicorn's, with our `settings` and `callers`."""
        super().__init__(config, server_state, app_state, _loop)
        self._settings: Settings = config.settings
        self._callers: Callers = config.callers
        self._announce_stop: Callable[[], None] = app_state.get(ANNOUNCE_STOP, lambda: None)
        self._address = ""
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
        self.conn = _Reader(self._settings)
        self._address = self.client[0] if self.client else ""  # it may have hung up already
        refusal = self._callers.enter(self._address)
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
        self._callers.leave(self._address)

    def shutdown(self) -> None:
        """End when the request that is under way is answered; event streams end now."""
        self._announce_stop()
        super().shutdown()

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
        if self._refused or self.transport.is_closing():
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

    def _expect_reading(self, unsent: int) -> None:
        def look() -> None:
            now = self.transport.get_write_buffer_size()
            if now < unsent:
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
        """Answer with a problem, in the place of uvicorn's words: h11 or a limit refuses this."""
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
        _log.info("refused", extra={"code": problem.code, "address": self._address})
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

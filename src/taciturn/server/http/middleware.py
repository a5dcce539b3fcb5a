"""Around every request: an id, a limit on its size, a record, a figure, a line in the log.

Pure ASGI, for speed. An exception that nobody expected becomes 500 `internal` with the number of
an incident here, so that no server further out writes its words down.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taciturn.server.audit_log import AuditLog, Record
from taciturn.server.context import Gateway
from taciturn.server.identity.anonymous import Anonymous
from taciturn.server.identity.principal import Principal, WorkerPrincipal
from taciturn.server.identity.secret import new_id, token_id
from taciturn.server.logs import blotted
from taciturn.server.metrics import Metrics
from taciturn.server.problems import ProblemError

REQUEST_HEADER = "Taciturn-Request"
_log = logging.getLogger("taciturn.requests")

_LARGE = re.compile(r"^/v1/worker/jobs/[^/]+/files/[^/]+$")
"""Bodies that the route itself counts as they stream in, against the allow-list's own limits."""

_UPLOAD = re.compile(r"^(/openai)?/v1/files$")
"""Bodies that are a whole file: they have a limit of their own."""

_CHATTER = re.compile(r"^/v1/worker/jobs/[^/]+/(heartbeat|events|text|next)$")
"""A worker's signs of life: on record only where they were refused."""

_PREFIXES = ("/openai/v1/", "/v1/")

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Set where the route has not set its own."""


class TooLargeError(HTTPException):
    """The body is longer than allowed; found out while it was read."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(413, f"the body is longer than {limit_bytes} bytes; send less")


class BeyondLimitError(Exception):
    """A caller without a valid token has sent too many requests."""

    def __init__(self, problem: ProblemError) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class NotOnRecordError(Exception):
    """The audit log could not be written, so the answer must not leave."""


class Observing:
    """The outermost layer of the application; `refuse` makes its answers: a page for a browser."""

    def __init__(
        self,
        app: ASGIApp,
        gateway: Gateway,
        audit_log: AuditLog,
        metrics: Metrics,
        strangers: Anonymous,
        refuse: Callable[[Request, ProblemError], Response],
    ) -> None:
        self.app, self.gateway, self.audit_log, self.metrics = app, gateway, audit_log, metrics
        self.strangers, self.refuse = strangers, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()


@dataclass(slots=True)
class _Exchange:
    """One request and its answer."""

    around: Observing
    scope: Scope
    receive: Receive
    send: Send
    began_s: float = field(default_factory=time.perf_counter)
    request_id: str = field(default_factory=lambda: new_id("req"))
    started: bool = False
    received_bytes: int = 0

    async def run(self) -> None:
        state: dict[str, Any] = self.scope.setdefault("state", {})
        state["request_id"] = self.request_id
        try:
            self._check_length()
            await self.around.app(self.scope, self._receive, self._send)
        except Exception as error:
            if self.started:
                _log.exception("answer broken off", extra={"request": self.request_id})
                raise
            await self._answer(self._refusal(error))

    @property
    def _limit_bytes(self) -> int | None:
        settings, path = self.around.gateway.settings, self.scope["path"]
        if _LARGE.match(path):
            return None
        return settings.upload_limit_bytes if _UPLOAD.match(path) else settings.request_limit_bytes

    def _check_length(self) -> None:
        length = Headers(scope=self.scope).get("content-length", "")
        limit = self._limit_bytes
        if limit is not None and length.isdigit() and int(length) > limit:
            raise TooLargeError(limit)

    async def _receive(self) -> Message:
        message = await self.receive()
        limit = self._limit_bytes
        if limit is not None and message["type"] == "http.request":
            self.received_bytes += len(message.get("body", b""))
            if self.received_bytes > limit:
                raise TooLargeError(limit)
        return message

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._limit()
            await self._record(message["status"])
            headers = MutableHeaders(scope=message)
            headers[REQUEST_HEADER] = self.request_id
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            self.started = True
        await self.send(message)

    def _limit(self) -> None:
        """Raises BeyondLimitError instead of an answer that is beyond the limit for strangers. What
        has a caller, is public, or was counted at an entrance is not counted here."""
        state: dict[str, Any] = self.scope["state"]
        if any(state.get(name) for name in ("counted", "unrecorded", "caller", "actor")):
            return
        state["counted"] = True
        client = self.scope.get("client")
        refusal = self.around.strangers.enter(client[0] if client else "")
        if refusal is not None:
            state["unrecorded"] = not refusal.on_record
            raise BeyondLimitError(refusal.problem)

    async def _record(self, status: int) -> None:
        """Write down what is about to be answered; raises where that cannot be done."""
        state, route = self.scope["state"], self._route()
        seconds = time.perf_counter() - self.began_s
        self.around.metrics.observe(self.scope["method"], route, status, seconds)
        record = self._of(status)
        if state.get("unrecorded") and status == 429:
            return  # in the operator's log no more than in the other one
        _log.info(
            "request",
            extra={
                "request": self.request_id,
                "method": self.scope["method"],
                "route": route,
                "path": record.resource,
                "status": status,
                "code": record.code,
                "actor": record.actor,
                "address": record.address,
                "ms": round(seconds * 1000, 1),
            },
        )
        if state.get("unrecorded") or (status < 400 and _CHATTER.match(self.scope["path"])):
            return
        try:
            await asyncio.wrap_future(self.around.audit_log.keep(record))
        except Exception as error:
            raise NotOnRecordError from error

    def _of(self, status: int) -> Record:
        state: dict[str, Any] = self.scope["state"]
        caller = state.get("caller")
        client = self.scope.get("client")
        return Record(
            at_ms=self.around.gateway.now_ms(),
            actor=state.get("actor") or _actor(caller),
            action=state.get("action") or f"{self.scope['method'].lower()}:{self._route()}",
            resource=blotted(self.scope["path"]),
            status=status,
            code=state.get("code"),
            request_id=self.request_id,
            address=client[0] if client else None,
            token_id=caller.token_id if caller else self._claimed_token(),
        )

    def _claimed_token(self) -> str | None:
        credentials = Headers(scope=self.scope).get("authorization", "")
        return token_id(credentials.partition(" ")[2].strip())

    def _route(self) -> str:
        """The template of the path, as in the OpenAPI document."""
        path: str | None = getattr(self.scope.get("route"), "path", None)
        if path is None:
            return "(none)"
        prefix = next((root for root in _PREFIXES if self.scope["path"].startswith(root)), "")
        return path if path.startswith(prefix) else prefix[:-1] + path

    def _refusal(self, error: Exception) -> ProblemError:
        if isinstance(error, TooLargeError):
            return ProblemError("too_large", error.detail, headers={"Connection": "close"})
        if isinstance(error, BeyondLimitError):
            return error.problem
        if isinstance(error, NotOnRecordError):
            _log.exception("not on record", extra={"request": self.request_id})
            return ProblemError(
                "unavailable",
                "the audit log cannot be written, and nothing is answered that is not on record; "
                "try again, with the same Idempotency-Key where there is one",
                headers={"Retry-After": "2"},
            )
        incident = new_id("inc")
        _log.exception("request failed", extra={"request": self.request_id, "incident": incident})
        return incident_problem(incident)

    async def _answer(self, problem: ProblemError) -> None:
        """Say so; on record if that is possible at all."""
        try:
            self._limit()
        except BeyondLimitError as error:
            problem = error.problem
        if problem.code == "unavailable":
            # A page says who its reader is, which is nothing that may leave without a record.
            self.scope["state"].pop("caller", None)
        response = self.around.refuse(Request(self.scope), problem)
        response.headers[REQUEST_HEADER] = self.request_id
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        if problem.code != "unavailable":
            with suppress(NotOnRecordError):  # nothing but an error is told
                await self._record(response.status_code)
        await response(self.scope, self.receive, self.send)


def incident_problem(incident: str) -> ProblemError:
    """Problem that tells a caller of a failure of the gateway's own."""
    return ProblemError(
        "internal",
        "the gateway failed; its operator finds the reason in its log under the incident",
        incident=incident,
    )


def _actor(caller: Principal | WorkerPrincipal | None) -> str:
    if isinstance(caller, Principal):
        return f"user:{caller.name}"
    return f"worker:{caller.job_id}" if caller else "anonymous"

"""Requests for what lives in the memory of the first process, handed on to it by the others.

What is handed on is neither looked at nor recorded here: the first process does both, for the
address from which it came. It believes that address of those only who come through its own door, a
socket in a folder that nobody else may enter.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import anyio
import httpx
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from taciturn.server.problems import MEDIA_TYPE, ProblemError
from taciturn.server.siblings import Siblings

_FIRST_ONLY = re.compile(r"^/v1/worker/jobs/[^/]+/(text|next)$|^(/openai)?/v1/(chat/)?completions$")
_CAME_FROM = "taciturn-came-from"
_OF_ONE_CONNECTION = frozenset(
    ("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", _CAME_FROM)
)
_OURS = _OF_ONE_CONNECTION | {"date"}
"""Of an answer: what uvicorn writes here itself."""
_CONNECT_S = 5.0


class Forwarding:
    """The outermost layer in every process but the first."""

    def __init__(self, app: ASGIApp, siblings: Siblings) -> None:
        self.app = app
        transport = httpx.AsyncHTTPTransport(
            uds=str(siblings.door), limits=httpx.Limits(max_connections=None)
        )
        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        self._first = httpx.AsyncClient(
            transport=transport, timeout=timeout, base_url="http://first"
        )
        self._first.headers.clear()  # what the caller has not said is not added

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Here, or over there."""
        if scope["type"] == "http" and _FIRST_ONLY.match(scope["path"]):
            await _Handing(self._first, scope, receive, send).run()
        else:
            await self.app(scope, receive, send)


@dataclass(slots=True)
class _Handing:
    """One request on its way to the first process, and its answer."""

    first: httpx.AsyncClient
    scope: Scope
    receive: Receive
    send: Send
    started: bool = False
    asked: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        """Give back what the first process says, as it comes; end when the caller has gone."""
        broken = False
        async with anyio.create_task_group() as group:
            group.start_soon(self._until_gone, group.cancel_scope)
            try:
                await self._answer(self._body(group.cancel_scope))
            except httpx.TransportError:
                broken = True
            group.cancel_scope.cancel()
        if broken and self.started:
            raise ConnectionError("the first process has broken off its answer")
        if broken:
            await _busy(self.scope["path"])(self.scope, self.receive, self.send)

    async def _answer(self, body: AsyncIterator[bytes]) -> None:
        # As it came: an escaped question mark in the path must not begin a query over there.
        query = self.scope["query_string"]
        path = self.scope["raw_path"] + (b"?" + query if query else b"")
        url = self.first.base_url.copy_with(raw_path=path)
        request = self.first.build_request(
            self.scope["method"], url, headers=_of_request(self.scope), content=body
        )
        response = await self.first.send(request, stream=True)
        try:
            self.started = True
            await self.send(
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": [
                        (name.lower(), value)
                        for name, value in response.headers.raw
                        if name.decode().lower() not in _OURS
                    ],
                }
            )
            async for part in response.aiter_raw():
                await self.send({"type": "http.response.body", "body": part, "more_body": True})
            await self.send({"type": "http.response.body", "body": b""})
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    async def _body(self, scope: anyio.CancelScope) -> AsyncIterator[bytes]:
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                scope.cancel()
                return
            yield message.get("body", b"")
            if not message.get("more_body", False):
                self.asked.set()
                return

    async def _until_gone(self, scope: anyio.CancelScope) -> None:
        await self.asked.wait()
        while (await self.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()


class HandedOn:
    """The outermost layer in the first process: whoever asked another one keeps their address."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A connection with an address of its own did not come through the door."""
        if scope["type"] == "http" and scope["client"] is None:
            came_from = Headers(scope=scope).get(_CAME_FROM, "")
            host, _, port = came_from.rpartition(" ")
            if host and port.isdecimal():
                scope["client"] = (host, int(port))
        await self.app(scope, receive, send)


def _of_request(scope: Scope) -> list[tuple[str, str]]:
    given = Headers(scope=scope).items()
    kept = [(name, value) for name, value in given if name not in _OF_ONE_CONNECTION]
    client = scope.get("client")
    return [*kept, (_CAME_FROM, f"{client[0]} {client[1]}")] if client else kept


def _busy(path: str) -> JSONResponse:
    problem = ProblemError(
        "unavailable",
        "the process that does this is starting again; try again",
        headers={"Retry-After": "2"},
    )
    body = problem.problem(path)
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=body.status,
        media_type=MEDIA_TYPE,
        headers=problem.headers,
    )

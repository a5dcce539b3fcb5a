"""Client of an application in this process, with one event loop for all its requests."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import unquote

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.testclient import TestClient, httpx  # the httpx that it is made with
from starlette.types import ASGIApp, Message

_IN_PIECES = "in_pieces"


class Client(TestClient):
    """Starlette's client, on the event loop of all clients of this process.

    A client of its own makes a thread, an event loop and that loop's worker threads for each
    request and ends them with it, which takes as long as a small request itself. And it goes to the
    loop eight times for a request, to have each piece of the answer when it is there; here it goes
    once, unless the answer is asked for in pieces (`stream`).
    """

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        super().__init__(app, **options)
        self.portal = _portal()
        raises = options.get("raise_server_exceptions", True)
        address = options.get("client", ("testclient", 50_000))
        self._transport = _AtOnce(app, self._portal_factory, raises, address, self._transport)

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> Any:
        """Send a request, and say to the transport in which form the answer is wanted."""
        request.extensions[_IN_PIECES] = stream
        return super().send(request, stream=stream, **options)


@dataclass
class _AtOnce(httpx.BaseTransport):
    """Has an application answer a request in one call of the event loop.

    Attributes:
        raises: what the application raises is raised here; else the answer is 500.
        address: host and port that requests come from.
        in_pieces: the way of answers that are wanted in pieces.
    """

    app: ASGIApp
    portal: Callable[[], AbstractContextManager[BlockingPortal]]
    raises: bool
    address: tuple[str, int]
    in_pieces: httpx.BaseTransport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.extensions[_IN_PIECES]:
            return self.in_pieces.handle_request(request)
        exchange = _Exchange(request.read())
        with self.portal() as portal:
            try:
                portal.call(
                    self.app, _scope(request, self.address), exchange.receive, exchange.send
                )
            except Exception:
                if self.raises:
                    raise
        if exchange.status is None:
            assert not self.raises, "no answer"
            return httpx.Response(500, request=request, stream=httpx.ByteStream(b""))
        body = b"" if request.method == "HEAD" else b"".join(exchange.pieces)
        return httpx.Response(
            exchange.status,
            headers=exchange.headers,
            stream=httpx.ByteStream(body),
            request=request,
        )


@dataclass
class _Exchange:
    """A request's body to the application, and its answer."""

    body: bytes
    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    asked: bool = False
    over: anyio.Event = field(default_factory=anyio.Event)

    async def receive(self) -> Message:
        """The body, once; then, once all is answered, that the client is gone."""
        if self.asked:
            await self.over.wait()
            return {"type": "http.disconnect"}
        self.asked = True
        return {"type": "http.request", "body": self.body}

    async def send(self, message: Message) -> None:
        """Take a message of the answer."""
        if message["type"] == "http.response.start":
            assert self.status is None, "a second answer"
            self.status, self.headers = message["status"], list(message.get("headers", ()))
        else:
            assert message["type"] == "http.response.body"
            assert self.status is not None, "a body without a head"
            assert not self.over.is_set(), "more than the answer"
            self.pieces.append(bytes(message.get("body", b"")))
            if not message.get("more_body", False):
                self.over.set()


def _scope(request: httpx.Request, address: tuple[str, int]) -> dict[str, Any]:
    """What an ASGI server tells of a request."""
    url = request.url
    return {
        "type": "http",
        "http_version": "1.1",
        "method": request.method,
        "path": unquote(url.path),
        "raw_path": url.raw_path.split(b"?", 1)[0],
        "root_path": "",
        "scheme": url.scheme,
        "query_string": url.query,
        "headers": [
            (key.lower().encode(), value.encode()) for key, value in request.headers.multi_items()
        ],
        "client": address,
        "server": [url.host, url.port or {"http": 80, "https": 443}[url.scheme]],
        "extensions": {},
        "state": {},
    }


_KEPT = ExitStack()
atexit.register(_KEPT.close)


@cache
def _portal() -> BlockingPortal:
    return _KEPT.enter_context(start_blocking_portal())

"""Client of an application in this process, with one event loop for all its requests."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.testclient import TestClient, httpx  # the httpx that it is made with
from starlette.types import ASGIApp

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
        whole = httpx.ASGITransport(
            app,
            raise_app_exceptions=options.get("raise_server_exceptions", True),
            client=options.get("client", ("testclient", 50_000)),
        )
        self._transport = _AtOnce(whole, self._transport)

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> Any:
        """Send a request, and say to the transport in which form the answer is wanted."""
        request.extensions[_IN_PIECES] = stream
        return super().send(request, stream=stream, **options)


class _AtOnce(httpx.BaseTransport):
    """Has an application answer a request in one call of the event loop; `in_pieces` answers those
    that are wanted in pieces."""

    def __init__(self, whole: httpx.ASGITransport, in_pieces: httpx.BaseTransport) -> None:
        self._whole, self._in_pieces = whole, in_pieces

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.extensions[_IN_PIECES]:
            return self._in_pieces.handle_request(request)
        request.read()

        async def answer() -> tuple[httpx.Response, bytes]:
            response = await self._whole.handle_async_request(request)
            return response, b"".join([piece async for piece in response.aiter_raw()])

        response, body = _portal().call(answer)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=httpx.ByteStream(body)
        )


_KEPT = ExitStack()
atexit.register(_KEPT.close)


@cache
def _portal() -> BlockingPortal:
    return _KEPT.enter_context(start_blocking_portal())

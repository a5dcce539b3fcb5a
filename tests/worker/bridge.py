"""A gateway of this process, by HTTP."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx

from worker.fake_gateway import FakeGateway


class Bridge(BaseHTTPRequestHandler):
    """Passes what comes by HTTP on to a gateway in this process."""

    gateway: FakeGateway
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = f"http://gateway{self.path}"
        asked = httpx.Request(self.command, url, headers=dict(self.headers), content=body)
        answer = self.gateway._handle(asked)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = _pass

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def handler(gateway: FakeGateway) -> type[Bridge]:
    """Return a request handler for a server."""
    return type("Handler", (Bridge,), {"gateway": gateway})

"""Chromium of the system, and people who have signed in in it."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from support.gateway import GatewayWorld
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.sessions import csrf_proof

WIDE, NARROW, ZOOMED = (1440, 900), (390, 844), (720, 450)
"""A desk's window, a phone's, and a desk's at 200%."""

_SESSION_MS = 3_600_000


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium; the tests that need one are skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed (Debian: chromium)")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def served(world: GatewayWorld) -> Iterator[str]:
    """Serve a gateway of a test from a thread; returns its address. Nothing runs beside it: what
    the world holds stays as it is."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        config = uvicorn.Config(
            world.app, lifespan="off", log_level="error", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(60)


@dataclass
class Window:
    """A window in which somebody looks at pages, and everything that went wrong there.

    Attributes:
        problems: errors of scripts, refusals of the content policy, dialogs that nobody expected.
        addresses: addresses of all requests, with what was sent as their referrer.
        questions: what was asked before destructive acts, and answered with yes.
        agrees: True for a reader who says yes; otherwise a question is a problem.
    """

    page: Any
    problems: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    agrees: bool = False

    def watch(self) -> None:
        """Note what goes wrong from now on."""
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("console", self._hear)
        self.page.on("dialog", self._answer)
        self.page.on("request", self._note)

    def _hear(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(f"{self.page.url}: {message.text}")

    def _answer(self, dialog: Any) -> None:
        if self.agrees and dialog.type == "confirm":
            self.questions.append(dialog.message)
            dialog.accept()
        else:
            self.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

    def _note(self, request: Any) -> None:
        self.addresses.append(f"{request.url} {request.headers.get('referer', '')}")


@contextmanager
def window(
    browser: Any, url: str, size: tuple[int, int] = WIDE, **options: Any
) -> Iterator[Window]:
    """Open a window of nobody."""
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(base_url=url, viewport=viewport, **options)
    context.set_default_timeout(120_000)
    opened = Window(context.new_page())
    opened.watch()
    try:
        yield opened
    finally:
        context.close()


@contextmanager
def window_of(
    browser: Any, url: str, world: GatewayWorld, who: str, **options: Any
) -> Iterator[Window]:
    """Open a window in which somebody has signed in."""
    token = Directory(world.gateway).create_token(
        kind="session",
        name="a window",
        user_id=world.users[who],
        scopes=(),
        lifetime_ms=_SESSION_MS,
    )
    with window(browser, url, **options) as opened:
        cookies = (("taciturn", token.text), ("taciturn-csrf", csrf_proof(token.text)))
        opened.page.context.add_cookies(
            [{"name": name, "value": value, "url": url} for name, value in cookies]
        )
        yield opened

"""Client of an application in this process, with one event loop for all its requests."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.testclient import TestClient


class Client(TestClient):
    """Starlette's client, on the event loop of all clients of this process.

    A client of its own makes a thread, an event loop and that loop's worker threads for each
    request and ends them with it, which takes as long as a small request itself.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.portal = _portal()


_KEPT = ExitStack()
atexit.register(_KEPT.close)


@cache
def _portal() -> BlockingPortal:
    return _KEPT.enter_context(start_blocking_portal())

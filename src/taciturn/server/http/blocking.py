"""Endpoints that block, each on a thread, once.

FastAPI runs an endpoint that is no coroutine on a thread, and then looks through its answer on
another one. Ours answer with values of the type that they say, which takes no time to look through;
handing it over to a thread does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool


class Route(APIRoute):
    """A route whose endpoint may block."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _off_the_loop(endpoint), **options)


def _off_the_loop(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(endpoint):
        return endpoint

    @functools.wraps(endpoint)
    async def on_a_thread(*arguments: Any, **keywords: Any) -> Any:
        return await run_in_threadpool(endpoint, *arguments, **keywords)

    return on_a_thread

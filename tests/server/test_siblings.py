"""Several processes that serve one gateway: what they tell each other, and what they hand on."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from taciturn.server.forwarding import Forwarding, HandedOn
from taciturn.server.siblings import Siblings

TEXT = "/v1/worker/jobs/job_1/text"


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="sib-") as found:  # short: sockets are in it
        yield Path(found)


def test_all_the_others_hear_a_word(folder: Path) -> None:
    heard: list[tuple[int, str]] = []
    siblings = [Siblings(number, 3, folder) for number in range(3)]
    for each in siblings:
        each.on("look", lambda number=each.number: heard.append((number, "look")))
        each.start()
    siblings[1].tell("look")
    siblings[2].tell("nobody knows this one")
    _until(lambda: len(heard) == 2)
    assert sorted(heard) == [(0, "look"), (2, "look")]
    siblings[0].stop()
    siblings[2].tell("look")  # one who is not there does not matter
    _until(lambda: (1, "look") in heard)
    again = Siblings(0, 3, folder)
    again.on("look", lambda: heard.append((0, "again")))
    again.start()
    siblings[1].tell("look")
    _until(lambda: (0, "again") in heard)


def test_one_that_fails_does_not_make_it_deaf(folder: Path) -> None:
    heard = threading.Event()
    speaker, listener = Siblings(0, 2, folder), Siblings(1, 2, folder)
    listener.on("bad", lambda: 1 / 0)
    listener.on("good", heard.set)
    listener.start()
    speaker.tell("bad")
    speaker.tell("good")
    assert heard.wait(5)


def test_alone_there_is_nobody_to_tell() -> None:
    alone = Siblings()
    alone.start()
    alone.tell("look")
    alone.stop()
    assert alone.first
    assert alone.door is None


@pytest.fixture
def pair(folder: Path) -> Iterator[_Pair]:
    pair = _Pair(folder)
    with pair.running():
        yield pair


class _Pair:
    """A first process and another one, as threads."""

    def __init__(self, folder: Path) -> None:
        self.siblings = Siblings(1, 2, folder)
        self.gone = threading.Event()
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.door.bind(str(self.siblings.door))
        self.front = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.front.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator[None]:
        first = HandedOn(self._first())
        other = Forwarding(Starlette(routes=[Route("/v1/self", _here)]), self.siblings)
        with _uvicorn(first, self.door), _uvicorn(other, self.front):
            yield

    def _first(self) -> Starlette:
        async def text(request: Request) -> JSONResponse:
            body = await request.body()
            return JSONResponse(
                {
                    "body": body.decode(),
                    "query": request.url.query,
                    "client": request.client.host if request.client else None,
                    "headers": sorted(request.headers.items()),
                },
                status_code=201,
                headers={"Taciturn-Policy": "DP"},
            )

        async def completions(request: Request) -> StreamingResponse:
            async def pieces() -> AsyncIterator[bytes]:
                try:
                    for number in range(1000):
                        yield f"{number} ".encode()
                        await asyncio.sleep(0.05)
                finally:
                    self.gone.set()

            return StreamingResponse(pieces())

        async def elsewhere(request: Request) -> PlainTextResponse:
            return PlainTextResponse(request.scope["path"], status_code=404)

        return Starlette(
            routes=[
                Route(TEXT, text, methods=["POST"]),
                Route("/v1/chat/completions", completions, methods=["POST"]),
                Route("/{path:path}", elsewhere, methods=["POST"]),
            ]
        )


def test_what_is_in_the_first_ones_memory_is_asked_there(pair: _Pair) -> None:
    here = httpx.get(f"{pair.url}/v1/self")
    assert here.text == '"here"'
    sent = httpx.post(
        f"{pair.url}{TEXT}?a=1&b=%20",
        content=b"a piece",
        headers={"Authorization": "Bearer x", "Taciturn-Came-From": "6.6.6.6 1"},
    )
    assert (sent.status_code, sent.headers["taciturn-policy"]) == (201, "DP")
    said = sent.json()
    assert (said["body"], said["query"]) == ("a piece", "a=1&b=%20")
    assert said["client"] == "127.0.0.1"  # not what the caller says of themselves
    headers = dict(map(tuple, said["headers"]))
    assert headers["authorization"] == "Bearer x"
    assert headers["content-length"] == "7"


def test_what_is_handed_on_is_what_came(pair: _Pair) -> None:
    """A path that hides a query leads to no other route there; an answer has one date."""
    sent = httpx.post(f"{pair.url}/v1/worker/jobs/a%3Fb%2e/text", content=b"")
    assert (sent.status_code, sent.text) == (404, "/v1/worker/jobs/a?b./text")
    found = httpx.post(f"{pair.url}{TEXT}", content=b"")
    assert len(found.headers.get_list("date")) == 1


def test_whoever_comes_from_elsewhere_is_not_believed_an_address(folder: Path) -> None:
    async def who(request: Request) -> JSONResponse:
        return JSONResponse(request.client.host if request.client else None)

    front = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{front.getsockname()[1]}"
    with _uvicorn(HandedOn(Starlette(routes=[Route("/who", who)])), front):
        said = httpx.get(f"{url}/who", headers={"Taciturn-Came-From": "6.6.6.6 1"})
    assert said.json() == "127.0.0.1"


def test_an_answer_streams_through_and_ends_with_the_caller(pair: _Pair) -> None:
    with httpx.stream("POST", f"{pair.url}/v1/chat/completions", content=b"{}") as answer:
        parts = answer.iter_raw()
        assert next(parts).startswith(b"0 ")
        began = time.monotonic()
        next(parts)
        assert time.monotonic() - began < 5  # not held back until the end
    assert pair.gone.wait(5)


def test_without_the_first_one_the_caller_is_told_to_try_again(folder: Path) -> None:
    front = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{front.getsockname()[1]}"
    with _uvicorn(Forwarding(Starlette(), Siblings(1, 2, folder)), front):
        answer = httpx.post(f"{url}{TEXT}", content=b"")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "2"


async def _here(_: Request) -> JSONResponse:
    return JSONResponse("here")


@contextmanager
def _uvicorn(app: ASGIApp, listening: socket.socket) -> Iterator[None]:
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    _until(lambda: server.started)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


def _until(found: Any) -> None:
    deadline = time.monotonic() + 10
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""Ways in which one connection could stop a gateway's process: each is killed by the check that is
for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import FastAPI
from uvicorn.server import ServerState

from taciturn.server import serve
from taciturn.server.http import connections
from taciturn.server.settings import Settings

Patch = pytest.MonkeyPatch
SETTINGS = Settings(head_s=0.05, body_idle_s=0.05, address_connections=2)
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


class Line(asyncio.Transport):
    """A transport that keeps what is written, for one caller."""

    def __init__(self) -> None:
        super().__init__()
        self.said, self.closing, self.aborted = b"", False, False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 2)}.get(name, default)

    def write(self, data: Any) -> None:
        self.said += bytes(data)

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = self.closing = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 2**20


class Lines:
    """Connections to one process."""

    def __init__(self) -> None:
        self.config = serve.GatewayConfig(SETTINGS, FastAPI)
        self.config.load()

    def connect(self) -> tuple[connections.LimitedConnection, Line]:
        line = Line()
        made = connections.LimitedConnection(self.config, ServerState(), {})
        made.connection_made(line)
        return made, line


async def endless_head(lines: Lines) -> None:
    """Neither kept nor parsed."""
    made, line = lines.connect()
    made.data_received(HEAD + b"X: ")
    for _ in range(32):
        made.data_received(b"a" * 2**16)
    assert line.said.startswith(b"HTTP/1.1 431 ")
    assert len(made.conn.trailing_data[0]) <= 2 * SETTINGS.header_limit_bytes


async def many_fields(lines: Lines) -> None:
    made, line = lines.connect()
    made.data_received(HEAD + b"a: b\r\n" * 200 + b"\r\n")
    assert line.said.startswith(b"HTTP/1.1 431 ")


async def slow_head(lines: Lines) -> None:
    made, line = lines.connect()
    made.data_received(HEAD)
    await asyncio.sleep(0.2)
    assert line.said.startswith(b"HTTP/1.1 408 ")


async def slow_reader(lines: Lines) -> None:
    made, line = lines.connect()
    made.data_received(HEAD + b"\r\n")
    made.pause_writing()
    await asyncio.sleep(0.2)
    made.connection_lost(None)  # or the application waits on
    assert line.aborted


async def tiny_chunks(lines: Lines) -> None:
    made, line = lines.connect()
    made.data_received(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 100_000)
    assert line.said.startswith(b"HTTP/1.1 400 ")


async def many_lines(lines: Lines) -> None:
    made = [lines.connect() for _ in range(3)]
    assert made[-1][1].said.startswith(b"HTTP/1.1 429 ")


def _nothing(*_: object) -> None:
    return None


def header_limit_gone(patch: Patch) -> None:
    sound = connections._Reader.__init__

    def unlimited(self: connections._Reader, settings: Settings) -> None:
        sound(self, settings.model_copy(update={"header_limit_bytes": 2**40}))

    patch.setattr(connections._Reader, "__init__", unlimited)


def fields_not_counted(patch: Patch) -> None:
    patch.setattr(connections._Reader, "_beyond", _nothing)


def head_without_an_end(patch: Patch) -> None:
    patch.setattr(connections.LimitedConnection, "_late_head", _nothing)


def answers_kept_for_ever(patch: Patch) -> None:
    patch.setattr(connections.LimitedConnection, "_expect_reading", _nothing)


def connection_watched_by_nobody(patch: Patch) -> None:
    patch.setattr(connections.LimitedConnection, "_attend", _nothing)


def callers_not_counted(patch: Patch) -> None:
    patch.setattr(connections.Callers, "enter", _nothing)


Check = Callable[[Lines], Awaitable[None]]
MUTANTS: list[tuple[Callable[[Patch], None], Check]] = [
    (header_limit_gone, endless_head),
    (fields_not_counted, many_fields),
    (head_without_an_end, slow_head),
    (answers_kept_for_ever, slow_reader),
    (connection_watched_by_nobody, tiny_chunks),
    (callers_not_counted, many_lines),
]


def run(check: Check) -> None:
    async def with_lines() -> None:
        await check(Lines())

    asyncio.run(with_lines())


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
def test_a_mutant_is_killed_by_its_check(
    mutant: Callable[[Patch], None], check: Check, monkeypatch: Patch
) -> None:
    run(check)
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        run(check)

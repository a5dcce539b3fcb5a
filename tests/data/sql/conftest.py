"""Processes that run SQL apart, kept from one test to the next."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from taciturn.data.sql.process import SessionApart


@pytest.fixture(scope="session")
def idle_processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that wait for another selection, ended after the last test."""
    idle: list[subprocess.Popen[bytes]] = []
    yield idle
    for process in idle:
        apart = SessionApart()
        apart._process = process
        apart.close()


@pytest.fixture(scope="module")
def kept_processes(idle_processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """A selection is run by a process that another selection has left in order, if there is one.

    What a process answers depends on the request alone: as it takes the next batch of a selection,
    it takes that of another. To start one loads DuckDB, which takes longer than all that a test
    asks of it. One that is in disorder is ended as ever, and not kept.
    """
    start = SessionApart._started

    def started(apart: SessionApart) -> subprocess.Popen[bytes] | None:
        if not idle_processes:
            return start(apart)
        apart._process = idle_processes.pop()
        return apart._process

    def left(apart: SessionApart, *_: object) -> None:
        process, apart._process = apart._process, None
        if process is not None:
            idle_processes.append(process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SessionApart, "_started", started)
        patch.setattr(SessionApart, "__exit__", left)
        yield

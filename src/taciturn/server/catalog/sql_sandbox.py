"""Sandbox for SQL: selections run on invented rows, in processes of little time and memory.

A practitioner's SQL is parsed, planned and run in none of the gateway's own threads: each selection
has a process of its own (`taciturn.data.sql.sandbox`), forked from one that has loaded the
libraries, so that it takes milliseconds and not seconds.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, LifoQueue
from time import monotonic
from typing import Any

from taciturn.data.sql.framing import LIMIT_S, MESSAGE_LIMIT_BYTES, read_message, to_message
from taciturn.server.problems import ProblemError
from taciturn.wire.datasets import ColumnView

_START_S = 60.0  # libraries load slowly on a busy machine
_WAIT_S = 10.0
_KEPT = ("PATH", "VIRTUAL_ENV", "LANG", "LC_ALL")


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """Columns and rows that a selection made."""

    columns: tuple[ColumnView, ...]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class SqlSandbox:
    """Runs at most `at_once` selections at the same time."""

    at_once: int = 2
    _idle: LifoQueue[_ForkServer] = field(default_factory=LifoQueue, init=False, repr=False)

    def __post_init__(self) -> None:
        for _ in range(self.at_once):
            self._idle.put(_ForkServer())

    def run(
        self, select: str, columns: Sequence[ColumnView], rows: Sequence[dict[str, Any]]
    ) -> SelectedRows:
        """Check a selection against a schema, and run it on rows.

        Raises ProblemError: `invalid` with the reason, `too_many_requests` if too many wait.
        """
        request = {
            "select": select,
            "columns": [[column.name, column.type] for column in columns],
            "rows": list(rows),
        }
        answer = self._ask(request)
        names = [ColumnView(name=name, type=kind) for name, kind in answer["columns"]]
        return SelectedRows(tuple(names), tuple(answer["rows"]))

    def check_unit(self, unit: str) -> None:
        """Raises ProblemError unless this could be the unit of a dataset."""
        self._ask({"unit": unit})

    def texts(self, path: str) -> list[str]:
        """The first texts of a Parquet file of records. Raises ProblemError if it is none."""
        texts: list[str] = self._ask({"parquet": path})["texts"]
        return texts

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._one() as server:
            answer = server.ask(request)
        if "refused" in answer:
            raise ProblemError("invalid", answer["refused"])
        return answer

    def close(self) -> None:
        """End the processes."""
        for _ in range(self.at_once):
            with self._one() as server:
                server.close()

    @contextmanager
    def _one(self) -> Iterator[_ForkServer]:
        try:
            server = self._idle.get(timeout=_WAIT_S)
        except Empty:
            raise ProblemError(
                "too_many_requests",
                f"{self.at_once} selections are being tried already; try again in a moment",
                headers={"Retry-After": "2"},
            ) from None
        try:
            yield server
        finally:
            self._idle.put(server)


class _ForkServer:
    """One process that forks a child for each selection; started when it is first needed, and again
    if it does not answer."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            for attempt in range(2):
                try:
                    return self._exchange(self._running(), request)
                except (OSError, EOFError, ValueError):
                    self._end()
                    if attempt:
                        break
        raise ProblemError("unavailable", "selections cannot be tried now; try again in a moment")

    def close(self) -> None:
        with self._lock:
            self._end()

    def _exchange(
        self, process: subprocess.Popen[bytes], request: dict[str, Any]
    ) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(to_message(request))
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(
            read_message(_Deadline(process.stdout.fileno(), LIMIT_S + _WAIT_S).read)
        )
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "taciturn.data.sql.sandbox"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=tempfile.gettempdir(),
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the gateway
            )
            assert self._process.stdout is not None
            read_message(_Deadline(self._process.stdout.fileno(), _START_S).read)  # it is ready
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _environment() -> dict[str, str]:
    """Variables for finding the libraries, and no others: a gateway's environment has secrets."""
    variables = {name: os.environ[name] for name in _KEPT if name in os.environ}
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # none that a fork loses
    return {
        **variables,
        **one_thread,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path),
    }


class _Deadline:
    """Reads from a descriptor, until it takes too long."""

    def __init__(self, descriptor: int, limit_s: float) -> None:
        self._descriptor, self._until = descriptor, monotonic() + limit_s

    def read(self, size: int) -> bytes:
        left_s = max(0.0, self._until - monotonic())
        if not select.select([self._descriptor], [], [], left_s)[0]:
            raise OSError("no answer in time")
        return os.read(self._descriptor, min(size, MESSAGE_LIMIT_BYTES))

"""A DuckDB in memory that can reach nothing but the rows it is given."""

from __future__ import annotations

import atexit
import os
import resource
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from time import monotonic
from typing import Any, Self, TypeAlias, TypeVar
from weakref import WeakSet

import duckdb
import pyarrow as pa

from taciturn.errors import PreparationError

TABLE = "rows_of_this_batch"
"""The one table that statements can name."""

RUN_LIMIT_S = 120.0
"""The longest that a statement may run over one batch; row-wise expressions take a fraction of a
second."""

_SETTINGS: dict[str, str | int | bool] = {
    "memory_limit": "400MB",
    "threads": min(4, os.cpu_count() or 1),
    "temp_directory": "",  # it would be the one folder that COPY may write to
    "TimeZone": "UTC",  # not the machine's: the same rows must give the same text everywhere
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "enable_external_access": False,
    "lock_configuration": True,
}

_GRACE_S = 30.0  # that DuckDB has to end what was interrupted, or to close, on a busy machine
_AGAIN_S = 0.1

T = TypeVar("T")

# In quotes: DuckDB complains, at the end of a process, of types of its that somebody still holds.
_Connection: TypeAlias = "duckdb.DuckDBPyConnection"
_Call: TypeAlias = "tuple[Future[Any], Callable[[_Connection], Any]]"


class LockedSession:
    """No files, no network, no extensions, no Python variables, and no way to switch them on.

    DuckDB is called in a thread of the session's own, from connecting to closing. Ctrl-C goes to
    the main thread; DuckDB, interrupted there, would report it as an error of the query.

    Rows that were dropped half-read may be closed by the garbage collector, which comes at any line
    of any thread, also where that thread holds a lock. So whatever closing does or waits for needs
    no lock that others take: the queue can be entered again, and Python starts and ends a daemon
    thread without its lock for all the others (3.11 would wait for itself there). Every wait ends.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._closed = threading.Event()
        self._connection: _Connection | None = None
        connected: Future[None] = Future()
        connections: list[_Connection] = []
        self._asked: Future[Any] | None = None
        self._thread = threading.Thread(
            target=_serve,
            args=(self._calls, connections, connected, self._closed),
            name="taciturn-sql",
            daemon=True,
        )
        self._thread.start()
        _awaited(connected, RUN_LIMIT_S, None)
        self._connection = connections.pop()
        _open_sessions.add(self)

    def serialized(self, statement: str) -> str:
        """JSON of what DuckDB's parser reads in a statement; nothing is executed."""
        return self._text("SELECT json_serialize_sql(?)", statement)

    def sql_of(self, reading: str) -> str:
        """The statement that such JSON is the reading of; nothing is executed."""
        return self._text("SELECT json_deserialize_sql(?)", reading)

    def run(self, statement: str, rows: pa.Table, *, limit_s: float = RUN_LIMIT_S) -> pa.Table:
        """Execute a statement over `rows`, which it knows as TABLE.

        Raises duckdb.Error, which is an InterruptException once it has run for `limit_s`;
        PreparationError if DuckDB does not end it even then.
        """

        def run(connection: _Connection) -> pa.Table:
            connection.register(TABLE, rows)
            return connection.sql(statement).to_arrow_table()

        return self._call(run, limit_s)

    def close(self) -> None:
        """Release the memory and the thread."""
        own = threading.get_ident() == self._thread.ident  # the collector came there
        # At the end of the process no other thread gets to run.
        others_run = self._thread.is_alive() and not own and not sys.is_finalizing()
        if others_run and self._asked is not None:
            _interrupted(self._asked, self._connection)
        self._calls.put(None)
        if others_run and self._closed.wait(_GRACE_S):
            self._thread.join(_GRACE_S)  # a daemon's: it needs no lock of all threads
        self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _text(self, query: str, value: str) -> str:
        rows = self._call(lambda connection: connection.execute(query, [value]).fetchall())
        return str(rows[0][0])

    def _call(self, call: Callable[[_Connection], T], limit_s: float = RUN_LIMIT_S) -> T:
        """Return or raise what `call` does in the session's thread."""
        if self._closed.is_set():
            raise ValueError("the session is closed; open another one")
        answer: Future[T] = Future()
        self._asked = answer
        self._calls.put((answer, call))
        try:
            return _awaited(answer, limit_s, self._connection)
        finally:
            if answer.done():
                self._asked = None
            del answer  # an error's traceback holds this frame: no cycle of the two


_open_sessions: WeakSet[LockedSession] = WeakSet()


@atexit.register
def _close_all() -> None:
    """DuckDB complains at the end of the process about what was left open."""
    for session in list(_open_sessions):
        session.close()


def _awaited(answer: Future[T], limit_s: float, connection: _Connection | None) -> T:
    """Return or raise the answer; what is still at work after `limit_s` is interrupted."""
    if _has_come(answer, limit_s) or _interrupted(answer, connection):
        try:
            return answer.result()
        finally:
            del answer  # as in `_call`
    raise PreparationError(
        f"DuckDB did not answer within {limit_s:g} s, nor in the {_GRACE_S:g} s after it was "
        "interrupted; make select and privacy_unit simpler, or free the machine, and run again"
    )


def _has_come(answer: Future[Any], limit_s: float) -> bool:
    """Wait for the answer, no longer than `limit_s`."""
    try:
        answer.exception(limit_s)
    except TimeoutError:
        return False
    return True


def _interrupted(answer: Future[Any], connection: _Connection | None) -> bool:
    """Interrupt what is at work until its answer comes; False if none comes.

    An interruption before the statement has begun is forgotten, so one is not enough.
    """
    until_s = monotonic() + _GRACE_S
    while monotonic() < until_s:
        if connection is not None:
            connection.interrupt()
        if _has_come(answer, _AGAIN_S):
            return True
    return False


def _serve(
    calls: SimpleQueue[_Call | None],
    connections: list[_Connection],
    connected: Future[None],
    end: threading.Event,
) -> None:
    """Connect, answer calls until one is None, and close.

    It holds no session, so that one which nobody else holds is closed; and no connection once it
    says that it has ended, for DuckDB complains of those that a process leaves behind.
    """
    try:
        connection = _connect()
        connections.append(connection)
        connected.set_result(None)
        while (request := calls.get()) is not None:
            _answer(*request, connection)
            del request
        connection.close()
        del connection
    except BaseException as error:
        if not connected.done():
            connected.set_exception(error)
    finally:
        end.set()


def _answer(
    answer: Future[T],
    call: Callable[[_Connection], T],
    connection: _Connection,
) -> None:
    try:
        answer.set_result(call(connection))
    except BaseException as error:
        answer.set_exception(error)
        del answer  # as in `_call`


def _connect() -> _Connection:
    connection = duckdb.connect(":memory:")
    for name, value in _SETTINGS.items():
        setting = f"'{value}'" if isinstance(value, str) else str(value)
        connection.execute(f"SET {name} = {setting}")
    return connection


def limit_memory(more_bytes: int) -> None:
    """Let this process take so much address space beyond what it has; raises OSError or ValueError
    where the system has no such limit, or has set a lower one already."""
    limit = _address_space_bytes() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not on Linux
        return 4 << 30

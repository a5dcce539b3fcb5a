"""A DuckDB in memory that can reach nothing but the rows it is given."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

import duckdb
import pyarrow as pa

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

T = TypeVar("T")


class LockedSession:
    """No files, no network, no extensions, no Python variables, and no way to switch them on.

    All calls run in a thread of their own. Ctrl-C goes to the main thread; DuckDB, interrupted
    there, would report it as an error of the query.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="taciturn-sql")
        self._connection = self._call(_connect)

    def serialized(self, statement: str) -> str:
        """JSON of what DuckDB's parser reads in a statement; nothing is executed."""
        query = "SELECT json_serialize_sql(?)"
        rows = self._call(lambda: self._connection.execute(query, [statement]).fetchall())
        return str(rows[0][0])

    def sql_of(self, reading: str) -> str:
        """The statement that such JSON is the reading of; nothing is executed."""
        query = "SELECT json_deserialize_sql(?)"
        rows = self._call(lambda: self._connection.execute(query, [reading]).fetchall())
        return str(rows[0][0])

    def run(self, statement: str, rows: pa.Table, *, limit_s: float = RUN_LIMIT_S) -> pa.Table:
        """Execute a statement over `rows`, which it knows as TABLE; raises duckdb.Error, which is
        an InterruptException once it has run for `limit_s`."""

        def run() -> pa.Table:
            self._connection.register(TABLE, rows)
            return self._connection.sql(statement).to_arrow_table()

        watchdog = threading.Timer(limit_s, self._connection.interrupt)
        watchdog.daemon = True
        watchdog.start()
        try:
            return self._call(run)
        finally:
            watchdog.cancel()

    def close(self) -> None:
        """Release the memory and the thread."""
        self._thread.shutdown()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, call: Callable[[], T]) -> T:
        return self._thread.submit(call).result()


def _connect() -> duckdb.DuckDBPyConnection:
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

"""The DuckDB that reads private rows reaches nothing else."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from taciturn.data.sql import session as sessions
from taciturn.data.sql.session import TABLE, LockedSession
from taciturn.errors import PreparationError

ROWS = pa.table({"a": [1, 2]})


def test_it_sees_the_rows_it_is_given() -> None:
    with LockedSession() as session:
        assert session.run(f"SELECT a + 1 AS b FROM {TABLE}", ROWS).to_pydict() == {"b": [2, 3]}
        assert '"SELECT_NODE"' in session.serialized("SELECT 1")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM '{folder}/a.csv'",
        "SELECT * FROM read_csv('{folder}/a.csv')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('{folder}/*')",
        "COPY (SELECT 1) TO '{folder}/b.csv'",
        "EXPORT DATABASE '{folder}/d'",
        "ATTACH '{folder}/c.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET threads = 64",
        "SELECT * FROM ROWS",
        "SELECT * FROM statement",
    ],
)
def test_nothing_else_can_be_reached(tmp_path: Path, statement: str) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    with LockedSession() as session, pytest.raises(duckdb.Error):
        session.run(statement.format(folder=tmp_path), ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_statement_that_runs_on_is_interrupted() -> None:
    started = time.monotonic()
    endless = f"SELECT count(*) FROM {TABLE}, range(100000000) a, range(100000000) b"
    with LockedSession() as session:
        with pytest.raises(duckdb.InterruptException):
            session.run(endless, ROWS, limit_s=0.2)
        assert session.run(f"SELECT a FROM {TABLE}", ROWS).num_rows == 2
    assert time.monotonic() - started < 10


# What an error that was caught holds: rows that were read halfway. Python's collector comes by
# itself at the very line where it is made to come here, while a thread starts or has been joined.
_COLLECTED = """
import gc, threading
from taciturn.data.sql.session import LockedSession

def rows():
    with LockedSession():
        yield 1
        yield 2

def dropped_halfway():
    read = rows()
    next(read)
    cycle = [read]
    cycle.append(cycle)

gc.disable()
maintained = getattr(threading, "_maintain_shutdown_locks", lambda: None)
threading._maintain_shutdown_locks = lambda: (gc.collect(), maintained())
for _ in range(3):
    dropped_halfway()
    with LockedSession() as session:
        session.serialized("SELECT 1")
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
dropped_halfway()
kept = rows()
next(kept)
print("done")
"""


def test_rows_dropped_halfway_are_collected_at_any_line() -> None:
    """Where closing needed Python's lock for threads, one that was starting waited for itself, and
    no thread of the process started any more."""
    ended = subprocess.run(
        [sys.executable, "-c", _COLLECTED], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_the_collector_may_come_in_the_sessions_own_thread() -> None:
    session = LockedSession()
    thread = session._thread
    session._call(lambda _: session.close())
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        session.serialized("SELECT 1")


def test_a_session_that_nobody_holds_is_closed() -> None:
    session = LockedSession()
    with pytest.raises(duckdb.Error):
        session.run("SELECT nothing", ROWS)
    thread = session._thread
    del session
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_an_interruption_that_comes_too_early_is_not_the_last() -> None:
    """DuckDB forgets one that comes before the statement has begun."""
    endless = f"SELECT count(*) FROM {TABLE}, range(100000000) a, range(100000000) b"
    begins = threading.Event()

    def late(connection: duckdb.DuckDBPyConnection) -> None:
        begins.wait()
        connection.register(TABLE, ROWS)
        connection.sql(endless).fetchall()

    with LockedSession() as session:
        threading.Timer(0.3, begins.set).start()
        with pytest.raises(duckdb.InterruptException):
            session._call(late, 0.05)


def test_a_statement_that_nobody_waits_for_is_ended_by_closing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after Ctrl-C: the main thread has left the wait for the answer."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    endless = f"SELECT count(*) FROM {TABLE}, range(100000000) a, range(100000000) b"
    with LockedSession() as session:
        monkeypatch.setattr(sessions, "_awaited", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.run(endless, ROWS)
        thread = session._thread
    thread.join(60)
    assert not thread.is_alive()


def test_an_error_keeps_no_row() -> None:
    """Nothing but the error's own frames holds what it ran over, and no cycle does."""
    table = pa.table({"a": [1]})
    alive = weakref.ref(table)
    gc.disable()
    try:
        with LockedSession() as session:
            with suppress(duckdb.Error):
                session.run("SELECT nothing", table)
            session.run(f"SELECT a FROM {TABLE}", ROWS)
            del table
            assert alive() is None
    finally:
        gc.enable()


def test_what_does_not_heed_an_interruption_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_GRACE_S", 0.1)
    ends = threading.Event()
    with LockedSession() as session:
        with pytest.raises(PreparationError, match=r"within 0\.1 s, nor in the 0\.1 s after"):
            session._call(lambda _: ends.wait(), 0.1)
        ends.set()
        monkeypatch.undo()
        assert session.run(f"SELECT a FROM {TABLE}", ROWS).num_rows == 2

"""SQLite and PostgreSQL: how they are opened, and the one way to run a transaction on them.

Both are used serialisably. On SQLite every writing transaction takes the one write lock when it
begins, so that nothing is read that another writer is about to change; on PostgreSQL they are
SERIALIZABLE, and one that loses a race is run again. What is committed is on disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Never, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Insert,
    Row,
    Select,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from taciturn.errors import DatabaseError, DatabaseUnavailableError

T = TypeVar("T")

PATIENCE_S = 30.0
"""How long a transaction is tried again before the caller is told."""

_LOCK_WAIT_S = 1  # in one attempt; so that patience ends when it says
_READ_ONLY, _ALONE = "taciturn_read_only", "taciturn_alone"
# Connections that are kept, a quarter as many for a rush: one more than are kept is opened and
# closed again for each transaction, which costs more than the transaction. Every transaction is
# ended where it was begun (`transact`), so none has to be rolled back when it is given back.
# The one that was used last is used next: each has a cache of its own, which would be filled.
_POOL: dict[str, Any] = {
    "pool_reset_on_return": None,
    "pool_use_lifo": True,
    "pool_timeout": _LOCK_WAIT_S,
}
_CONNECTIONS, _FEWEST = 32, 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.25
# Lost a race, a deadlock or a lock's turn; two with one key at once; the server is full, restarts
# or has gone; it ended an idle transaction.
_PASSING = ("40001", "40P01", "55P03", "23505", "53300", "57P01", "57P02", "57P03", "25P03")


def open_database(url: str, *, create: bool = True, processes: int = 1) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql+psycopg://...`; connects when first used.

    Args:
        create: whether a file of SQLite that does not exist is made.
        processes: how many open it at the same time, and share the number of connections.

    Raises:
        DatabaseError: another database, one in memory, or not a URL. The message holds no password.
    """
    address = _address(url)
    if not create and address.get_backend_name() == "sqlite" and not _exists(address):
        raise DatabaseError(f"{address.database}: no such file; name the server's database")
    connections = max(_FEWEST, _CONNECTIONS // processes)
    pool = _POOL | {"pool_size": 3 * connections // 4, "max_overflow": connections // 4}
    if address.get_backend_name() == "sqlite":
        engine = create_engine(address, connect_args={"timeout": _LOCK_WAIT_S}, **pool)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    # A client that vanishes without a word must not hold a lock: the server ends what idles in a
    # transaction, and notices a dead line. A statement alone is a serialisable transaction too.
    # Statements read few rows: to compile one (JIT) takes longer than to run it.
    server_settings = (
        f"-c lock_timeout={_LOCK_WAIT_S}s -c statement_timeout=30s "
        "-c idle_in_transaction_session_timeout=10s -c synchronous_commit=on "
        "-c default_transaction_isolation=serializable -c jit=off"
    )
    return create_engine(
        address,
        isolation_level="SERIALIZABLE",
        **pool,
        connect_args={
            "connect_timeout": 5,
            "application_name": "taciturn",
            "client_encoding": "utf8",
            "keepalives_idle": 30,
            "options": server_settings,
        },
    )


def transact(
    engine: Engine,
    work: Callable[[Connection], T],
    *,
    read_only: bool = False,
    patience_s: float = PATIENCE_S,
) -> T:
    """Run `work` in one serialisable transaction; again, from the start, where it lost a race.

    An exception of `work` rolls back and is passed on. If the connection is lost while committing,
    it is not known whether the commit happened, and `work` runs again: it must find out itself
    whether it has happened already.

    Raises:
        DatabaseUnavailableError: not done within `patience_s`.
    """
    return _patiently(partial(_once, engine, work, read_only), patience_s)


def rows(
    engine: Engine, query: Select[Any], *, patience_s: float = PATIENCE_S
) -> Sequence[Row[Any]]:
    """Rows of one query, as `transact` would read them: a transaction of one statement begins and
    ends with it, so that the server is asked once and not three times.

    Raises:
        DatabaseUnavailableError: not done within `patience_s`.
    """

    def look(connection: Connection) -> Sequence[Row[Any]]:
        return connection.execute(query).all()

    return _patiently(partial(_alone, engine, look), patience_s)


def add(
    engine: Engine,
    statement: Insert,
    values: Sequence[Mapping[str, Any]],
    *,
    patience_s: float = PATIENCE_S,
) -> None:
    """Insert rows by one statement, as `transact` would: on disk when this returns, once or, where
    an answer was lost, twice.

    Raises:
        DatabaseUnavailableError: as `transact`.
    """

    def write(connection: Connection) -> None:
        inserted = connection.execute(statement, values)
        if inserted.returns_rows:
            inserted.all()  # SQLite is not done before they are read

    _patiently(partial(_alone, engine, write), patience_s)


def _patiently(attempt: Callable[[], T], patience_s: float) -> T:
    def unavailable(state: RetryCallState) -> Never:
        error = state.outcome and state.outcome.exception()
        reason = type(getattr(error, "orig", error)).__name__
        raise DatabaseUnavailableError(
            f"the database did not let a transaction through within {patience_s:g} s "
            f"({reason}); it may be down or overloaded. Try again: an operation that "
            "went through is recognised"
        )

    retrying = Retrying(
        retry=retry_if_exception(_passes),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        stop=stop_after_delay(patience_s),
        retry_error_callback=unavailable,
    )
    return retrying(attempt)


def _once(engine: Engine, work: Callable[[Connection], T], read_only: bool) -> T:
    options: dict[str, Any] = {_READ_ONLY: read_only}
    if engine.dialect.name == "postgresql":
        options["postgresql_readonly"] = read_only
    with engine.connect().execution_options(**options) as connection, connection.begin():
        return work(connection)


def _alone(engine: Engine, work: Callable[[Connection], T]) -> T:
    with engine.connect().execution_options(**{_ALONE: True}) as connection, _unbegun(connection):
        return work(connection)


@contextmanager
def _unbegun(connection: Connection) -> Iterator[None]:
    """Have nothing begun before a statement: psycopg would, `_begin_sqlite` looks at `_ALONE`."""
    if connection.dialect.name != "postgresql":
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.autocommit = True
    try:
        yield
    finally:
        if not driver.closed:
            driver.autocommit = False


def _address(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError:
        raise DatabaseError(
            "the database URL cannot be read; write sqlite:///FILE or postgresql+psycopg://HOST/NAME"
        ) from None
    is_supported = address.drivername in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg")
    if not is_supported or (address.get_backend_name() == "sqlite" and not _is_file(address)):
        raise DatabaseError(
            f"{address.render_as_string()} cannot hold a ledger; use sqlite:///FILE or "
            "postgresql+psycopg://HOST/NAME"
        )
    return address


def _is_file(address: URL) -> bool:
    return bool(address.database) and address.database != ":memory:" and not address.query


def _exists(address: URL) -> bool:
    return Path(address.database or "").is_file()


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins, not the driver
    # The system keeps the file in memory for all connections; a cache of their own they throw away
    # whenever another one has written, so it is for one transaction, and 256 KB.
    pragmas = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-256")
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get(_ALONE, False):
        read_only = options.get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _passes(error: BaseException) -> bool:
    """True if the same transaction may succeed when it is tried again."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeoutError)
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        return error.orig.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # no server answered
        return isinstance(error, OperationalError)
    return state in _PASSING or state.startswith("08")

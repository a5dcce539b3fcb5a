"""Transactions are serialisable, tried again where they lose a race, and on disk when committed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, column, insert, literal_column, select, table, text
from sqlalchemy.exc import DBAPIError

from support.statements import count_statements
from taciturn.errors import DatabaseError, DatabaseUnavailableError
from taciturn.server.database import add, open_database, rows, transact


@pytest.fixture
def counter(empty_url: str) -> Engine:
    engine = open_database(empty_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE counter (id INTEGER PRIMARY KEY, n INTEGER)"))
        connection.execute(text("INSERT INTO counter VALUES (1, 0)"))
    return engine


def value(engine: Engine) -> int:
    return transact(
        engine,
        lambda connection: connection.execute(text("SELECT n FROM counter")).scalar_one(),
        read_only=True,
    )


def test_read_then_write_loses_no_update(counter: Engine) -> None:
    def add_one(connection: Connection) -> None:
        n = connection.execute(text("SELECT n FROM counter")).scalar_one()
        connection.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    def often() -> None:
        for _ in range(15):
            transact(counter, add_one)

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(counter) == 60


def test_an_exception_rolls_back(counter: Engine) -> None:
    def fail(connection: Connection) -> None:
        connection.execute(text("UPDATE counter SET n = 5"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transact(counter, fail)
    assert value(counter) == 0


def test_a_lost_connection_is_opened_again(counter: Engine) -> None:
    calls = []

    def work(connection: Connection) -> int:
        calls.append(1)
        if len(calls) == 1:
            if counter.dialect.name == "sqlite":
                pytest.skip("a file has no connection to lose")
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return int(connection.execute(text("SELECT n FROM counter")).scalar_one())

    assert transact(counter, work) == 0
    assert len(calls) == 2


def test_patience_ends(counter: Engine) -> None:
    holding, done = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        connection.execute(text("UPDATE counter SET n = 1"))
        holding.set()
        done.wait(120)

    def blocked(connection: Connection) -> None:
        connection.execute(text("UPDATE counter SET n = 2"))

    thread = threading.Thread(target=transact, args=(counter, hold))
    thread.start()
    assert holding.wait(60)
    try:
        with pytest.raises(DatabaseUnavailableError, match=r"within 0\.2 s"):
            transact(counter, blocked, patience_s=0.2)
    finally:
        done.set()
        thread.join()
    assert value(counter) == 1


def test_other_errors_are_passed_on(counter: Engine) -> None:
    with pytest.raises(DBAPIError):
        transact(counter, lambda connection: connection.execute(text("SELECT * FROM nowhere")))


def test_sqlite_waits_for_the_disk_and_keeps_foreign_keys(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 1_000,
    }


def test_postgresql_is_serialisable_and_waits_for_the_disk(counter: Engine) -> None:
    if counter.dialect.name != "postgresql":
        pytest.skip("about PostgreSQL")

    def settings(connection: Connection) -> list[str]:
        names = ("transaction_isolation", "synchronous_commit", "transaction_read_only", "jit")
        return [str(connection.execute(text(f"SHOW {name}")).scalar()) for name in names]

    assert transact(counter, settings) == ["serializable", "on", "off", "off"]
    assert transact(counter, settings, read_only=True) == ["serializable", "on", "on", "off"]
    alone = select(literal_column("current_setting('transaction_isolation')"))
    assert [tuple(row) for row in rows(counter, alone)] == [("serializable",)]
    # Nothing of that stays behind on the connection, which is used again.
    assert transact(counter, settings) == ["serializable", "on", "off", "off"]


COUNTER = table("counter", column("id"), column("n"))


def test_a_query_alone_is_sent_without_a_beginning(counter: Engine) -> None:
    """And sees what others have committed; a transaction after it is one still."""
    with count_statements(counter) as count:
        assert rows(counter, select(COUNTER.c.n))[0].n == 0
    assert (count.statements, count.waits) == (1, 1)
    with count_statements(counter) as count:
        assert value(counter) == 0
    assert (count.statements, count.waits) == (1, 3 if counter.dialect.name == "postgresql" else 2)

    def fail(connection: Connection) -> None:
        connection.execute(text("UPDATE counter SET n = 5"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transact(counter, fail)
    assert rows(counter, select(COUNTER.c.n))[0].n == 0
    transact(counter, lambda connection: connection.execute(text("UPDATE counter SET n = 5")))
    assert rows(counter, select(COUNTER.c.n))[0].n == 5


def test_rows_are_added_by_one_statement(counter: Engine) -> None:
    """All or none, and on record: another connection sees them."""
    added = insert(COUNTER).returning(COUNTER.c.id)
    for numbers in ([2], [3, 4, 5]):
        with count_statements(counter) as count:
            add(counter, added, [{"id": number, "n": 7} for number in numbers])
        assert (count.statements, count.waits) == (1, 1)
    with pytest.raises((DBAPIError, DatabaseUnavailableError)):
        add(counter, added, [{"id": 6, "n": 7}, {"id": 5, "n": 7}], patience_s=0.1)
    other = open_database(counter.url.render_as_string(hide_password=False))
    found = rows(other, select(COUNTER.c.id).where(COUNTER.c.n == 7).order_by(COUNTER.c.id))
    other.dispose()
    assert [row.id for row in found] == [2, 3, 4, 5]


def test_a_query_alone_is_asked_again_on_a_new_connection(counter: Engine) -> None:
    if counter.dialect.name == "sqlite":
        pytest.skip("a file has no connection to lose")
    with counter.connect() as connection:
        lost = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    other = open_database(counter.url.render_as_string(hide_password=False))
    transact(other, lambda at: at.execute(text(f"SELECT pg_terminate_backend({lost})")))
    other.dispose()
    assert rows(counter, select(COUNTER.c.n))[0].n == 0


def test_a_query_alone_that_fails_is_passed_on(counter: Engine) -> None:
    with pytest.raises(DBAPIError):
        rows(counter, select(table("nowhere", column("n"))))
    assert value(counter) == 0


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///a.db?mode=memory",
        "mysql://host/name",
        "postgresql://host/name",
        "nonsense",
    ],
)
def test_databases_that_cannot_hold_a_ledger(url: str) -> None:
    with pytest.raises(DatabaseError, match="sqlite:///FILE"):
        open_database(url)


def test_no_message_holds_a_password() -> None:
    with pytest.raises(DatabaseError) as caught:
        open_database("mysql://user:secret-word@host/name")
    assert "secret-word" not in str(caught.value)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    engine = open_database(f"postgresql+psycopg://x@/x?host={tmp_path}")
    with pytest.raises(DatabaseUnavailableError):
        transact(engine, lambda connection: None, patience_s=0.1)

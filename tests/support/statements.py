"""Counts of what is asked of the database: transactions, statements, messages that wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event


@dataclass
class Count:
    """Messages to the database.

    Attributes:
        waits: messages whose answer has to come before the next one: statements, and of each
            transaction that is not one statement alone its beginning and its end.
    """

    transactions: int = 0
    statements: int = 0
    waits: int = 0

    def __str__(self) -> str:
        return f"{self.waits:3} waits, {self.statements:3} statements, {self.transactions} tx"


@contextmanager
def count_statements(engine: Engine) -> Iterator[Count]:
    """Count what an engine sends while the block runs."""
    count = Count()

    def execute(_: Any, __: Any, statement: str, *___: Any) -> None:
        count.waits += 1
        count.statements += not statement.startswith("BEGIN")

    def begin(connection: Connection) -> None:
        count.transactions += 1
        if connection.dialect.name == "postgresql":
            driver: Any = connection.connection.driver_connection
            count.waits += 0 if driver.autocommit else 2

    event.listen(engine, "before_cursor_execute", execute)
    event.listen(engine, "begin", begin)
    try:
        yield count
    finally:
        event.remove(engine, "before_cursor_execute", execute)
        event.remove(engine, "begin", begin)

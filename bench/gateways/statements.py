"""What a request asks of the database: transactions, statements, and messages that wait for an
answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event
from starlette.testclient import TestClient

from gateways.load import Ask


@dataclass
class Talk:
    """What was said.

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
def heard(engine: Engine) -> Iterator[Talk]:
    """Listen to an engine for the length of the block."""
    talk = Talk()

    def execute(_: Any, __: Any, statement: str, *___: Any) -> None:
        talk.waits += 1
        talk.statements += not statement.startswith("BEGIN")

    def begin(connection: Connection) -> None:
        talk.transactions += 1
        if connection.dialect.name == "postgresql":
            driver: Any = connection.connection.driver_connection
            talk.waits += 0 if driver.autocommit else 2

    event.listen(engine, "before_cursor_execute", execute)
    event.listen(engine, "begin", begin)
    try:
        yield talk
    finally:
        event.remove(engine, "before_cursor_execute", execute)
        event.remove(engine, "begin", begin)


def asked(client: TestClient, ask: Ask) -> int:
    """The status of an answer in this process."""
    head, _, body = ask.data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    content = json.loads(body) if body else None
    del headers["Content-Length"]
    return client.request(method, path, headers=headers, json=content).status_code

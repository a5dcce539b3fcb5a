"""Processes on one PostgreSQL server hear of each other, and go on where they do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, text

from taciturn.server.database import open_database, transact
from taciturn.server.process_messages import DETAIL_BYTES, ProcessMessages, Topic, publish_with


@contextmanager
def process(url: str) -> Iterator[tuple[ProcessMessages, list[str]]]:
    """A process that notes what it hears."""
    engine = open_database(url)
    messages, details = ProcessMessages(engine), list[str]()
    messages.subscribe(Topic.TEXT, details.append)
    messages.start()
    until(lambda: engine.dialect.name == "sqlite" or listening(engine))
    try:
        yield messages, details
    finally:
        messages.stop()
        engine.dispose()


def listening(engine: Engine) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    with engine.connect() as connection:
        return int(connection.execute(text(query)).scalar_one())


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def pair(url: str) -> Iterator[list[tuple[ProcessMessages, list[str]]]]:
    if url.startswith("sqlite"):
        pytest.skip("SQLite serves one process")
    with process(url) as here, process(url) as there:
        until(lambda: listening(here[0].engine) >= 2)
        yield [here, there]


def test_all_the_others_hear(pair: list[tuple[ProcessMessages, list[str]]]) -> None:
    (here, own), (_, heard) = pair
    longest = "x" * DETAIL_BYTES
    for detail in ("job_1", "with a blank", longest):
        here.publish(Topic.TEXT, detail)
    here.publish(Topic.EVENT)  # nobody subscribes to it
    until(lambda: len(heard) == 3)
    assert heard == ["job_1", "with a blank", longest]
    assert own == []


def test_with_a_transaction_it_is_heard_once_that_is_committed(
    pair: list[tuple[ProcessMessages, list[str]]],
) -> None:
    (here, own), (_, heard) = pair

    def work(connection: Any) -> None:
        publish_with(connection, Topic.TEXT, "job_1")
        time.sleep(0.3)
        assert heard == []

    transact(here.engine, work)
    with pytest.raises(ZeroDivisionError):
        transact(here.engine, lambda c: (publish_with(c, Topic.TEXT, "undone"), 1 // 0))
    until(lambda: heard and own)
    time.sleep(0.2)
    assert heard == own == ["job_1"]


def test_a_subscriber_that_fails_and_a_lost_connection_do_not_make_it_deaf(
    pair: list[tuple[ProcessMessages, list[str]]],
) -> None:
    (here, _), (there, heard) = pair
    there.subscribe(Topic.EVENT, lambda _: 1 // 0)
    here.publish(Topic.EVENT)
    with here.engine.connect() as connection:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        assert len(connection.execute(text(kill)).all()) == 2

    def arrived() -> bool:
        here.publish(Topic.TEXT, "again")
        time.sleep(0.1)
        return bool(heard)

    until(arrived)


def test_one_process_on_sqlite_has_nobody_to_notify(tmp_path: Any) -> None:
    threads = threading.active_count()
    with process(f"sqlite:///{tmp_path / 'gateway.db'}") as (messages, heard):
        messages.publish(Topic.TEXT, "job_1")
        assert threading.active_count() == threads
        assert heard == []

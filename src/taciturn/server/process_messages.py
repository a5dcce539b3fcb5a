"""Messages between the processes and replicas of one gateway, by PostgreSQL's LISTEN/NOTIFY.

A notification says "look now" to a process that would look within a second anyway, so it may be
lost: what it is about is in the database, and whoever missed it finds it there. SQLite serves one
process, which has nobody to notify.

    messages.subscribe(Topic.JOB_QUEUED, lambda detail: dispatcher.wake())
    messages.publish(Topic.JOB_QUEUED)
    publish_with(connection, Topic.TEXT, job_id)         # delivered when the transaction commits
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

DETAIL_BYTES = 7000
"""Longest detail: PostgreSQL takes payloads of less than 8000 bytes."""

_CHANNEL = "taciturn"
_WAIT_S = 0.5
_RECONNECT_S = 1.0
_log = logging.getLogger("taciturn.process_messages")


class Topic(StrEnum):
    """Subject of a notification, with its detail where it has one."""

    JOB_QUEUED = "job-queued"
    ACCESS_CHANGED = "access-changed"
    LAUNCHER_AWAY = "launcher-away"
    LAUNCHER_ANSWERS = "launcher-answers"
    EVENT = "event"
    TEXT = "text"  # id of the job
    ANONYMOUS = "anonymous"  # counts as JSON


def publish_with(connection: Connection, topic: Topic, detail: str = "") -> None:
    """Notify all processes, this one included, when the caller's transaction commits."""
    _publish(connection, "", topic, detail)


@dataclass(eq=False, slots=True)
class ProcessMessages:
    """Messages that one process sends and receives."""

    engine: Engine
    _subscribers: dict[str, list[Callable[[str], object]]] = field(default_factory=dict)
    _sender: str = field(default_factory=lambda: secrets.token_hex(8))
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def subscribe(self, topic: Topic, callback: Callable[[str], object]) -> None:
        """Call this with the detail of each notification that arrives, on a thread of its own; it
        must not block."""
        self._subscribers.setdefault(topic, []).append(callback)

    def publish(self, topic: Topic, detail: str = "") -> None:
        """Notify all other processes now. A failure is logged: they look by themselves."""
        if not _has_channels(self.engine):
            return
        try:
            connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            with connection:
                _publish(connection, self._sender, topic, detail)
        except SQLAlchemyError as error:
            _log.warning("a notification was not sent: %s", type(error).__name__)

    def start(self) -> None:
        """Listen from now on."""
        if _has_channels(self.engine):
            self._thread = threading.Thread(
                target=self._run, name="taciturn-process-messages", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(2 * _WAIT_S)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._listen()
            except (SQLAlchemyError, psycopg.Error) as error:
                _log.warning("messages between processes are away: %s", type(error).__name__)
                self._over.wait(_RECONNECT_S)

    def _listen(self) -> None:
        fairy = self.engine.raw_connection()
        driver: Any = fairy.driver_connection
        fairy.detach()  # from the pool, whose connections are for transactions
        with driver:
            driver.autocommit = True
            driver.execute(f"LISTEN {_CHANNEL}")
            while not self._over.is_set():
                for notification in driver.notifies(timeout=_WAIT_S):
                    self._deliver(notification.payload)

    def _deliver(self, payload: str) -> None:
        sender, topic, detail = payload.split(" ", 2)
        if sender == self._sender:
            return
        for callback in self._subscribers.get(topic, ()):
            try:
                callback(detail)
            except Exception:
                _log.exception("a notification could not be handled", extra={"topic": topic})


def _publish(connection: Connection, sender: str, topic: Topic, detail: str) -> None:
    if _has_channels(connection.engine):
        connection.execute(select(func.pg_notify(_CHANNEL, f"{sender} {topic} {detail}")))


def _has_channels(engine: Engine) -> bool:
    return engine.dialect.name == "postgresql"

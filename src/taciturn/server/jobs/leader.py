"""The leader: of several gateway processes on one database, the one that gives jobs to workers.

A launcher knows the workers that it has started. A process that looks for another one's on its own
machine finds none there, and would start them a second time. On PostgreSQL the leader is whoever
holds an advisory lock; the server releases it when the connection is gone, so that the next process
follows as soon as one has died. On SQLite, which serves one process, a locked file keeps a second
gateway on the same file from dispatching.

Nothing rests on this but that work is not done twice: two leaders at once, while a dead connection
goes unnoticed, are told apart by each job's row and the ledger's fencing tokens.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from taciturn.server.background import Component
from taciturn.server.settings import Settings

_LOCK = 7_305_804_402_496_374  # an advisory lock has a number; any that nobody else takes


class Leader(Protocol):
    """Leadership of this process."""

    @property
    def leads(self) -> bool:
        """True if this process led when it last asked."""
        ...

    def lead(self) -> bool:
        """Take the lead if nobody has it; True if this process leads. Called before each round."""
        ...

    def start(self) -> None:
        """Do nothing: the lead is taken when it is asked for."""
        ...

    def stop(self) -> None:
        """Leave the lead to another process."""
        ...


@dataclass(slots=True)
class PostgresLeader:
    """An advisory lock of PostgreSQL, held by a connection of its own."""

    engine: Engine
    _connection: Connection | None = field(default=None)

    @property
    def leads(self) -> bool:
        """See Leader."""
        return self._connection is not None

    def start(self) -> None:
        """See Leader."""

    def lead(self) -> bool:
        """See Leader."""
        try:
            if self._connection is not None:
                self._connection.execute(text("SELECT 1"))
                return True
            return self._take()
        except SQLAlchemyError:
            self.stop()
            return False

    def stop(self) -> None:
        """See Leader."""
        if self._connection is not None:
            # Said, because the server sees that a connection is gone only some time later.
            with suppress(SQLAlchemyError):
                self._connection.execute(
                    text("SELECT pg_advisory_unlock(:number)"), {"number": _LOCK}
                )
            # Out of the pool for good: a connection that was given back could keep the lock.
            with suppress(SQLAlchemyError):
                self._connection.invalidate()
            with suppress(SQLAlchemyError):
                self._connection.close()
            self._connection = None

    def _take(self) -> bool:
        # No transaction: the server would end one that idles.
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        statement = text("SELECT pg_try_advisory_lock(:number)")
        if connection.execute(statement, {"number": _LOCK}).scalar():
            self._connection = connection
            return True
        connection.close()
        return False


@dataclass(slots=True)
class FileLeader:
    """A locked file in the data folder; the operating system lets go of a dead process's locks."""

    path: Path
    _descriptor: int | None = field(default=None)

    @property
    def leads(self) -> bool:
        """See Leader."""
        return self._descriptor is not None

    def start(self) -> None:
        """See Leader."""

    def lead(self) -> bool:
        """See Leader."""
        if self._descriptor is not None:
            return True
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def stop(self) -> None:
        """See Leader."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def open_leader(settings: Settings, engine: Engine) -> Leader:
    """Return the kind that fits the database."""
    if engine.dialect.name == "postgresql":
        return PostgresLeader(engine)
    return FileLeader(settings.data_dir / "dispatcher.lock")


@dataclass(slots=True)
class LeaderTasks:
    """Components that run in the leader alone: started when this process takes the lead, stopped
    when it loses it, and made anew each time."""

    leader: Leader
    factories: Sequence[Callable[[], Component]]
    _running: list[Component] = field(default_factory=list)

    def follow(self) -> None:
        """Start or stop them where the lead has changed."""
        if self.leader.leads and not self._running:
            for make in self.factories:
                component = make()
                component.start()
                self._running.append(component)
        elif not self.leader.leads:
            self.stop()

    def start(self) -> None:
        """Do nothing: they start when this process takes the lead."""

    def stop(self) -> None:
        """Stop those that run."""
        while self._running:
            self._running.pop().stop()

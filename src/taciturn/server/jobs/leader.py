"""Which of several gateways on one database gives jobs to workers: one at a time.

A launcher knows the workers that it has started. A gateway that looks for another one's on its own
machine finds none there, and would start them a second time. On PostgreSQL, whoever holds an
advisory lock is on duty; the server lets go of it when the connection is gone, so that the next
gateway follows as soon as one has died. Gateways on one file of SQLite are on one machine, and a
locked file does.

Nothing rests on this but that work is not done twice: two that are on duty at once, while a dead
connection goes unnoticed, are told apart by each job's row and the ledger's fencing tokens.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from taciturn.server.settings import Settings

_LOCK = 7_305_804_402_496_374  # an advisory lock has a number; any that nobody else takes


class Duty(Protocol):
    """Says whether this gateway may dispatch now."""

    def held(self) -> bool:
        """Take it up if nobody has it. Asked before each round."""
        ...

    def stop(self) -> None:
        """Leave it to another one."""
        ...

    def start(self) -> None:
        """Nothing: it is taken up when it is asked for."""
        ...


@dataclass(slots=True)
class ServerDuty:
    """An advisory lock of PostgreSQL, held by a connection of its own."""

    engine: Engine
    _connection: Connection | None = field(default=None)

    def start(self) -> None:
        """See Duty."""

    def held(self) -> bool:
        """See Duty."""
        try:
            if self._connection is not None:
                self._connection.execute(text("SELECT 1"))
                return True
            return self._taken()
        except SQLAlchemyError:
            self.stop()
            return False

    def stop(self) -> None:
        """See Duty."""
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

    def _taken(self) -> bool:
        # No transaction: the server would end one that idles.
        made = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if made.execute(text("SELECT pg_try_advisory_lock(:number)"), {"number": _LOCK}).scalar():
            self._connection = made
            return True
        made.close()
        return False


@dataclass(slots=True)
class FileDuty:
    """A locked file in the data folder; the operating system lets go of a dead process's locks."""

    path: Path
    _descriptor: int | None = field(default=None)

    def start(self) -> None:
        """See Duty."""

    def held(self) -> bool:
        """See Duty."""
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
        """See Duty."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def duty_of(settings: Settings, engine: Engine) -> Duty:
    """The kind that fits the database."""
    if engine.dialect.name == "postgresql":
        return ServerDuty(engine)
    return FileDuty(settings.data_dir / "dispatcher.lock")

"""Databases of tests: no power fails during a test, so none of them waits for the disk."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import Engine, event

from taciturn.server.database import open_database


def open_quickly(url: str) -> Engine:
    """Return an engine as `open_database` does, on a file that survives killed processes only.

    What a gateway promises about the disk is tested on `open_database` itself.
    """
    engine = open_database(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _not_waiting)
    return engine


def _not_waiting(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF").close()

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
    _remember_statements(engine)
    return engine


_FIRST: dict[str, Engine] = {}
"""The first engine on each kind of database."""


def _remember_statements(engine: Engine) -> None:
    """Have the engines of this process share what SQLAlchemy has compiled.

    Compiling the statements anew for the gateway of each test takes more time than they do. What is
    compiled belongs to a dialect, which learns what it needs to know from its first connection.
    """
    kind = engine.dialect.name
    if kind not in _FIRST:
        engine.connect().close()
        _FIRST[kind] = engine
    first: Any = _FIRST[kind]
    shared: Any = engine
    shared.dialect = shared.pool._dialect = first.dialect
    shared._compiled_cache = first._compiled_cache


def _not_waiting(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF").close()

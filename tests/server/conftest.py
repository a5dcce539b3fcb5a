"""Databases to test on: a file of SQLite, and a PostgreSQL server that the tests start."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ledgers.cluster import Cluster, NoPostgresError, postgres
from taciturn.server import schema
from taciturn.server.database import open_database

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server; tests that need one are skipped where none is installed."""
    try:
        with postgres() as running:
            engine = open_database(running.create("migrated"))
            schema.upgrade(engine)
            engine.dispose()
            yield running
    except NoPostgresError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    yield from _url(request, tmp_path, "template0")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the tables of this version."""
    for made in _url(request, tmp_path, "migrated"):
        if made.startswith("sqlite"):
            engine = open_database(made)
            schema.upgrade(engine)
            engine.dispose()
        yield made


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """An engine on a database with the tables of this version."""
    opened = open_database(url)
    yield opened
    opened.dispose()


def _url(request: pytest.FixtureRequest, folder: Path, template: str) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{folder / 'server.db'}"
        return
    running: Cluster = request.getfixturevalue("cluster")
    name = f"test_{next(_NUMBERS)}"
    yield running.create(name, template)
    running.drop(name)

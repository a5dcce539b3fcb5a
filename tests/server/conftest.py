"""Databases to test on: a file of SQLite, and a PostgreSQL server that the tests start."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psycopg
import pytest
from sqlalchemy import URL, Engine, make_url

from support.databases import open_quickly
from support.gateway import GatewayWorld
from support.postgres import NoPostgresError, PostgresServer, postgres
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.schema import versions
from taciturn.server.schema.tables import metadata

_NUMBERS = itertools.count()
# Imported when it is first used, which would be in the thread of a test's server. pytest parses its
# source there, and two threads of CPython 3.11 that parse at once can fail.
assert anyio.open_file


@pytest.fixture(scope="session")
def cluster() -> Iterator[PostgresServer]:
    """A PostgreSQL server; tests that need one are skipped where none is installed."""
    try:
        with postgres() as running:
            yield running
    except NoPostgresError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of SQLite with the tables, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_url(cluster: PostgresServer) -> str:
    """A database of PostgreSQL with the tables, to be emptied before each test."""
    url = cluster.create("migrated")
    _migrate(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'server.db'}"
        return
    running: PostgresServer = request.getfixturevalue("cluster")
    name = f"empty_{next(_NUMBERS)}"
    yield running.create(name)
    running.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with the tables of this version, and nothing in them."""
    if request.param == "sqlite":
        path = tmp_path / "server.db"
        shutil.copy(request.getfixturevalue("migrated_file"), path)
        return f"sqlite:///{path}"
    migrated: str = request.getfixturevalue("migrated_url")
    empty(make_url(migrated))
    return migrated


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """An engine on a database with the tables of this version."""
    opened = open_quickly(url)
    yield opened
    opened.dispose()


@pytest.fixture(scope="session")
def open_copy(migrated_file: Path) -> Callable[[Path], Engine]:
    """Folder -> an engine on a new file of SQLite in it, with the tables."""

    def opened(folder: Path) -> Engine:
        path = shutil.copy(migrated_file, folder / "lite.db")
        return open_quickly(f"sqlite:///{path}")

    return opened


@pytest.fixture
def lite_engine(open_copy: Callable[[Path], Engine], tmp_path: Path) -> Iterator[Engine]:
    """An engine on SQLite, for what no database has a part in."""
    opened = open_copy(tmp_path)
    yield opened
    opened.dispose()


@pytest.fixture(scope="session")
def trials() -> Iterator[SqlSandbox]:
    """The processes that try selections; libraries are loaded once for all tests."""
    opened = SqlSandbox(at_once=1)
    yield opened
    opened.close()


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> GatewayWorld:
    """A gateway without people, on both databases."""
    return GatewayWorld.open(engine, tmp_path)


@pytest.fixture
def lite(lite_engine: Engine, tmp_path: Path) -> GatewayWorld:
    """The same on SQLite alone."""
    return GatewayWorld.open(lite_engine, tmp_path)


def _migrate(url: str) -> None:
    engine = open_quickly(url)
    versions.upgrade(engine)
    engine.dispose()


def empty(url: URL) -> None:
    """Remove all rows, past the triggers that refuse it to everybody but the server's owner."""
    # Few rows are deleted sooner than files of three dozen tables are made anew, as TRUNCATE does.
    deletions = "; ".join(f"DELETE FROM {name}" for name in metadata.tables)
    with psycopg.connect(
        host=str(url.query["host"]), user=url.username, dbname=url.database
    ) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(deletions)  # type: ignore[arg-type]

"""The ward on each database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from taciturn.server.database import open_database
from ward import Ward, make_ward


@pytest.fixture
def ward(engine: Engine, tmp_path: Path) -> Ward:
    """A gateway with people and a dataset."""
    return make_ward(engine, tmp_path / "gateway")


@pytest.fixture(scope="module")
def still(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """One on SQLite for all tests of a module in which nothing comes to pass."""
    folder = tmp_path_factory.mktemp("still")
    shutil.copy(migrated_file, folder / "server.db")
    engine = open_database(f"sqlite:///{folder / 'server.db'}")
    yield make_ward(engine, folder / "gateway")
    engine.dispose()

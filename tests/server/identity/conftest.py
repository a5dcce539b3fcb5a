from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import Engine

from reception import Reception
from taciturn.server.database import open_database


@pytest.fixture
def reception(engine: Engine, tmp_path: Path) -> Reception:
    """An application, on both databases."""
    return Reception(engine, tmp_path)


@pytest.fixture
def desk(migrated_file: Path, tmp_path: Path) -> Reception:
    """An application on SQLite, for what no database has a part in."""
    shutil.copy(migrated_file, tmp_path / "gateway.db")
    return Reception(open_database(f"sqlite:///{tmp_path / 'gateway.db'}"), tmp_path)

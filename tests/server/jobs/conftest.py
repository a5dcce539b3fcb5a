"""The ward on each database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ward import Ward, make_ward


@pytest.fixture
def ward(engine: Engine, tmp_path: Path) -> Iterator[Ward]:
    """A gateway with people and a dataset."""
    yield make_ward(engine, tmp_path / "gateway")

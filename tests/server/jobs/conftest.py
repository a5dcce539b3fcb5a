"""The ward on each database."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from ward import Ward, make_ward


@pytest.fixture
def ward(engine: Engine, tmp_path: Path) -> Ward:
    """A gateway with people and a dataset."""
    return make_ward(engine, tmp_path / "gateway")

"""Gateways with people who can ask for jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from support.gateway import GatewayWorld


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> GatewayWorld:
    """One on both databases."""
    return GatewayWorld.for_jobs(engine, tmp_path / "gateway")


@pytest.fixture(scope="module")
def unchanged(
    open_copy: Callable[[Path], Engine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayWorld]:
    """One on SQLite for all tests of a module in which nothing comes to pass."""
    folder = tmp_path_factory.mktemp("unchanged")
    engine = open_copy(folder)
    yield GatewayWorld.for_jobs(engine, folder / "gateway")
    engine.dispose()

"""Gateways with people and no data yet, whose probes and released files are the test's."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from support.gateway import GatewayWorld
from taciturn.server.catalog.sql_sandbox import SqlSandbox


@pytest.fixture
def world(engine: Engine, tmp_path: Path, trials: SqlSandbox) -> GatewayWorld:
    """One on both databases."""
    return GatewayWorld.for_catalog(engine, tmp_path, trials)


@pytest.fixture
def lite(lite_engine: Engine, tmp_path: Path, trials: SqlSandbox) -> GatewayWorld:
    """The same on SQLite alone."""
    return GatewayWorld.for_catalog(lite_engine, tmp_path, trials)

"""A gateway with people and data, for pages of the console."""

from __future__ import annotations

import pytest

from support.gateway import GatewayWorld


@pytest.fixture
def console(lite: GatewayWorld) -> GatewayWorld:
    """A gateway with people and data, on SQLite."""
    return lite.populate()

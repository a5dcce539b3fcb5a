"""A ledger with one account and one grant, on each database."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from support.ledger import LedgerWorld


@pytest.fixture
def world(engine: Engine) -> LedgerWorld:
    """A namespace with epsilon 8, of which user:ada may spend 3."""
    world = LedgerWorld(engine)
    world.open()
    world.grant("user:ada")
    return world

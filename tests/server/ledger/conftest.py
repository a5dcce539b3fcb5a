"""A ledger with one account and one grant, on each database."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from desk import Desk


@pytest.fixture
def desk(engine: Engine) -> Desk:
    """A namespace with epsilon 8, of which user:ada may spend 3."""
    made = Desk(engine)
    made.open()
    made.grant("user:ada")
    return made

"""Lists that say they have the newest first have it, whatever the ids are, page by page."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, update

from support.gateway import GatewayWorld
from taciturn.server.schema.tables import tokens

AGES = ((3, 100), (1, 300), (2, 200), (5, 200), (4, 400))
"""Number in the id, and when it was made."""
NEWEST_FIRST = [4, 1, 5, 2, 3]


@pytest.fixture
def full(lite: GatewayWorld) -> GatewayWorld:
    """Of models and tokens several, made in another order than their ids have."""
    lite.add_people().ready()

    for number, at_ms in AGES:
        fit = lite.add_job("fit", state="succeeded")
        lite.add_model(fit, id=f"model_{number:020d}", created_at_ms=at_ms)

    def fill(connection: Any) -> None:
        connection.execute(update(tokens).values(created_at_ms=0))
        for number, at_ms in AGES:
            connection.execute(insert(tokens).values(token(lite, number, at_ms)))

    lite.gateway.write(fill)
    return lite


def token(world: GatewayWorld, number: int, at_ms: int) -> dict[str, Any]:
    return {
        "id": f"tok_{number:020d}",
        "kind": "api",
        "user_id": world.users["olga"],
        "name": "test",
        "digest": "0" * 64,
        "scopes": "[]",
        "created_at_ms": at_ms,
        "expires_at_ms": 10**13,
    }


@pytest.mark.parametrize("path", ["/models", "/tokens"])
def test_the_newest_come_first(full: GatewayWorld, path: str) -> None:
    cursor, seen = "", list[int]()
    while cursor is not None:
        after = f"&cursor={cursor}" if cursor else ""
        page = full.ask("olga", "GET", f"{path}?limit=2{after}").json()
        seen += [int(each["id"].partition("_")[2], 36) for each in page["items"]]
        cursor = page["next_cursor"]
    assert seen[: len(NEWEST_FIRST)] == NEWEST_FIRST

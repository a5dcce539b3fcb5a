"""Lists that say they have the newest first have it, whatever the ids are, page by page."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, update

from hospital import DP_LINE, Hospital
from taciturn.server.schema.tables import models, tokens

AGES = ((3, 100), (1, 300), (2, 200), (5, 200), (4, 400))
"""Number in the id, and when it was made."""
NEWEST_FIRST = [4, 1, 5, 2, 3]


@pytest.fixture
def full(clinic: Hospital) -> Hospital:
    """Of models and tokens several, made in another order than their ids have."""
    clinic.ready()

    def fill(connection: Any) -> None:
        connection.execute(update(tokens).values(created_at_ms=0))
        for number, at_ms in AGES:
            job = fits[number]
            connection.execute(insert(models).values(model(clinic, job, number, at_ms)))
            connection.execute(insert(tokens).values(token(clinic, number, at_ms)))

    fits = {number: clinic.job("fit", state="succeeded") for number, _ in AGES}
    clinic.gateway.write(fill)
    return clinic


def model(clinic: Hospital, job: str, number: int, at_ms: int) -> dict[str, Any]:
    return {
        "id": f"model_{number:020d}",
        "job_id": job,
        "owner_id": clinic.ids["olga"],
        "namespace": "patients",
        "base_model": "taciturn/tiny-medical",
        "report": "{}",
        "policy": DP_LINE.model_dump_json(),
        "created_at_ms": at_ms,
    }


def token(clinic: Hospital, number: int, at_ms: int) -> dict[str, Any]:
    return {
        "id": f"tok_{number:020d}",
        "kind": "api",
        "user_id": clinic.ids["olga"],
        "name": "test",
        "digest": "0" * 64,
        "scopes": "[]",
        "created_at_ms": at_ms,
        "expires_at_ms": 10**13,
    }


@pytest.mark.parametrize("path", ["/models", "/tokens"])
def test_the_newest_come_first(full: Hospital, path: str) -> None:
    cursor, seen = "", list[int]()
    while cursor is not None:
        after = f"&cursor={cursor}" if cursor else ""
        page = full.ask("olga", "GET", f"{path}?limit=2{after}").json()
        seen += [int(each["id"].partition("_")[2], 36) for each in page["items"]]
        cursor = page["next_cursor"]
    assert seen[: len(NEWEST_FIRST)] == NEWEST_FIRST

"""Two gateways in one process: they share what was read of their routes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from support.gateway import DATASET, GatewayWorld

PAGE = f"/datasets/{DATASET}"


@pytest.fixture
def two(open_copy: Callable[[Path], Engine], tmp_path: Path) -> tuple[GatewayWorld, GatewayWorld]:
    """Two gateways with the same people and, in the first one, data."""
    engines = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        engines.append(open_copy(tmp_path / name))
    one, other = (GatewayWorld.open(engine, tmp_path) for engine in engines)
    return one.populate(), other.add_people()


def test_each_answers_from_its_own_database(two: tuple[GatewayWorld, GatewayWorld]) -> None:
    one, other = two
    for _ in range(2):  # also after the other one has answered
        assert [view["name"] for view in one.get("datasets", "olga").json()["items"]] == [DATASET]
        assert other.get("datasets", "olga").json()["items"] == []
    pages = [world.client.get(PAGE, headers=world.headers("olga")) for world in two]
    assert [page.status_code for page in pages] == [200, 404]
    stranger = other.client.get("/v1/datasets", headers=one.headers("olga"))
    assert stranger.status_code == 401


def test_routes_are_read_once(two: tuple[GatewayWorld, GatewayWorld]) -> None:
    """FastAPI takes a tenth of a second for those of a request, and half of one for all."""
    one, other = (world.app.router.routes for world in two)
    assert len(one) > 40
    own = {id(route) for route in one} - {id(route) for route in other}
    assert len(own) <= 1  # the document's address, which FastAPI adds

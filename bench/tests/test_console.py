"""The console's benchmark, on a small gateway: it sees every page, and what a page asks for."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import func, select

from console import Measured, Place, measure
from consoles.filling import Amounts, fill
from consoles.readers import Askers
from support.gateway import GatewayWorld
from support.pages import Page, console_pages, furnished
from taciturn.server.context import Gateway
from taciturn.server.database import open_database
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.ledger.journal import utc_now
from taciturn.server.schema import versions
from taciturn.server.schema.tables import audit_log, datasets, job_events, jobs
from taciturn.server.settings import Settings

SMALL = Amounts(
    jobs=40, steps=7, datasets=4, namespaces=2, models=3, waiting=2, people=3, spenders=1, records=9
)


def test_every_page_is_measured_on_what_was_filled(tmp_path: Path) -> None:
    engine, key = open_database(f"sqlite:///{tmp_path / 'server.db'}"), SealKey.generate()
    versions.upgrade(engine)
    settings = Settings(data_dir=tmp_path, tick_s=0.1, source_prefixes=("/",))
    gateway = Gateway(settings, engine, key, Ledger(engine, key), utc_now)
    world = GatewayWorld(gateway).populate()
    things = furnished(world) | fill(world, SMALL)
    with engine.connect() as connection:
        for table, least in ((jobs, 40), (datasets, 4), (job_events, 150), (audit_log, 9)):
            assert connection.scalar(select(func.count()).select_from(table)) >= least
    lines = asyncio.run(measure(Place(gateway, world, things, {}), 1))
    measured = {line.page.template for line in lines}
    pages = [page for page in console_pages(world.app, things) if not page.public]
    assert {page.template for page in pages} - measured == {"/audit-log/export"}, "that is a file"
    assert all(line.status < 400 for line in lines), [*map(str, lines)]
    engine.dispose()


def test_a_goal_that_is_missed_is_said() -> None:
    page = Page("/", "/", frozenset(), public=False)
    fast = Measured(page, "paul", seconds=[0.01] * 20, status=200, bytes=1000)
    slow = Measured(page, "paul", seconds=[0.01] * 10 + [0.06] * 10, status=200, bytes=1000)
    large = Measured(page, "paul", seconds=[0.01] * 20, status=200, bytes=100_000)
    assert [line.well for line in (fast, slow, large)] == [True, False, False]
    assert "MISSED" in str(slow)


def test_what_asks_again_by_itself_is_seen() -> None:
    askers = Askers(
        '<p hx-get="/a" hx-trigger="every 2s"><p hx-get="/b" hx-trigger="load">'
        '<p hx-get="/c" hx-trigger="load, every 500ms"><p hx-sse:connect="/d">'
    )
    assert askers.polls == [("/a", 2.0), ("/c", 0.5)]
    assert askers.streams == ["/d"]

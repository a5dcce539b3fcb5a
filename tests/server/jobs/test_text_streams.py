"""Pieces of text come in order, once, by whichever process, and are not kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from support.gateway import GatewayWorld
from taciturn.server.context import Gateway
from taciturn.server.database import open_database
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.jobs import text_streams as module
from taciturn.server.jobs.text_streams import LIFETIME_MS, TextStreams
from taciturn.server.problems import ProblemError
from taciturn.server.process_messages import ProcessMessages, Topic
from taciturn.server.schema.tables import jobs, text_pieces
from taciturn.wire.jobs import JobKind
from taciturn.wire.worker import TextChunk


class SampleJob:
    """A sample job with its worker, and the streams of one process."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.world = GatewayWorld.open(engine, folder).populate()
        self.streams = TextStreams(self.world.gateway)
        self.job, self.worker = self.sampling()

    def sampling(self) -> tuple[str, WorkerPrincipal]:
        job = self.world.add_job(JobKind.SAMPLE)
        self.world.worker_headers(job)
        query = select(jobs.c.worker_token).where(jobs.c.id == job)
        token = self.world.gateway.rows(query)[0].worker_token
        return job, WorkerPrincipal(token_id=token, job_id=job, attempt=1)

    def put(self, text: str, offset: int | None = None, *, last: bool = False) -> None:
        self.streams.add(self.worker, 1, TextChunk(text=text, offset=offset, last=last))

    def kept(self) -> int:
        return int(self.world.gateway.rows(select(func.count(text_pieces.c.data)))[0][0])


@pytest.fixture
def sample(engine: Engine, tmp_path: Path) -> SampleJob:
    return SampleJob(engine, tmp_path)


async def everything(streams: TextStreams, job: str) -> list[str]:
    texts: list[str] = []
    while chunks := await streams.read(job, len(texts), 0.3):
        texts += [chunk.text for chunk in chunks]
        if chunks[-1].last:
            break
    return texts


def run(test: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(120):
            return await test()

    return asyncio.run(bounded())


def test_pieces_come_in_order_whoever_comes_first(sample: SampleJob) -> None:
    async def test() -> None:
        await asyncio.to_thread(sample.put, "On\0", 0)
        reader = asyncio.create_task(everything(sample.streams, sample.job))
        await asyncio.sleep(0.05)
        for text, last in (("ce", False), ("", True), ("after the end", False)):
            await asyncio.to_thread(sample.put, text, last=last)
        assert await reader == ["On\0", "ce", ""]

    run(test)
    sample.streams.delete(sample.job)
    assert sample.kept() == 0


def test_repeats_and_gaps_are_dropped(sample: SampleJob) -> None:
    for text, offset in (("On", 0), ("On", 0), ("ce", 2), ("gap", 9)):
        sample.put(text, offset)
    assert run(lambda: everything(sample.streams, sample.job)) == ["On", "ce"]


def test_only_the_worker_that_holds_the_job_writes(sample: SampleJob) -> None:
    with pytest.raises(ProblemError, match="does not hold the job"):
        sample.streams.add(sample.worker, 2, TextChunk(text="of an earlier lease", offset=0))
    assert sample.kept() == 0


def test_what_nobody_reads_is_bounded(sample: SampleJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIMIT_CHARS", 3)
    for _ in range(9):
        sample.put("x")
    assert sample.kept() == 3
    sample.streams.prune()
    assert sample.kept() == 3
    sample.world.clock.forward(LIFETIME_MS / 1000 + 1)
    sample.streams.prune()
    assert sample.kept() == 0


def test_a_reader_is_woken_by_another_process(url: str, tmp_path: Path) -> None:
    """On PostgreSQL: worker and reader have reached two gateways, and no look is waited for."""
    here, there = open_database(url), open_database(url)
    if here.dialect.name == "sqlite":
        pytest.skip("SQLite serves one process")
    sample = SampleJob(here, tmp_path)
    gateway = sample.world.gateway
    near = TextStreams(
        Gateway(gateway.settings, there, gateway.seal_key, gateway.ledger, gateway.clock)
    )
    messages = ProcessMessages(there)
    messages.subscribe(Topic.TEXT, near.wake)
    messages.start()

    async def test() -> float:
        reader = asyncio.create_task(near.read(sample.job, 0, 20))
        await asyncio.sleep(1)
        began_s = time.monotonic()
        await asyncio.to_thread(sample.put, "Once", 0)
        (chunk,) = await reader
        assert chunk.text == "Once"
        return time.monotonic() - began_s

    try:
        assert run(test) < 5
    finally:
        messages.stop()
        here.dispose()
        there.dispose()

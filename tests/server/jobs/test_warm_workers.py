"""A worker that waits gets the next job of its model, and a job goes to one worker."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from taciturn.server.jobs.warm_workers import Idle
from taciturn.wire.worker import NextJob

JOB = NextJob(job="job_1", token="t")


def test_a_job_goes_to_one_waiting_worker() -> None:
    async def run() -> None:
        idle = Idle()
        workers = [asyncio.create_task(idle.offer("m", f"handle-{i}", 0.3)) for i in range(2)]
        other = asyncio.create_task(idle.offer("other", None, 0.3))
        await asyncio.sleep(0.01)
        handles: list[str | None] = []

        def claim(handle: str | None) -> NextJob:
            handles.append(handle)
            return JOB

        assert await asyncio.to_thread(idle.take, "m", claim)
        assert await asyncio.gather(*workers, other) == [JOB, None, None]
        assert handles == ["handle-0"]
        assert not idle.take("m", claim)

    asyncio.run(run())


def test_nothing_is_claimed_where_nobody_waits() -> None:
    def claim(_: str | None) -> NextJob:
        raise AssertionError

    assert not Idle().take("m", claim)


def test_where_somebody_else_was_faster_the_worker_waits_on() -> None:
    async def run() -> None:
        idle = Idle()
        worker = asyncio.create_task(idle.offer("m", None, 0.3))
        await asyncio.sleep(0.01)
        assert not idle.take("m", lambda _: None)
        with pytest.raises(ValueError, match="claim"):
            idle.take("m", _failing)
        assert idle.take("m", lambda _: JOB)
        assert await worker == JOB

    asyncio.run(run())


def test_a_gateway_that_stops_keeps_no_worker_waiting() -> None:
    async def run() -> None:
        idle = Idle()
        workers = [asyncio.create_task(idle.offer(f"m{i}", None, 30)) for i in range(2)]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(idle.stop)
        begin = time.monotonic()
        assert await asyncio.gather(*workers, idle.offer("m0", None, 30)) == [None] * 3
        assert time.monotonic() - begin < 5
        assert idle.models() == ()

    asyncio.run(run())


def _failing(_: str | None) -> NextJob:
    raise ValueError("claim")


def test_a_job_that_is_claimed_in_the_last_moment_is_not_lost() -> None:
    async def run() -> None:
        idle, begun = Idle(), threading.Event()

        def slow(_: str | None) -> NextJob:
            begun.set()
            time.sleep(0.1)
            return JOB

        worker = asyncio.create_task(idle.offer("m", None, 0.05))
        await asyncio.sleep(0.01)
        taken = asyncio.create_task(asyncio.to_thread(idle.take, "m", slow))
        assert await worker == JOB
        assert await taken

    asyncio.run(run())


def test_a_worker_that_hangs_up_is_forgotten() -> None:
    async def run() -> None:
        idle = Idle()
        worker = asyncio.create_task(idle.offer("m", None, 10))
        await asyncio.sleep(0.01)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        assert not idle.take("m", lambda _: JOB)

    asyncio.run(run())

"""A worker that waits gets the next job of its model, and a job goes to one worker."""

from __future__ import annotations

import asyncio
import threading
import time

from taciturn.server.jobs.warm_workers import WarmWorkers
from taciturn.wire.worker import NextJob

JOB = NextJob(job="job_1", token="t")


class Queue:
    """Queued samples of models, as the database has them for all processes."""

    def __init__(self) -> None:
        self.lock, self.queued, self.handles = threading.Lock(), list[str](), list[str | None]()

    def claim(self, model_id: str, handle: str | None) -> NextJob | None:
        with self.lock:
            if model_id not in self.queued:
                return None
            self.queued.remove(model_id)
            self.handles.append(handle)
            return JOB


async def stays() -> bool:
    return False


def test_a_job_goes_to_one_waiting_worker_in_whichever_process() -> None:
    async def run() -> None:
        queue = Queue()
        processes = [WarmWorkers(queue.claim) for _ in range(2)]
        workers = [
            asyncio.create_task(warm.offer("m", f"handle-{number}", 0.5, stays))
            for number, warm in enumerate(processes)
        ]
        other = asyncio.create_task(processes[0].offer("other", None, 0.5, stays))
        await asyncio.sleep(0.05)
        queue.queued.append("m")
        for warm in processes:
            await asyncio.to_thread(warm.wake)
        answers = await asyncio.gather(*workers, other)
        assert sorted(answers, key=str) == sorted([JOB, None, None], key=str)
        assert answers[2] is None
        assert len(queue.handles) == 1

    asyncio.run(run())


def test_a_job_is_found_without_a_notification() -> None:
    async def run() -> None:
        queue = Queue()
        worker = asyncio.create_task(WarmWorkers(queue.claim).offer("m", "h", 10, stays))
        await asyncio.sleep(0.05)
        queue.queued.append("m")
        async with asyncio.timeout(5):
            assert await worker == JOB

    asyncio.run(run())


def test_a_gateway_that_stops_keeps_no_worker_waiting() -> None:
    async def run() -> None:
        warm = WarmWorkers(Queue().claim)
        workers = [asyncio.create_task(warm.offer(f"m{i}", None, 30, stays)) for i in range(2)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(warm.stop)
        begin = time.monotonic()
        assert await asyncio.gather(*workers, warm.offer("m0", None, 30, stays)) == [None] * 3
        assert time.monotonic() - begin < 5

    asyncio.run(run())


def test_a_job_that_is_claimed_in_the_last_moment_is_not_lost() -> None:
    async def run() -> None:
        def slow(*_: object) -> NextJob:
            time.sleep(0.2)
            return JOB

        assert await WarmWorkers(slow).offer("m", None, 0.05, stays) == JOB

    asyncio.run(run())


def test_a_worker_that_hangs_up_gets_no_job() -> None:
    async def run() -> None:
        async def gone() -> bool:
            return True

        queue = Queue()
        queue.queued.append("m")
        assert await WarmWorkers(queue.claim).offer("m", None, 10, gone) is None
        assert queue.queued == ["m"]

    asyncio.run(run())

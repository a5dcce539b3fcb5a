"""Workers that have a fitted model in memory and wait for another request of it.

A waiting worker takes the next sample job of its model out of the queue itself, in the process that
it has reached: a transaction decides who has the job, so that it does not matter which.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from anyio import CapacityLimiter, to_thread

from taciturn.wire.worker import NextJob

_LOOK_S = 1.0
_THREADS = 2

Claim = Callable[[str, str | None], NextJob | None]
"""Take the oldest queued sample job of a model for the worker with this handle, and return it with
its own token; None if there is none."""


@dataclass(slots=True)
class WarmWorkers:
    """Warm workers at this process. Used from its event loop only, but for `wake` and `stop`."""

    claim: Claim
    _loop: asyncio.AbstractEventLoop | None = None
    _arrivals: set[asyncio.Event] = field(default_factory=set)
    _stopped: bool = False
    _threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_THREADS))

    @property
    def waiting(self) -> int:
        """Number of them that wait for a job."""
        return len(self._arrivals)

    async def offer(
        self,
        model_id: str,
        handle: str | None,
        timeout_s: float,
        is_gone: Callable[[], Awaitable[bool]],
    ) -> NextJob | None:
        """Wait, as a worker that has this model, for a job; None if none came in time, or if the
        worker is gone or the gateway stops.

        A worker that dies just after this has not taken the job's lease: the job is then treated as
        one whose worker never came.
        """
        self._loop = asyncio.get_running_loop()
        deadline_s, arrival = time.monotonic() + timeout_s, asyncio.Event()
        self._arrivals.add(arrival)
        try:
            while not (self._stopped or await is_gone()):
                arrival.clear()
                job = await to_thread.run_sync(self.claim, model_id, handle, limiter=self._threads)
                remaining_s = deadline_s - time.monotonic()
                if job is not None or remaining_s <= 0:
                    return job
                try:
                    async with asyncio.timeout(min(remaining_s, _LOOK_S)):
                        await arrival.wait()
                except TimeoutError:
                    continue
            return None
        finally:
            self._arrivals.discard(arrival)

    def wake(self) -> None:
        """A job was queued: look at once. From any thread."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            return  # the loop has ended

    def stop(self) -> None:
        """Give no more jobs, and tell those who wait so at once. From any thread."""
        self._stopped = True
        self.wake()

    def _wake(self) -> None:
        for arrival in self._arrivals:
            arrival.set()

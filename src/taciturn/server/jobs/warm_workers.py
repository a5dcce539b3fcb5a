"""Workers that have a fitted model in memory and wait for another request of it.

Known to one process: a worker that waits elsewhere is not found, and a new one is started.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from taciturn.wire.worker import NextJob

_CLAIM_S = 5.0  # longer than a claim takes, which is one transaction


@dataclass(eq=False, slots=True)
class _Waiting:
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[NextJob | None]
    handle: str | None

    def tell(self, job: NextJob | None) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # its loop has ended
            self.loop.call_soon_threadsafe(_answer, self.answer, job)


@dataclass(slots=True)
class Idle:
    """Brings waiting workers and queued jobs together."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: dict[str, deque[_Waiting]] = field(default_factory=dict)
    _stopped: bool = False

    async def offer(self, model_id: str, handle: str | None, timeout_s: float) -> NextJob | None:
        """Wait, as a worker that has this model, for a job; None if none came in time."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loop, loop.create_future(), handle)
        with self._lock:
            if self._stopped:
                return None
            self._waiting.setdefault(model_id, deque()).append(waiting)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(waiting.answer)
        except TimeoutError:
            if self._leave(model_id, waiting):
                return None
            # In this very moment a job is being claimed for this worker, or not.
            return await self._claimed(waiting)
        except asyncio.CancelledError:
            self._leave(model_id, waiting)
            raise

    def take(self, model_id: str, claim: Callable[[str | None], NextJob | None]) -> bool:
        """Give a job to a worker that waits for one of this model; from any thread.

        Args:
            claim: takes the job out of the queue for the worker with this handle, and returns it
                with its own token; None where somebody else was faster. Not called if none waits.

        Returns:
            Whether it was given. A worker that dies in this moment has not taken the job's lease:
            the job is then treated as one whose worker never came.
        """
        waiting = self._first(model_id)
        if waiting is None:
            return False
        job = None
        try:
            job = claim(waiting.handle)
        finally:
            if job is None:
                self._back(model_id, waiting)
        if job is None:
            return False
        waiting.tell(job)
        return True

    def stop(self) -> None:
        """Nothing more will be given: whoever waits is told so at once. From any thread."""
        with self._lock:
            self._stopped = True
            waiting = [each for queue in self._waiting.values() for each in queue]
            self._waiting.clear()
        for each in waiting:
            each.tell(None)

    def models(self) -> tuple[str, ...]:
        """Models that somebody waits with."""
        with self._lock:
            return tuple(self._waiting)

    def _first(self, model_id: str) -> _Waiting | None:
        with self._lock:
            queue = self._waiting.get(model_id)
            if not queue:
                return None
            waiting = queue.popleft()
            if not queue:
                del self._waiting[model_id]
            return waiting

    def _back(self, model_id: str, waiting: _Waiting) -> None:
        with self._lock:
            if not self._stopped:
                self._waiting.setdefault(model_id, deque()).appendleft(waiting)
                return
        waiting.tell(None)

    async def _claimed(self, waiting: _Waiting) -> NextJob | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLAIM_S):
                return await asyncio.shield(waiting.answer)
        return None

    def _leave(self, model_id: str, waiting: _Waiting) -> bool:
        """Whether it was still waiting."""
        with self._lock:
            queue = self._waiting.get(model_id, deque())
            if waiting not in queue:
                return False
            queue.remove(waiting)
            if not queue:
                del self._waiting[model_id]
            return True


def _answer(answer: asyncio.Future[NextJob | None], job: NextJob | None) -> None:
    if not answer.done():
        answer.set_result(job)

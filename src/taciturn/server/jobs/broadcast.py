"""Broadcast of the events of jobs to everybody who watches them in one process.

Events become visible at ticks; the last ones of a tick are committed a moment later, and notify.
Each gateway process looks into the database by itself, once for all its watchers: after each tick,
when it is notified, and each second. A watcher holds a bounded queue. Whoever reads too slowly is
let go, and resumes after the last event that it has got, in any process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from taciturn.server.jobs.events import LATE_MS, Events, final
from taciturn.wire.events import NumberedEvent

T = TypeVar("T")

log = logging.getLogger("taciturn.server.broadcast")

_QUEUE = 64
_PAGE = 50  # a thousand who come back at once hold as many events each
_BEAT_S = 15.0
_LOOK_S = 1.0  # an end that was due at a tick is written by whoever dispatches, soon after it
_COALESCE_S = 0.05  # many jobs that end at one tick are one look
_LIFE_S = 3600.0  # then a watcher has to come again, with a token that is still valid


class TooManyWatchersError(Exception):
    """The process watches as much as it can."""


class _End:
    """The last thing in a queue."""


_Item = NumberedEvent | _End | None  # None: a sign of life


@dataclass(eq=False, slots=True)
class _Watcher:
    """A stream that watches a job.

    Attributes:
        after: number of the newest event that was given out.
        offered: number of the newest event in the queue.
        slow: the queue was full once: what is in it is given out, then the watcher has to go.
    """

    job_id: str
    after: int
    offered: int = 0
    slow: bool = False
    born_s: float = field(default_factory=time.monotonic)
    queue: asyncio.Queue[_Item] = field(default_factory=lambda: asyncio.Queue(_QUEUE))

    def offer(self, event: NumberedEvent) -> None:
        if event.sequence > max(self.after, self.offered):
            self.enqueue(event)
            self.offered = event.sequence

    def enqueue(self, item: _Item) -> None:
        if self.queue.full():
            self.slow = True
        if not self.slow:
            self.queue.put_nowait(item)


class Broadcast:
    """Feeds all streams of one process. Used from its event loop only, but for `stop`."""

    def __init__(self, events: Events, limit: int = 4000) -> None:
        self._events, self._limit = events, limit
        self._watchers: dict[str, set[_Watcher]] = {}
        self._watching = 0
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._stopped = False
        # Not the threads of ordinary requests: a thousand who come back at once must not take them.
        self._threads = CapacityLimiter(2)

    @property
    def watching(self) -> int:
        """The number of streams."""
        return self._watching

    def stop(self) -> None:
        """End all streams now and let nobody watch any more; from any thread or signal handler."""
        self._stopped = True
        self.wake()

    def wake(self) -> None:
        """An event has become visible: look soon. From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._wake.set)

    async def watch(self, job_id: str, after: int) -> AsyncGenerator[NumberedEvent | None, None]:
        """Events with a number above `after` as they become visible, until the final state; None
        now and then, as a sign of life.

        Ends early where the gateway stops, where the watcher is too slow, and after an hour: then
        come again, with the number of the last event.

        Raises:
            TooManyWatchersError: nobody else can be let in.
        """
        watcher = self._add(job_id, after)
        try:
            async for item in self._items(watcher):
                if item is not None and item.sequence <= watcher.after:
                    continue
                yield item
                if item is not None:
                    watcher.after = item.sequence
                    if final(item.event):
                        return
        finally:
            self._remove(watcher)

    async def has_ended(self, job_id: str, after: int) -> bool:
        """Return True if the event of this number was the last one."""
        return after > 0 and await self._ask(lambda: self._events.is_last(job_id, after))

    async def _items(self, watcher: _Watcher) -> AsyncIterator[NumberedEvent | None]:
        """Events that are visible already, then those that come. The broadcast knows of the watcher
        before it reads what there is, so that nothing falls between the two."""
        page: tuple[NumberedEvent, ...] | None = None
        while (page is None or len(page) == _PAGE) and not self._stopped:
            page = await self._ask(partial(self._events.page, watcher.job_id, watcher.after, _PAGE))
            for event in page:
                yield event
        while not (self._stopped or (watcher.slow and watcher.queue.empty())):
            item = await watcher.queue.get()
            if isinstance(item, _End):
                return
            yield item

    async def _ask(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._threads)

    def _add(self, job_id: str, after: int) -> _Watcher:
        if self._watching >= self._limit:
            raise TooManyWatchersError
        watcher = _Watcher(job_id, after)
        self._watchers.setdefault(job_id, set()).add(watcher)
        self._watching += 1
        if self._task is None or self._task.done():
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._run())
        return watcher

    def _remove(self, watcher: _Watcher) -> None:
        self._watching -= 1
        watchers = self._watchers[watcher.job_id]
        watchers.discard(watcher)
        if not watchers:
            del self._watchers[watcher.job_id]

    def _all(self) -> list[_Watcher]:
        return [watcher for watchers in self._watchers.values() for watcher in watchers]

    async def _run(self) -> None:
        """Look for events while somebody watches."""
        since_ms = self._events.gateway.now_ms() - LATE_MS
        beat_s = time.monotonic()
        while self._watchers and not self._stopped:
            try:
                now_ms = self._events.gateway.now_ms()
                await self._look(since_ms)
                since_ms = now_ms - LATE_MS
            except Exception as error:
                # The database is away: events wait there, and are shown once it is back.
                log.warning("events cannot be read: %s", type(error).__name__)
            if time.monotonic() - beat_s >= _BEAT_S:
                beat_s = time.monotonic()
                self._beat(beat_s)
            await self._rest(beat_s)
        if self._stopped:
            for watcher in self._all():
                watcher.enqueue(_End())

    async def _look(self, since_ms: int) -> None:
        jobs = frozenset(self._watchers)
        by_job = await self._ask(lambda: self._events.became_visible(since_ms, jobs))
        for job_id, events in by_job.items():
            for watcher in self._watchers.get(job_id, ()):
                for event in events:
                    watcher.offer(event)

    def _beat(self, now_s: float) -> None:
        for watcher in self._all():
            if now_s - watcher.born_s > _LIFE_S:
                watcher.enqueue(_End())
            elif watcher.queue.empty():
                watcher.enqueue(None)

    async def _rest(self, beat_s: float) -> None:
        """Until just after the next tick, a second at most; a stop ends it."""
        tick_ms = self._events.gateway.settings.tick_s * 1000
        now_ms = self._events.gateway.now_ms()
        tick_s = ((math.floor(now_ms / tick_ms) + 1) * tick_ms - now_ms) / 1000 + 0.002
        rest_s = min(tick_s, _LOOK_S, max(0.0, beat_s + _BEAT_S - time.monotonic()))
        try:
            async with asyncio.timeout(max(rest_s, 0.01)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        await asyncio.sleep(_COALESCE_S)

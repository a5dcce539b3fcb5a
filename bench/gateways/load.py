"""Requests over plain sockets: a load that costs little itself, and what became of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ask:
    """A request as it goes over the wire, and how often it is made."""

    name: str
    data: bytes
    weight: int


@dataclass
class Seen:
    """What became of a load. Seconds count from when a request was due."""

    seconds: list[float] = field(default_factory=list)
    by_name: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    wall_s: float = 0.0

    def add(self, name: str, seconds: float, status: int) -> None:
        """One answer."""
        self.seconds.append(seconds)
        self.by_name.setdefault(name, []).append(seconds)
        self.statuses[status] += 1

    @property
    def per_s(self) -> float:
        """Answers in a second."""
        return len(self.seconds) / self.wall_s


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    """A quantile, in milliseconds."""
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


_IDLE_S = 10.0  # afterwards the gateway may be closing a connection while it is being used


class Line:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used_s = 0.0

    async def ask(self, data: bytes) -> int:
        """The status of the answer, once all of it has come."""
        if self._streams is not None and time.monotonic() - self._used_s > _IDLE_S:
            self._streams[1].close()
            self._streams = None
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        at = lower.find(b"content-length:")
        if at < 0:
            raise RuntimeError(f"an answer without a length: {head[:200]!r}")
        self._used_s = time.monotonic()
        await reader.readexactly(int(lower[at + 15 : lower.find(b"\r\n", at)]))
        if b"connection: close" in lower:
            writer.close()
            self._streams = None
        return int(head[9:12])


async def closed_loop(port: int, asks: Sequence[Ask], lines: int, seconds: float) -> Seen:
    """As much as comes through: each line asks again as soon as it was answered."""
    seen, rng = Seen(), random.Random(1)
    weights = [ask.weight for ask in asks]
    start = time.perf_counter()

    async def one() -> None:
        line = Line(port)
        while (now := time.perf_counter()) - start < seconds:
            (ask,) = rng.choices(asks, weights)
            status = await line.ask(ask.data)
            seen.add(ask.name, time.perf_counter() - now, status)

    await asyncio.gather(*(one() for _ in range(lines)))
    seen.wall_s = time.perf_counter() - start
    return seen


async def open_loop(
    port: int, asks: Sequence[Ask], rate: float, seconds: float, lines: int = 64
) -> Seen:
    """A fixed number of requests per second, whatever becomes of those before: who waits for a
    line waits in the figures too."""
    seen, rng = Seen(), random.Random(2)
    weights = [ask.weight for ask in asks]
    free: asyncio.LifoQueue[Line] = asyncio.LifoQueue()
    for _ in range(lines):
        free.put_nowait(Line(port))

    async def one(ask: Ask, due: float) -> None:
        line = await free.get()
        try:
            status = await line.ask(ask.data)
        finally:
            free.put_nowait(line)
        seen.add(ask.name, time.perf_counter() - due, status)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = start + number / rate
            wait_s = due - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            (ask,) = rng.choices(asks, weights)
            group.create_task(one(ask, due))
    seen.wall_s = time.perf_counter() - start
    return seen


@dataclass
class Watched:
    """What streams have seen.

    Attributes:
        connected_s: until all had their first bytes.
        got: number of the newest event, by stream.
    """

    connected_s: float = 0.0
    got: dict[int, int] = field(default_factory=dict)
    at: dict[int, float] = field(default_factory=dict)
    ended: int = 0


class Watchers:
    """Many streams of events."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port, self._requests = port, requests
        self.seen = Watched()
        self._tasks: list[asyncio.Task[None]] = []
        self._first = asyncio.Semaphore(0)

    async def open(self) -> None:
        """All of them; returns when each is there."""
        start = time.perf_counter()
        dialling = asyncio.Semaphore(64)
        for number, data in enumerate(self._requests):
            self._tasks.append(asyncio.create_task(self._watch(number, data, dialling)))
        for _ in self._requests:
            await self._first.acquire()
        self.seen.connected_s = time.perf_counter() - start

    async def until(self, sequence: int, timeout_s: float) -> int:
        """Wait for an event on all streams; returns how many have got it."""
        deadline = time.perf_counter() + timeout_s
        while time.perf_counter() < deadline:
            count = sum(1 for newest in self.seen.got.values() if newest >= sequence)
            if count == len(self._requests):
                return count
            await asyncio.sleep(0.01)
        return sum(1 for newest in self.seen.got.values() if newest >= sequence)

    async def close(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, number: int, data: bytes, dialling: asyncio.Semaphore) -> None:
        async with dialling:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:20]:
            raise RuntimeError(f"no stream: {head[:200]!r}")
        self._first.release()
        try:
            async for line in reader:
                if line.startswith(b"id: "):
                    self.seen.got[number] = int(line[4:])
                    self.seen.at[number] = time.time()
            self.seen.ended += 1
        finally:
            writer.close()

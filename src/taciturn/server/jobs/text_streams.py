"""Text that a worker is writing, on its way to whoever asked for it; in memory, never kept.

A channel belongs to one process. If worker and reader have come to different ones, the reader gets
the whole text when the job is over, from what the job has released.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from taciturn.wire.worker import TextChunk

_LIMIT_CHARS, _UNREAD_CHARS = 4 * 2**20, 2**16
_KEPT_S = 600.0
_MOST = 1000


@dataclass(eq=False, slots=True)
class _Channel:
    chunks: list[TextChunk] = field(default_factory=list)
    chars: int = 0
    read: bool = False
    touched_s: float = field(default_factory=time.monotonic)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def last(self) -> bool:
        return bool(self.chunks) and self.chunks[-1].last


@dataclass(slots=True)
class Texts:
    """The channels of one process. Used from its event loop only."""

    _channels: dict[str, _Channel] = field(default_factory=dict)

    def close(self, job_id: str) -> None:
        """Nobody reads it any more."""
        self._channels.pop(job_id, None)

    def put(self, job_id: str, chunk: TextChunk) -> None:
        """Take a piece. One that was sent again is dropped; so is what nobody reads here, and what
        would leave a gap: then the reader gets the rest when the job is over."""
        channel = self._channel(job_id)
        expected = chunk.offset is None or chunk.offset == channel.chars
        limit_chars = _LIMIT_CHARS if channel.read else _UNREAD_CHARS
        if channel.last or not expected or channel.chars + len(chunk.text) > limit_chars:
            return
        channel.chunks.append(chunk)
        channel.chars += len(chunk.text)
        channel.touched_s = time.monotonic()
        channel.news.set()

    async def read(self, job_id: str, number: int, wait_s: float) -> TextChunk | None:
        """The piece of this number, as soon as it is there; None if it has not come in time."""
        channel = self._channel(job_id)
        channel.read = True
        channel.touched_s = time.monotonic()
        try:
            async with asyncio.timeout(wait_s):
                while number >= len(channel.chunks):
                    channel.news.clear()
                    await channel.news.wait()
        except TimeoutError:
            return None
        return channel.chunks[number]

    def _channel(self, job_id: str) -> _Channel:
        """Made by whoever comes first, worker or reader."""
        found = self._channels.get(job_id)
        if found is None:
            self._forget_old()
            found = self._channels[job_id] = _Channel()
        return found

    def _forget_old(self) -> None:
        """Whoever asked and never read has gone; and there are not more than `_MOST`."""
        oldest_s = time.monotonic() - _KEPT_S
        by_age = sorted(self._channels.items(), key=lambda item: item[1].touched_s)
        surplus = len(by_age) - _MOST + 1
        for number, (job_id, channel) in enumerate(by_age):
            if channel.touched_s < oldest_s or number < surplus:
                del self._channels[job_id]

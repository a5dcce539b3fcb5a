"""Text that a worker is writing, on its way to whoever asked for it; in memory, never kept.

A channel belongs to one process. If worker and reader have come to different ones, the reader gets
the whole text when the job is over, from what the job has released.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from taciturn.server.problems import ProblemError
from taciturn.wire.worker import TextChunk

_LIMIT_CHARS = 4 * 2**20
_KEPT_S = 600.0
_MOST = 1000


@dataclass(eq=False, slots=True)
class _Channel:
    chunks: list[TextChunk] = field(default_factory=list)
    chars: int = 0
    touched_s: float = field(default_factory=time.monotonic)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def last(self) -> bool:
        return bool(self.chunks) and self.chunks[-1].last


@dataclass(slots=True)
class Texts:
    """The channels of one process. Used from its event loop only."""

    _channels: dict[str, _Channel] = field(default_factory=dict)

    def open(self, job_id: str) -> None:
        """Expect text of a job: before it is asked for, so that none is missed."""
        self._forget_old()
        if len(self._channels) >= _MOST:
            raise ProblemError("unavailable", f"{_MOST} texts are being written; try again later")
        self._channels[job_id] = _Channel()

    def close(self, job_id: str) -> None:
        """Nobody reads it any more."""
        self._channels.pop(job_id, None)

    def put(self, job_id: str, chunk: TextChunk) -> None:
        """Take a piece; one that was sent again, or that nobody reads here, is dropped.

        Raises:
            ProblemError: `too_large`.
        """
        channel = self._channels.get(job_id)
        if channel is None or channel.last:
            return
        if chunk.offset is not None and chunk.offset < channel.chars:
            return
        if channel.chars + len(chunk.text) > _LIMIT_CHARS:
            raise ProblemError("too_large", f"a text may have {_LIMIT_CHARS} characters")
        channel.chunks.append(chunk)
        channel.chars += len(chunk.text)
        channel.touched_s = time.monotonic()
        channel.news.set()

    async def read(self, job_id: str, number: int, wait_s: float) -> TextChunk | None:
        """The piece of this number, as soon as it is there; None if it has not come in time."""
        channel = self._channels.get(job_id)
        if channel is None:
            await asyncio.sleep(wait_s)
            return None
        channel.touched_s = time.monotonic()
        try:
            async with asyncio.timeout(wait_s):
                while number >= len(channel.chunks):
                    channel.news.clear()
                    await channel.news.wait()
        except TimeoutError:
            return None
        return channel.chunks[number]

    def _forget_old(self) -> None:
        """Whoever asked and never read has gone."""
        oldest_s = time.monotonic() - _KEPT_S
        for job_id in [i for i, c in self._channels.items() if c.touched_s < oldest_s]:
            del self._channels[job_id]

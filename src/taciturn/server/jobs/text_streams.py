"""Text that a worker is writing, on its way to its reader through a table of the database.

Worker and reader may have reached different processes or replicas of the gateway, and either of
these may be killed. Text is not kept: what was read is deleted, and everything else after ten
minutes. What a job releases in the end is whole in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from anyio import CapacityLimiter, to_thread
from sqlalchemy import Connection, delete, insert, select

from taciturn.server.context import Gateway
from taciturn.server.identity.job_access import held_job
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.process_messages import Topic, publish_with
from taciturn.server.schema.tables import text_pieces
from taciturn.wire.worker import TextChunk

LIFETIME_MS = 600_000
_LIMIT_CHARS = 4 * 2**20
_PAGE = 200
_THREADS = 8


@dataclass(eq=False, slots=True)
class _Reader:
    loop: asyncio.AbstractEventLoop
    arrival: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """May be called from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.arrival.set)
        except RuntimeError:
            return  # its loop has ended


@dataclass(slots=True)
class TextStreams:
    """Pieces of text, by the job that writes them."""

    gateway: Gateway
    _readers: dict[str, set[_Reader]] = field(default_factory=dict)
    # Not the threads of ordinary requests: many readers must not take them.
    _threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_THREADS))

    def add(self, worker: WorkerPrincipal, lease: int, chunk: TextChunk) -> None:
        """Take a piece from the worker that holds the job. One that was sent again is dropped, as
        is one that would leave a gap: its reader gets the rest when the job is over.

        Raises:
            ProblemError: `fenced` for any other worker.
        """

        def work(connection: Connection) -> None:
            job_id = held_job(connection, worker, lease).id
            newest = connection.execute(
                select(text_pieces.c.number, text_pieces.c.chars, text_pieces.c.data)
                .where(text_pieces.c.job_id == job_id)
                .order_by(text_pieces.c.number.desc())
                .limit(1)
            ).first()
            number, chars = (newest.number + 1, newest.chars) if newest else (0, 0)
            is_over = newest is not None and TextChunk.model_validate_json(newest.data).last
            is_next = chunk.offset is None or chunk.offset == chars
            chars += len(chunk.text)
            if is_over or not is_next or chars > _LIMIT_CHARS:
                return
            connection.execute(
                insert(text_pieces).values(
                    job_id=job_id,
                    number=number,
                    chars=chars,
                    data=chunk.model_dump_json(),
                    created_at_ms=self.gateway.now_ms(),
                )
            )
            publish_with(connection, Topic.TEXT, job_id)

        self.gateway.write(work)
        self.wake(worker.job_id)

    def wake(self, job_id: str) -> None:
        """Tell this process's readers of a job that there is more; from any thread."""
        for reader in tuple(self._readers.get(job_id, ())):
            reader.wake()

    async def read(self, job_id: str, number: int, wait_s: float) -> tuple[TextChunk, ...]:
        """Pieces from this number on, as soon as there are some; none if none came in time."""
        with self._reader(job_id) as reader:
            pieces = await self._pieces(job_id, number)
            if not pieces:
                try:
                    async with asyncio.timeout(wait_s):
                        await reader.arrival.wait()
                except TimeoutError:
                    pass  # it may have arrived without a notification
                pieces = await self._pieces(job_id, number)
        return pieces

    def delete(self, job_id: str) -> None:
        """Delete a job's text: it was read, or nobody reads it any more."""
        statement = delete(text_pieces).where(text_pieces.c.job_id == job_id)
        self.gateway.write(lambda connection: connection.execute(statement))

    def prune(self) -> None:
        """Delete text that nobody has read in time."""
        before_ms = self.gateway.now_ms() - LIFETIME_MS
        statement = delete(text_pieces).where(text_pieces.c.created_at_ms < before_ms)
        self.gateway.write(lambda connection: connection.execute(statement))

    async def _pieces(self, job_id: str, number: int) -> tuple[TextChunk, ...]:
        query = (
            select(text_pieces.c.data)
            .where(text_pieces.c.job_id == job_id, text_pieces.c.number >= number)
            .order_by(text_pieces.c.number)
            .limit(_PAGE)
        )
        rows = await to_thread.run_sync(lambda: self.gateway.rows(query), limiter=self._threads)
        return tuple(TextChunk.model_validate_json(row.data) for row in rows)

    @contextmanager
    def _reader(self, job_id: str) -> Iterator[_Reader]:
        reader = _Reader(asyncio.get_running_loop())
        self._readers.setdefault(job_id, set()).add(reader)
        try:
            yield reader
        finally:
            self._readers[job_id].discard(reader)
            if not self._readers[job_id]:
                del self._readers[job_id]

"""Text from a fitted model for whoever waits for it: a sample job, asked for and watched.

Works without the event stream, whose clock is coarse on purpose: what a model writes after it was
fitted is not timed by rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from anyio import CapacityLimiter, to_thread

from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.jobs.text_streams import TextStreams
from taciturn.server.models.results import Results
from taciturn.server.problems import ProblemError
from taciturn.wire.events import FailureCode
from taciturn.wire.jobs import JobState, JobView, RemoteSample
from taciturn.wire.results import SampleLine

T = TypeVar("T")

_LASTING = frozenset(
    {
        FailureCode.BAD_CONFIGURATION,
        FailureCode.MODEL_REFUSED,
        FailureCode.GUARANTEE_REFUSED,
        FailureCode.RESOURCES,
        FailureCode.TIME,
    }
)
"""Failures that the same request has again: a client that is told of a 503 would repeat it."""

PATIENCE_S = 900.0
_FIRST_LOOK_S, _LONGEST_PAUSE_S = 0.05, 1.0
_PIECE_S = 0.5


class JobSubmitter(Protocol):
    """Submission of jobs."""

    def submit(self, caller: Principal, request: RemoteSample, key: str | None) -> JobView:
        """Ask for a job."""

    def view(self, caller: Principal, job_id: str) -> JobView:
        """Return the job's view."""

    def cancel(self, caller: Principal, job_id: str) -> JobView:
        """Cancel a job that nobody waits for."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a text that is being written; the last one brings the whole."""

    text: str
    whole: SampleLine | None = None


class Completions:
    """Asks for samples, and waits for them."""

    def __init__(
        self, submitter: JobSubmitter, results: Results, text_streams: TextStreams
    ) -> None:
        self._submitter, self._results, self._text_streams = submitter, results, text_streams
        self._threads = CapacityLimiter(8)

    async def ask(self, caller: Principal, request: RemoteSample) -> JobView:
        """Ask for text; raises ProblemError as submitting does."""
        return await self._ask(lambda: self._submitter.submit(caller, request, new_id("key")))

    async def whole(
        self, caller: Principal, job: JobView, is_gone: Callable[[], Awaitable[bool]]
    ) -> tuple[SampleLine, ...]:
        """Return all completions of a job; a caller who is gone cancels it.

        Raises:
            ProblemError: `unavailable`, if it failed or took too long, or if nobody waits for it.
        """
        try:
            await self._over(caller, job.id, is_gone)
        except asyncio.CancelledError:
            await self._abandon(caller, job.id)
            raise
        return await self._ask(lambda: self._results.samples(job.id))

    async def pieces(self, caller: Principal, job: JobView) -> AsyncIterator[Piece]:
        """One completion of a job that streams, piece by piece."""
        text, number, over = "", 0, False
        try:
            while not over:
                chunks = await self._text_streams.read(job.id, number, _PIECE_S)
                if not chunks:
                    over = await self._is_over(caller, job.id)
                for chunk in chunks:
                    number += 1
                    text += chunk.text
                    yield Piece(chunk.text)
                    if chunk.last:
                        await self._over(caller, job.id)
                        over = True
        except (asyncio.CancelledError, GeneratorExit):
            await self._abandon(caller, job.id)
            raise
        finally:
            await asyncio.shield(self._ask(lambda: self._text_streams.delete(job.id)))
        (line,) = await self._ask(lambda: self._results.samples(job.id))
        # What was too long, or was lost with a database that was restarted, comes at once.
        rest = line.text.removeprefix(text) if line.text.startswith(text) else ""
        yield Piece(rest, line)

    async def _over(
        self, caller: Principal, job_id: str, is_gone: Callable[[], Awaitable[bool]] | None = None
    ) -> None:
        deadline = time.monotonic() + PATIENCE_S
        pause_s = _FIRST_LOOK_S
        while not await self._is_over(caller, job_id):
            if time.monotonic() > deadline:
                raise ProblemError(
                    "unavailable", f"job {job_id!r} takes longer than {PATIENCE_S:g} s; it goes on"
                )
            if is_gone is not None and await is_gone():
                await self._abandon(caller, job_id)
                raise ProblemError("unavailable", f"nobody waits for job {job_id!r}; cancelled")
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)

    async def _is_over(self, caller: Principal, job_id: str) -> bool:
        job = await self._ask(lambda: self._submitter.view(caller, job_id))
        if job.state is JobState.SUCCEEDED or not job.state.over:
            return job.state.over
        why = job.failure.text if job.failure else f"it was {job.state.value}"
        lasting = job.failure is not None and job.failure.code in _LASTING
        raise ProblemError("invalid" if lasting else "unavailable", f"job {job_id!r}: {why}")

    async def _abandon(self, caller: Principal, job_id: str) -> None:
        # Shielded: we are being cancelled ourselves.
        await asyncio.shield(self._ask(lambda: self._submitter.cancel(caller, job_id)))

    async def _ask(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._threads)

"""Live pages of jobs: all readers of a job share one watcher and one message a tick.

A job that is watched has a board, whoever watches it. It follows the gateway's broadcast, and puts
what a tick has brought into messages, once. A reader holds no queue: one that is slow gets the
newest message when it is ready for it, and one that comes back begins with the newest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, fragment
from taciturn.server.console.work.job_progress import POINTS, JobProgress
from taciturn.server.http.access import JobAccess, Requires, Svc
from taciturn.server.http.sending import EventStream
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.jobs.broadcast import TooManyWatchersError
from taciturn.server.problems import ProblemError
from taciturn.server.services import Services
from taciturn.wire.jobs import JobView

router = APIRouter(route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.JOBS_READ))]

_COALESCE_S = 0.05  # what a tick brings comes together, and is one message
_BEAT_S = 5.0
_MOST_READERS = 4000


@dataclass(eq=False, slots=True)
class _Board:
    """Newest messages about a job, for all its readers.

    Attributes:
        versions: of the two messages; a reader gets what it has not got yet.
        finished: nothing will be written here any more.
    """

    progress: JobProgress
    view: Callable[[], JobView]
    readers: int = 0
    finished: bool = False
    stages_due: bool = False
    messages: tuple[bytes, bytes] = (b"", b"")
    versions: tuple[int, int] = (0, 0)
    work: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def publish(self, *, stages: bool) -> None:
        """Make the messages, and wake the readers."""
        rendered, figures = self.messages
        if stages:
            html = fragment("progress.html", job=self.progress)
            state, sequence = self.progress.state, self.progress.sequence
            rendered = _message("stages", {"html": html, "state": state, "sequence": sequence})
        figures = _message("figures", self.progress.figures())
        self.messages = (rendered, figures)
        self.versions = (self.versions[0] + stages, self.versions[1] + 1)
        self.wake()

    def wake(self) -> None:
        """Wake the readers."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def news(self, versions: tuple[int, int]) -> bytes:
        """Messages that a reader of these versions has not got."""
        pairs = zip(self.messages, self.versions, versions, strict=True)
        return b"".join(message for message, new, old in pairs if new > old)


class LiveJobs:
    """Boards of the jobs that somebody watches in this process. Used from its event loop only."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._boards: dict[str, _Board] = {}
        self._readers = 0
        self._making = asyncio.Lock()

    @property
    def boards(self) -> int:
        """The number of jobs that are watched."""
        return len(self._boards)

    async def stream(
        self, caller: Principal, job_id: str, may_read: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """Messages about a job until it is over, or until the reader may not have them."""
        yield b"retry: 3000\n\n"
        board = await self._join(caller, job_id)
        versions = (0, 0)
        try:
            while await may_read():
                changed = board.changed
                if board.versions != versions:
                    news, versions = board.news(versions), board.versions
                    yield news
                if board.progress.over:
                    yield _message("over", {})
                    return
                if board.finished:
                    return
                try:
                    async with asyncio.timeout(_BEAT_S):
                        await changed.wait()
                except TimeoutError:
                    yield b": alive\n\n"
        finally:
            self._leave(job_id, board)

    def check_room(self) -> None:
        """Raise ProblemError `unavailable` where nobody else can be let in."""
        if self._readers >= _MOST_READERS:
            raise ProblemError("unavailable", "too many pages of jobs are open; try again later")

    async def _join(self, caller: Principal, job_id: str) -> _Board:
        async with self._making:  # of many who come at once, one makes it
            board = self._boards.get(job_id)
            if board is None or board.finished:
                board = await self._open(caller, job_id)
            board.readers += 1
            self._readers += 1
        return board

    async def _open(self, caller: Principal, job_id: str) -> _Board:
        progress = await to_thread.run_sync(progress_of, self.services, caller, job_id)
        board = _Board(progress, lambda: self.services.jobs.view(caller, job_id))
        board.publish(stages=True)
        self._boards[job_id] = board
        loop = asyncio.get_running_loop()
        board.tasks = [loop.create_task(self._follow(board)), loop.create_task(_write(board))]
        return board

    def _leave(self, job_id: str, board: _Board) -> None:
        board.readers -= 1
        self._readers -= 1
        if board.readers:
            return
        for task in board.tasks:
            task.cancel()
        if self._boards.get(job_id) is board:
            del self._boards[job_id]

    async def _follow(self, board: _Board) -> None:
        """Hear what the job says, until it is over or the gateway stops."""
        progress = board.progress
        try:
            with suppress(TooManyWatchersError):
                watching = self.services.broadcast.watch(progress.view.id, progress.sequence)
                async for numbered in watching:
                    if numbered is not None:
                        board.stages_due |= progress.add(numbered)
                        board.work.set()
        finally:
            board.finished = True
            board.work.set()
            board.wake()


async def _write(board: _Board) -> None:
    """Make messages of what has come, once for all that comes together."""
    while True:
        await board.work.wait()
        await asyncio.sleep(_COALESCE_S)
        board.work.clear()
        stages, board.stages_due = board.stages_due, False
        if stages:
            # Whoever came first may not see the job any more: what it was like then is shown on.
            with suppress(ProblemError):
                board.progress.view = await to_thread.run_sync(board.view)
        board.publish(stages=stages)
        if board.finished:
            return


def progress_of(services: Services, caller: Principal, job_id: str) -> JobProgress:
    """Return the progress of a job that the caller may follow; raises ProblemError `not_found`."""
    view = services.jobs.view(caller, job_id)
    return JobProgress.of(view, services.jobs.outline(caller, job_id, POINTS))


@router.get("/jobs/{job_id}/live")
async def follow_job(request: Request, caller: Reader, services: Svc, job_id: str) -> Response:
    """Stream what changes on a job's page, until the job is over or the session ends."""
    access = JobAccess(request, caller, services, job_id)
    view = await to_thread.run_sync(services.jobs.view, caller, job_id)
    if view.state.over:
        return Response(status_code=204)
    live = _live_jobs(request, services)
    live.check_room()
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventStream(live.stream(caller, job_id, access), headers=headers)


def _live_jobs(request: Request, services: Services) -> LiveJobs:
    """The application's own; made when the first page asks."""
    live: LiveJobs | None = getattr(request.app.state, "live_jobs", None)
    if live is None or live.services is not services:
        live = request.app.state.live_jobs = LiveJobs(services)
    return live


def _message(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()

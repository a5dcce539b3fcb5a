"""A job's events: a page of them, or a stream that goes on until the job is over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from taciturn.server.http.access import JobAccess, Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.http.sending import EventStream
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.jobs.broadcast import Broadcast, TooManyWatchersError
from taciturn.server.paging import MAX_LIMIT
from taciturn.server.problems import ProblemError
from taciturn.wire.events import EventPage, NumberedEvent

router = APIRouter(tags=["jobs"], route_class=Route)

Reader = Annotated[Principal, Depends(Requires(Action.JOBS_READ))]
_STREAM = "text/event-stream"


@router.get(
    "/jobs/{job_id}/events",
    response_model=EventPage,
    responses={
        200: {"content": {_STREAM: {"schema": {"type": "string"}}}},
        204: {"description": "There will be no more events (to a stream that resumes)."},
    },
)
async def read_events(
    request: Request,
    job_id: str,
    caller: Reader,
    services: Svc,
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
    accept: Annotated[str, Header()] = "application/json",
    last_event_id: Annotated[str | None, Header()] = None,
) -> EventPage | Response:
    """Events with a number above `after`. With `Accept: text/event-stream` as they come, until the
    job is over; `Last-Event-ID` resumes. Times are rounded up to the gateway's tick."""
    if _STREAM not in accept.lower():
        page = await to_thread.run_sync(services.jobs.events, caller, job_id, after, limit)
        return EventPage(items=page)
    access = JobAccess(request, caller, services, job_id)
    await to_thread.run_sync(services.results.check_watched, caller, job_id)
    broadcast = services.broadcast
    after = max(after, _number(last_event_id))
    if await broadcast.has_ended(job_id, after):
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventStream(_stream(broadcast, job_id, after, access), headers=headers)


async def _stream(
    broadcast: Broadcast, job_id: str, after: int, access: JobAccess
) -> AsyncIterator[bytes]:
    """Give out events while their reader may have them: at an event, or a sign of life."""
    yield b"retry: 2000\n\n"
    try:
        async with aclosing(broadcast.watch(job_id, after)) as events:
            async for event in events:
                if not await access():
                    return
                yield b": alive\n\n" if event is None else _message(event)
    except TooManyWatchersError:
        yield b": too many streams, come again\n\n"


def _message(event: NumberedEvent) -> bytes:
    data = event.model_dump_json()
    return f"id: {event.sequence}\nevent: {event.event.type}\ndata: {data}\n\n".encode()


def _number(last_event_id: str | None) -> int:
    if last_event_id is None or last_event_id == "":
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 9:
        raise ProblemError("invalid", "Last-Event-ID: not the number of an event of this stream")
    return int(last_event_id)

"""A job's events as they come, over as many connections as it takes.

Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). After a lost
connection the gateway is asked for what follows the last event that came; one that comes twice is
dropped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from taciturn.errors import GatewayError, TooManyRequestsError, UnavailableError
from taciturn.sdk.transport import Transport
from taciturn.wire.events import NumberedEvent, StateEvent
from taciturn.wire.jobs import JobView


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a stream."""

    data: str
    id: str | None = None
    event: str | None = None


def messages(lines: Iterable[str]) -> Iterator[Message]:
    """Messages of a stream of lines; a last one that no empty line ends is incomplete."""
    data: list[str] = []
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if data:
                yield Message("\n".join(data), fields.get("id"), fields.get("event"))
            data, fields = [], {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name:
            fields[name] = value


def job_events(
    transport: Transport,
    job: str,
    after: int | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[NumberedEvent]:
    """The events of a job after number `after`, in order and each once, until it is over.

    Args:
        alive: called whenever anything comes, be it a sign of life only; may raise to stop.

    Raises:
        UnavailableError: no connection came about, as often as `patience` allows in a row.
    """
    failures = quiet = 0
    while True:
        try:
            for event in _connection(transport, job, after, alive):
                failures = 0
                if event is None:
                    continue
                quiet, after = 0, event.sequence
                yield event
                if isinstance(event.event, StateEvent) and event.event.state.over:
                    return
        except _NoMoreError:
            return
        except (UnavailableError, TooManyRequestsError):
            failures += 1
            if failures >= transport.patience.attempts:
                raise
        quiet += 1
        if quiet % transport.patience.attempts == 0 and _is_over(transport, job):
            return
        transport.sleep(transport.patience.wait_s(max(failures, quiet) - 1, random.random()))


class _NoMoreError(Exception):
    """The gateway has said that nothing will follow."""


def _connection(
    transport: Transport, job: str, after: int | None, alive: Callable[[], None]
) -> Iterator[NumberedEvent | None]:
    """None once there is a connection, then the events that it brings."""
    headers = {"Accept": "text/event-stream"}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    with transport.stream("GET", f"jobs/{job}/events", headers=headers) as response:
        if response.status_code == 204:
            raise _NoMoreError
        yield None
        for message in messages(_watched(response.iter_lines(), alive)):
            event = _event(message)
            if event is not None and (after is None or event.sequence > after):
                after = event.sequence
                yield event


def _watched(lines: Iterable[str], alive: Callable[[], None]) -> Iterator[str]:
    for line in lines:
        alive()
        yield line


def _event(message: Message) -> NumberedEvent | None:
    """The event in a message; None for a kind that this version does not know."""
    try:
        return NumberedEvent.model_validate_json(message.data)
    except ValidationError as error:
        if any(problem["type"] == "union_tag_invalid" for problem in error.errors()):
            return None
        raise GatewayError(
            "the gateway sent an event that cannot be understood; are the versions the same?",
            code="misunderstood",
        ) from None


def _is_over(transport: Transport, job: str) -> bool:
    """Return whether the stream is silent because nothing more will come."""
    return transport.get(f"jobs/{job}", JobView).state.over

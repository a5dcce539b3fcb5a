"""A gateway as `taciturn.wire.worker` has it: in this process, strict, and with a memory.

It answers a worker as the real one must, and keeps what came in. `practitioner` is everything that
somebody who may not see rows could be shown; `incidents` is what the owner alone may read.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from pydantic import ValidationError

from taciturn.wire.artifacts import ALLOWED
from taciturn.wire.events import ProgressEvent, WorkerEvent
from taciturn.wire.worker import (
    LEASE_HEADER,
    Assignment,
    Charge,
    EventBatch,
    Incident,
    IncidentId,
    JobsAsked,
    JobsOver,
    LeaseRequest,
    NextJob,
    Orders,
    Outcome,
    SourceMarks,
    TextChunk,
)
from taciturn.worker.client import GatewayClient

TOKEN = "job-token"


class _ProblemError(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


@dataclass
class FakeGateway:
    """One job, and samples that wait behind it.

    Attributes:
        assignment: what a worker gets; lease, attempt and charged steps are filled in.
        budget_steps: how many steps can be charged in all.
        models: files of fitted models, by id.
        waiting: further jobs for the worker, which `next` gives out.
        before: called with (method, what) before each message; may raise httpx.TransportError.
        ended: other jobs, which are over.
        taken: marks of sources that are under another budget.
        held: how often a worker is told that another one's lease has not run out.
        after: the same, once the message has done its work: the answer may be lost on its way.
    """

    assignment: Assignment
    budget_steps: int = 10**6
    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    waiting: list[Assignment] = field(default_factory=list)
    before: Callable[[str, str], None] = lambda method, what: None
    after: Callable[[str, str], None] = lambda method, what: None
    cancel: bool = False
    ended: tuple[str, ...] = ()
    taken: frozenset[str] = frozenset()
    held: int = 0

    lease: int = 0
    attempts: int = 0
    over: bool = False
    charges: dict[str, Charge] = field(default_factory=dict)
    events: list[WorkerEvent] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    texts: list[TextChunk] = field(default_factory=list)
    outcomes: list[tuple[str, Outcome]] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)
    practitioner: list[bytes] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    heartbeats: int = 0
    sources: list[SourceMarks] = field(default_factory=list)
    _events_of_lease: dict[int, int] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def client(self) -> GatewayClient:
        """A worker's connection."""
        transport = httpx.MockTransport(self._handle)
        made = GatewayClient.connected("http://gateway", self.assignment.job, TOKEN, transport)
        made.sleep = lambda seconds: None
        return made

    @property
    def charged_steps(self) -> int:
        """Steps that have been charged, those that were done again included."""
        return sum(charge.steps for charge in self.charges.values())

    @property
    def outcome(self) -> Outcome:
        """Outcome of the last job."""
        return self.outcomes[-1][1]

    def progress(self) -> list[ProgressEvent]:
        """The steps that were reported."""
        return [event for event in self.events if isinstance(event, ProgressEvent)]

    def _handle(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        parts = request.url.path.strip("/").split("/")
        what = parts[-1] if "files" not in parts else "files"
        self.before(request.method, what)
        with self._lock:
            if what != "incidents":
                shown = [f"{request.method} {request.url}".encode(), body]
                self.practitioner += [
                    *shown,
                    *(b"%b: %b" % header for header in request.headers.raw),
                ]
            try:
                answer = self._answer(request, parts, body)
            except _ProblemError as problem:
                self.refused.append(problem.code)
                content = {"code": problem.code, "status": problem.status}
                answer = httpx.Response(problem.status, json=content)
            except ValidationError as error:
                self.refused.append(f"invalid {what}: {error.errors()[0]['type']}")
                answer = httpx.Response(422, json={"code": "invalid"})
        self.after(request.method, what)
        return answer

    def _answer(self, request: httpx.Request, parts: list[str], body: bytes) -> httpx.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _ProblemError(401, "unauthenticated")
        assert parts[:2] == ["v1", "worker"], parts
        if parts[2] == "jobs" and parts[3] != self.assignment.job:
            raise _ProblemError(404, "not_found")
        if parts[4:] == ["lease"]:
            return self._lease(LeaseRequest.model_validate_json(body))
        if request.headers.get(LEASE_HEADER) != str(self.lease):
            raise _ProblemError(409, "fenced")
        if parts[2] == "models":
            return httpx.Response(200, content=self.models[parts[3]][parts[5]])
        if self.over and parts[4] != "next":
            raise _ProblemError(409, "fenced")
        if parts[4] == "files":
            return self._file(parts[5], body)
        return _ROUTES[parts[4]](self, body)

    def _lease(self, request: LeaseRequest) -> httpx.Response:
        if self.held > 0:
            self.held -= 1
            raise _ProblemError(409, "lease_held")
        self.lease += 1
        self.attempts += 1
        filled = {
            "lease": self.lease,
            "attempt": self.attempts,
            "charged_steps": self.charged_steps,
        }
        given = self.assignment.model_copy(update=filled)
        return httpx.Response(200, content=given.model_dump_json())

    def _heartbeat(self, body: bytes) -> httpx.Response:
        self.heartbeats += 1
        return httpx.Response(200, content=Orders(cancel=self.cancel).model_dump_json())

    def _source(self, body: bytes) -> httpx.Response:
        found = SourceMarks.model_validate_json(body)
        if self.taken & {*found.places, *found.contents}:
            raise _ProblemError(409, "source_taken")
        self.sources.append(found)
        return httpx.Response(204)

    def _charge(self, body: bytes) -> httpx.Response:
        charge = Charge.model_validate_json(body)
        known = self.charges.get(charge.operation_id)
        if known is not None and known != charge:
            raise _ProblemError(409, "conflict")
        if known is None and self.charged_steps + charge.steps > self.budget_steps:
            raise _ProblemError(409, "budget_exceeded")
        self.charges[charge.operation_id] = charge
        return httpx.Response(204)

    def _event(self, body: bytes) -> httpx.Response:
        batch = EventBatch.model_validate_json(body)
        known = self._events_of_lease.get(self.lease, 0)
        if batch.first > known:
            raise _ProblemError(422, "invalid")
        self.events += batch.events[known - batch.first :]
        self._events_of_lease[self.lease] = max(known, batch.first + len(batch.events))
        return httpx.Response(204)

    def _file(self, name: str, body: bytes) -> httpx.Response:
        limit = ALLOWED[self.assignment.request.kind].get(name)
        if limit is None:
            raise _ProblemError(404, "not_found")
        if len(body) > limit:
            raise _ProblemError(413, "too_large")
        self.files[name] = body
        return httpx.Response(204)

    def _incident(self, body: bytes) -> httpx.Response:
        self.incidents.append(Incident.model_validate_json(body).log)
        number = IncidentId(incident=f"inc_{len(self.incidents):016d}")
        return httpx.Response(201, content=number.model_dump_json())

    def _asked_over(self, body: bytes) -> httpx.Response:
        asked = JobsAsked.model_validate_json(body)
        found = JobsOver(jobs=tuple(job for job in asked.jobs if job in self.ended))
        return httpx.Response(200, content=found.model_dump_json())

    def _outcome(self, body: bytes) -> httpx.Response:
        outcome = Outcome.model_validate_json(body)
        self.outcomes.append((self.assignment.job, outcome))
        self.over = True
        return httpx.Response(204)

    def _text(self, body: bytes) -> httpx.Response:
        self.texts.append(TextChunk.model_validate_json(body))
        return httpx.Response(204)

    def _next(self, body: bytes) -> httpx.Response:
        if not self.waiting:
            return httpx.Response(200, content=NextJob().model_dump_json())
        self.assignment, self.over = self.waiting.pop(0), False
        answer = {"job": self.assignment.job, "token": TOKEN}
        return httpx.Response(200, content=json.dumps(answer))


_ROUTES: dict[str, Callable[[FakeGateway, bytes], httpx.Response]] = {
    "heartbeat": FakeGateway._heartbeat,
    "source": FakeGateway._source,
    "charges": FakeGateway._charge,
    "events": FakeGateway._event,
    "incidents": FakeGateway._incident,
    "outcome": FakeGateway._outcome,
    "over": FakeGateway._asked_over,
    "text": FakeGateway._text,
    "next": FakeGateway._next,
}

"""The worker's side of `taciturn.wire.worker`: one method per message, sent until it is answered.

A message that got no answer is sent again as it is. Charges and leases carry an operation id, and
events their number, so that the gateway knows a repeated one.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never, TypeVar

import httpx
from pydantic import BaseModel
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_exponential,
    wait_fixed,
)

from taciturn.errors import BudgetExceededError, FencedError, LeaseHeldError, TaciturnError
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

PATIENCE_S = 600.0
"""How long a message is sent again before the worker gives up."""

_NOT_NOW = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHUNK_BYTES = 1 << 20
_HELD_S = 2.0  # between two looks whether another worker's lease has run out
_WAIT = wait_exponential(multiplier=0.1, max=10.0)
_TIMEOUT = httpx.Timeout(30.0, read=120.0)

M = TypeVar("M", bound=BaseModel)


class RefusedError(TaciturnError):
    """The gateway refuses a message: sending it again would change nothing.

    Attributes:
        code: the gateway's word for the reason.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class UnreachableError(TaciturnError):
    """The gateway did not answer, for longer than PATIENCE_S."""


@dataclass(slots=True, repr=False)
class GatewayClient:
    """Speaks for one job, and once it has it, with its lease.

    Attributes:
        job: whose messages these are.
        lease: the fencing token; None before `take`.
    """

    http: httpx.Client
    job: str
    token: str
    lease: int | None = None
    patience_s: float = PATIENCE_S
    sleep: Callable[[float], None] = time.sleep
    _operations: Iterator[str] = field(init=False)

    def __post_init__(self) -> None:
        run = os.urandom(8).hex()
        self._operations = (f"{self.job}-{run}-{number}" for number in range(10**9))

    @classmethod
    def connected(
        cls, url: str, job: str, token: str, transport: httpx.BaseTransport | None = None
    ) -> GatewayClient:
        """A client of the gateway at `url`."""
        http = httpx.Client(base_url=url, timeout=_TIMEOUT, transport=transport)
        return cls(http, job, token)

    def of_job(self, job: str, token: str) -> GatewayClient:
        """The same connection, for another job."""
        return GatewayClient(self.http, job, token, None, self.patience_s, self.sleep)

    def take(self, worker: str) -> Assignment:
        """Take the job, fencing off whoever had it.

        A worker that was killed still holds it until its lease runs out: that is waited for. Raises
        FencedError if it does not, since then the other one lives.
        """
        request = LeaseRequest(worker=worker, operation_id=next(self._operations))
        retrying = Retrying(
            retry=retry_if_exception_type(LeaseHeldError),
            wait=wait_fixed(_HELD_S),
            stop=stop_after_delay(self.patience_s),
            sleep=self.sleep,
            reraise=True,
        )
        try:
            assignment: Assignment = retrying(self._request, "lease", Assignment, request)
        except LeaseHeldError:
            raise FencedError("another worker has the job; this one stops") from None
        self.lease = assignment.lease
        return assignment

    def heartbeat(self) -> Orders:
        """A sign of life."""
        return self._request("heartbeat", Orders)

    def source(self, marks: SourceMarks) -> None:
        """Say what the source is; RefusedError `source_taken` where another budget has the same."""
        self._post("source", marks)

    def charge(self, first_step: int, steps: int) -> None:
        """Returns once the steps are paid for; before that, none of them may run."""
        operation = next(self._operations)
        self._post("charges", Charge(operation_id=operation, first_step=first_step, steps=steps))

    def events(self, batch: EventBatch) -> None:
        """Report events."""
        self._post("events", batch)

    def file(self, name: str, path: Path) -> None:
        """Hand in a released file."""
        headers = {
            "Content-Length": str(path.stat().st_size),
            "Content-Type": "application/octet-stream",
        }
        self._send("PUT", self._path(f"files/{name}"), headers, lambda: _chunks(path))

    def incident(self, incident: Incident) -> IncidentId:
        """Leave the full log of a failure with the gateway, for the data's owner."""
        return self._request("incidents", IncidentId, incident)

    def over(self, jobs: Sequence[str]) -> tuple[str, ...]:
        """Return those of these jobs that are over and will not run again."""
        return self._request("over", JobsOver, JobsAsked(jobs=tuple(jobs))).jobs

    def outcome(self, outcome: Outcome) -> None:
        """The last message."""
        self._post("outcome", outcome)

    def text(self, chunk: TextChunk) -> None:
        """A piece of a streamed sample."""
        self._post("text", chunk)

    def next(self) -> NextJob:
        """Wait for another job; none if the gateway has none, or does not answer."""
        return self._request("next", NextJob)

    def download(self, model: str, name: str, target: Path) -> None:
        """Fetch a file of a fitted model."""
        path = f"/v1/worker/models/{model}/files/{name}"
        self._until_answered(lambda: self._fetched(path, target))

    def _path(self, what: str) -> str:
        return f"/v1/worker/jobs/{self.job}/{what}"

    def _request(self, what: str, kind: type[M], message: BaseModel | None = None) -> M:
        return kind.model_validate_json(self._post(what, message).content)

    def _post(self, what: str, message: BaseModel | None = None) -> httpx.Response:
        body = b"" if message is None else message.model_dump_json().encode()
        headers = {"Content-Type": "application/json"}
        return self._send("POST", self._path(what), headers, lambda: body)

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Callable[[], Any] = lambda: None,
    ) -> httpx.Response:
        headers = {**self._credentials(), **headers}
        return self._until_answered(
            lambda: self.http.request(method, path, headers=headers, content=body())
        )

    def _fetched(self, path: str, target: Path) -> httpx.Response:
        """One attempt to fetch a file, piece by piece."""
        with self.http.stream("GET", path, headers=self._credentials()) as answer:
            if not answer.is_success:
                answer.read()
                return answer
            with target.open("wb") as file:
                for piece in answer.iter_bytes(_CHUNK_BYTES):
                    file.write(piece)
        return answer

    def _credentials(self) -> dict[str, str]:
        lease = {} if self.lease is None else {LEASE_HEADER: str(self.lease)}
        return {"Authorization": f"Bearer {self.token}", **lease}

    def _until_answered(self, attempt: Callable[[], httpx.Response]) -> httpx.Response:
        retrying = Retrying(
            retry=retry_if_exception_type(httpx.TransportError)
            | retry_if_result(lambda answer: answer.status_code in _NOT_NOW),
            wait=lambda state: _WAIT(state) * random.uniform(0.5, 1.5),
            stop=stop_after_delay(self.patience_s),
            sleep=self.sleep,
            retry_error_callback=self._unreachable,
        )
        return _accepted(retrying(attempt))

    def _unreachable(self, state: RetryCallState) -> Never:
        raise UnreachableError(f"the gateway did not answer for {self.patience_s:g} s")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _accepted(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    code = _code(answer)
    if code == "lease_held":
        raise LeaseHeldError("another worker has the job, and its lease has not run out")
    # A token that is not valid (any more) becomes valid by no other try: the job is over, or was
    # given to another worker, which has another one.
    if code in ("fenced", "unauthenticated"):
        raise FencedError("another worker has the job; this one stops")
    if code == "budget_exceeded":
        raise BudgetExceededError("the budget has no room for what is left to do")
    raise RefusedError(f"the gateway answers {answer.status_code} ({code})", code)


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["code"])[:60]
    except (ValueError, KeyError, TypeError):
        return "without a code"

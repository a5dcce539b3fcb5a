"""Requests to a gateway: timeouts, repeats that cannot spend twice, errors, pages.

A request is repeated only if that is the same as sending it once: GET, PUT and DELETE, and any with
an Idempotency-Key, which is made once per logical call and not per attempt. Any other is repeated
only where it certainly did not arrive.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
)
from tenacity.retry import retry_base

from taciturn._version import __version__
from taciturn.errors import GatewayError, UnavailableError
from taciturn.sdk.refusal import refusal
from taciturn.wire.values import Page

V = TypeVar("V", bound=BaseModel)

_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_PASSING = frozenset({429, 502, 503, 504})
_NEVER_ARRIVED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts and repeats of requests.

    Attributes:
        timeout_s: for an answer to begin, or to go on.
        attempts: how often a request is sent at most.
        first_wait_s: about how long to wait before the second attempt; doubled each time.
        longest_wait_s: between two attempts.
    """

    timeout_s: float = 60.0
    attempts: int = 6
    first_wait_s: float = 0.25
    longest_wait_s: float = 10.0

    def wait_s(self, attempt: int, chance: float) -> float:
        """Before the next attempt: between half and all of a doubling time, so that clients that
        lost the same gateway do not come back at the same moment."""
        longest = min(self.first_wait_s * 2.0 ** min(attempt, 30), self.longest_wait_s)
        return longest * (0.5 + chance / 2)


class Transport:
    """A gateway's address, a token, and the connection between."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        patience: Patience | None = None,
        http: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self.patience = patience or Patience()
        self.sleep = sleep
        self._http = http or httpx.Client(
            timeout=httpx.Timeout(self.patience.timeout_s, connect=10)
        )
        self._headers = {"User-Agent": f"taciturn/{__version__}"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
        if_match: str | None = None,
    ) -> httpx.Response:
        """Send a request, again where that is safe; returns an answer below 400.

        Args:
            path: below /v1.
            key: an Idempotency-Key; see `new_key`.
            if_match: the version that a change was made from.

        Raises:
            GatewayError: refused, with the gateway's own words; UnavailableError: no answer.
        """
        json = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
        more = {"Idempotency-Key": key, "If-Match": if_match}
        headers = self._headers | {name: text for name, text in more.items() if text is not None}
        query = {name: value for name, value in (params or {}).items() if value is not None}
        request = self._http.build_request(
            method, f"{self.url}/v1/{path}", json=json, params=query, headers=headers
        )
        return self._answer(request, repeatable=key is not None or method in _REPEATABLE)

    def _answer(self, request: httpx.Request, *, repeatable: bool) -> httpx.Response:
        retried = httpx.TransportError if repeatable else _NEVER_ARRIVED
        passing = _PASSING if repeatable else ()
        retrying = self._retrying(
            retry_if_exception_type(retried)
            | retry_if_result(lambda response: response.status_code in passing)
        )
        try:
            response = retrying(self._http.send, request)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        # an earlier attempt may have removed it, and its answer was lost
        removed = request.method == "DELETE" and response.status_code == 404
        if response.status_code < 400 or (removed and retrying.statistics["attempt_number"] > 1):
            return response
        raise refusal(response)

    def get(self, path: str, kind: type[V]) -> V:
        """A value."""
        return self.read(kind, self.send("GET", path))

    def read(self, kind: type[V], response: httpx.Response) -> V:
        """The value in an answer; raises GatewayError if it is of another kind."""
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise GatewayError(
                f"the answer of {self.url} is not what taciturn {__version__} expects "
                f"({kind.__name__}: {where}: {first['msg']}); are the versions the same?",
                code="misunderstood",
                status=response.status_code,
            ) from None

    def pages(
        self, path: str, kind: type[V], params: Mapping[str, Any] | None = None
    ) -> Iterator[V]:
        """All values of a list, page by page as they are asked for."""
        cursor: str | None = None
        while True:
            query = {**(params or {}), "cursor": cursor}
            page = self.read(Page[kind], self.send("GET", path, params=query))  # type: ignore[valid-type]
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """An answer that is read as it comes; sent once.

        Raises:
            GatewayError: refused; UnavailableError: no answer, or it broke off.
        """
        request = self._http.build_request(
            method, f"{self.url}/v1/{path}", json=body, headers={**self._headers, **(headers or {})}
        )
        try:
            response = self._http.send(request, stream=True)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        try:
            if response.status_code >= 400:
                response.read()
                raise refusal(response)
            yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        finally:
            response.close()

    def download(self, path: str, target: Path) -> None:
        """Write a file, whole or not at all; again, if the connection breaks."""
        partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex}")
        try:
            self._retrying(retry_if_exception_type(UnavailableError))(self._write, path, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _write(self, path: str, target: Path) -> None:
        with self.stream("GET", path) as response, target.open("wb") as file:
            for piece in response.iter_bytes():
                file.write(piece)

    def _retrying(self, retry: retry_base) -> Retrying:
        """Return what calls a function as often as `patience` allows; then its last result or error
        is that of the call."""
        return Retrying(
            retry=retry,
            wait=self._wait_s,
            stop=stop_after_attempt(self.patience.attempts),
            sleep=self.sleep,
            retry_error_callback=_last,
        )

    def _wait_s(self, state: RetryCallState) -> float:
        wait_s = self.patience.wait_s(state.attempt_number - 1, random.random())
        outcome = state.outcome
        response = None if outcome is None or outcome.failed else outcome.result()
        requested = "" if response is None else response.headers.get("retry-after", "")
        if requested.isdigit():
            wait_s = max(wait_s, min(float(requested), self.patience.longest_wait_s))
        return wait_s

    def _unreachable(self, error: httpx.TransportError) -> UnavailableError:
        # The name of the kind only: messages of sockets may quote proxies with passwords.
        return UnavailableError(
            f"the gateway at {self.url} did not answer ({type(error).__name__}); is it running, "
            "and is the address right?",
            code="unreachable",
        )


def _last(state: RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.result()


def new_key() -> str:
    """An Idempotency-Key for one logical call."""
    return uuid.uuid4().hex

"""Launcher that starts nothing, and workers that speak the gateway's protocol by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi.testclient import TestClient

from taciturn.server.launchers.base import Order, OutageError, WorkerState, parts_of
from taciturn.wire.worker import LEASE_HEADER


@dataclass
class FakeLauncher:
    """Launcher that remembers its orders; tests say what becomes of the workers.

    Attributes:
        refuses: raised by the next launches.
        away: no call is answered, as in an outage of the cluster.
        calls: how many calls there were.
    """

    orders: list[Order] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    stopped: list[tuple[str, float]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    refuses: Exception | None = None
    away: bool = False
    given_up: set[str] = field(default_factory=set)
    calls: int = 0

    def _called(self) -> None:
        self.calls += 1
        if self.away:
            raise OutageError("nobody answers")

    def _handles(self) -> list[str]:
        return [order.handle for order in self.orders]

    def launch(self, order: Order) -> str:
        self._called()
        if self.refuses is not None:
            raise self.refuses
        if order.handle not in self._handles():
            self.orders.append(order)
        return order.handle

    def status(self, handle: str) -> WorkerState:
        self._called()
        if handle in self.given_up:
            return WorkerState.GIVEN_UP
        if handle not in self._handles():
            return WorkerState.ABSENT
        return WorkerState.ENDED if handle in self.ended else WorkerState.RUNNING

    def stop(self, handle: str, grace_s: float) -> None:
        self._called()
        self.stopped.append((handle, grace_s))
        if grace_s == 0:
            self.ended.add(handle)

    def alive(self) -> tuple[str, ...]:
        self._called()
        return tuple(handle for handle in self._handles() if handle not in self.ended)

    def waiting(self, handle: str) -> bool:
        return False

    def leftover_jobs(self) -> tuple[str, ...]:
        return tuple({parts_of(handle)[0] for handle in self._handles()} - set(self.forgotten))

    def forget(self, job_id: str) -> None:
        self.forgotten.append(job_id)


@dataclass
class FakeWorker:
    """Worker of a job: sends the messages of the protocol that a test asks for."""

    client: TestClient
    job: str
    token: str
    lease: int = 0

    def take(self, operation: str = "operation-1") -> httpx.Response:
        """Take the lease, and keep its number."""
        answer = self.say("lease", {"worker": "w", "operation_id": operation})
        if answer.status_code == 200:
            self.lease = answer.json()["lease"]
        return answer

    def say(self, what: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Send one message."""
        headers = {"Authorization": f"Bearer {self.token}", LEASE_HEADER: str(self.lease)}
        return self.client.post(f"/v1/worker/jobs/{self.job}/{what}", json=body, headers=headers)

    def charge(self, first: int, steps: int, operation: str | None = None) -> httpx.Response:
        """Charge a block of steps."""
        name = operation or f"block-{self.lease}-{first}"
        body = {"operation_id": name, "first_step": first, "steps": steps}
        return self.say("charges", body)

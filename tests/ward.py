"""A gateway with a namespace and people, a clock that tests set, and a launcher that starts
nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient
from sqlalchemy import Engine, func, select

from gateways.world import World
from taciturn.server.app import create_app
from taciturn.server.context import Gateway
from taciturn.server.jobs.completion import NothingReleased
from taciturn.server.launchers.base import Order, OutageError, WorkerState, parts_of
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.ledger.tables import entries
from taciturn.server.services import Services
from taciturn.server.settings import Settings
from taciturn.wire.worker import LEASE_HEADER


@dataclass
class Watch:
    now: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Bench:
    """A launcher that remembers what it was asked for; tests say what becomes of its workers."""

    orders: list[Order] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    stopped: list[tuple[str, float]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    refuses: Exception | None = None
    away: bool = False
    given_up: set[str] = field(default_factory=set)
    asked: int = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.away:
            raise OutageError("nobody answers")

    def launch(self, order: Order) -> str:
        self._ask()
        if self.refuses is not None:
            raise self.refuses
        if order.handle not in {each.handle for each in self.orders}:
            self.orders.append(order)
        return order.handle

    def status(self, handle: str) -> WorkerState:
        self._ask()
        if handle in self.given_up:
            return WorkerState.GIVEN_UP
        if handle not in {each.handle for each in self.orders}:
            return WorkerState.ABSENT
        return WorkerState.ENDED if handle in self.ended else WorkerState.RUNNING

    def stop(self, handle: str, grace_s: float) -> None:
        self._ask()
        self.stopped.append((handle, grace_s))
        if grace_s == 0:
            self.ended.add(handle)

    def alive(self) -> tuple[str, ...]:
        self._ask()
        return tuple(each.handle for each in self.orders if each.handle not in self.ended)

    def waiting(self, handle: str) -> bool:
        return False

    def leftover_jobs(self) -> tuple[str, ...]:
        return tuple({parts_of(each.handle)[0] for each in self.orders} - set(self.forgotten))

    def forget(self, job_id: str) -> None:
        self.forgotten.append(job_id)


@dataclass
class Hand:
    """A worker: what was launched, speaking to the gateway."""

    client: TestClient
    job: str
    token: str
    lease: int = 0

    def take(self, operation: str = "operation-1") -> httpx.Response:
        answer = self.say("lease", {"worker": "w", "operation_id": operation})
        if answer.status_code == 200:
            self.lease = answer.json()["lease"]
        return answer

    def say(self, what: str, body: dict[str, Any] | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", LEASE_HEADER: str(self.lease)}
        return self.client.post(f"/v1/worker/jobs/{self.job}/{what}", json=body, headers=headers)

    def charge(self, first: int, steps: int, operation: str | None = None) -> httpx.Response:
        name = operation or f"block-{self.lease}-{first}"
        body = {"operation_id": name, "first_step": first, "steps": steps}
        return self.say("charges", body)


@dataclass
class Ward:
    """Everything together."""

    world: World
    client: TestClient
    services: Services
    launcher: Bench
    watch: Watch

    @property
    def gateway(self) -> Gateway:
        return self.services.gateway

    def ask(self, body: dict[str, Any], who: str = "paul", key: str | None = "key-00001") -> Any:
        return self.client.post("/v1/jobs", json=body, headers=self.world.as_(who, key))

    def get(self, path: str, who: str = "paul") -> Any:
        return self.client.get(f"/v1/{path}", headers=self.world.as_(who))

    def post(self, path: str, body: Any = None, who: str = "paul") -> Any:
        return self.client.post(f"/v1/{path}", json=body, headers=self.world.as_(who))

    def tick(self) -> None:
        self.services.dispatcher.tick()

    def state(self, job: str) -> str:
        return str(self.get(f"jobs/{job}", "ann").json()["state"])

    def hand(self, job: str) -> Hand:
        """The worker that was launched last for a job."""
        order = [each for each in self.launcher.orders if each.job_id == job][-1]
        return Hand(self.client, job, order.environment["TACITURN_JOB_TOKEN"])

    def running(self, body: dict[str, Any], key: str = "key-00001", who: str = "paul") -> Hand:
        """A job that runs, by the worker that has taken it."""
        job = self.ask(body, who, key).json()["id"]
        self.tick()
        hand = self.hand(job)
        assert hand.take().status_code == 200
        return hand

    def restarted(self) -> None:
        """The gateway is gone, and comes again."""
        self.services = Services.of(
            self.gateway, launcher=self.launcher, released=NothingReleased()
        )
        self.client.app.state.services = self.services  # type: ignore[attr-defined]

    def entries(self) -> int:
        """Entries of the ledger: what was refused has made none."""
        with self.gateway.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(entries)).scalar_one()


def make_ward(engine: Engine, folder: Path, **settings: Any) -> Ward:
    watch, key, launcher = Watch(), SealKey.generate(), Bench()
    given = {"source_prefixes": ("/",), **settings}
    chosen = Settings(data_dir=folder, max_workers=4, lease_s=30, **given)
    gateway = Gateway(chosen, engine, key, Ledger(engine, key, clock=watch), watch)
    world = World.on(gateway)
    app = create_app(gateway)
    services = Services.of(gateway, launcher=launcher, released=NothingReleased())
    app.state.services = services
    return Ward(world, TestClient(app, raise_server_exceptions=False), services, launcher, watch)

"""The gateway under load, on SQLite and on PostgreSQL.

    python bench/gateway.py                    mixed requests: at a rate, and as many as it takes
    python bench/gateway.py --streams 1000     event streams, alone and beside the mixed requests
    python bench/gateway.py --soak 600         memory over time
    python bench/gateway.py --statements       what each kind of request asks of the database
    python bench/gateway.py --database SQLite  one of them only
    python bench/gateway.py --processes 4      of PostgreSQL's gateway; SQLite serves one
    python bench/gateway.py --without-plans    plans look through the many earlier fits here

The gateway runs as `taciturn serve` runs it, on PostgreSQL in two processes, sessions and audit log
included, every answer on record before it leaves. The load comes from this process over
loopback. Ends with 1 if a goal is missed: 300 requests per second with 99% below 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select
from starlette.testclient import TestClient

from evidence.figures import add_out, keep
from gateways.load import Ask, Line, Seen, Watchers, closed_loop, open_loop, quantile_ms
from gateways.served import Nobody, Served, more_files, served
from ledgers.databases import database
from support.gateway import DATASET, MODEL, NAMESPACE, GatewayWorld, fit, plan_of
from support.postgres import NoPostgresError
from support.statements import count_statements
from taciturn.server.app import create_app
from taciturn.server.context import Gateway
from taciturn.server.database import open_database
from taciturn.server.identity.secret import new_id
from taciturn.server.jobs.events import Events
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.ledger.journal import utc_now
from taciturn.server.schema.tables import jobs, models
from taciturn.server.settings import Settings
from taciturn.wire.events import JobEvent, ProgressEvent, Stage, StageEvent, StateEvent
from taciturn.wire.jobs import JobState

RATE, GOAL_MS, LINES, TICK_S = 300.0, 100.0, 16, 2.0
JOBS, RUNNING, MODELS = 400, 20, 40
LINE = '{"kind": "DP", "text": "DP (epsilon=3, delta=1e-06, unit=patient_id)"}'


@dataclass
class Place:
    """A gateway, running, and the same gateway's parts in this process."""

    served: Served
    processes: int
    gateway: Gateway
    world: GatewayWorld
    over: list[str]
    running: list[str]
    model: str
    plans: bool = True
    figures: dict[str, float] = field(default_factory=dict)

    def say(self, event: JobEvent) -> None:
        """An event of every job that runs."""
        events = Events(self.gateway)

        def work(connection: Connection) -> None:
            for job in self.running:
                events.append(connection, job, event)

        self.gateway.write(work)

    def asks(self) -> list[Ask]:
        """The mix: what people and their notebooks ask, and some writes."""
        jobs, paul = self.over, self._ask
        return [
            paul("self", "self", 15),
            paul("datasets", "datasets", 15),
            paul("dataset", f"datasets/{DATASET}", 10),
            *(paul("job", f"jobs/{job}", 1) for job in jobs[:20]),
            paul("jobs", "jobs?limit=20", 5),
            *(paul("events", f"jobs/{job}/events", 1) for job in jobs[20:30]),
            paul("models", "models?limit=20", 5),
            paul("budget", f"budgets/{NAMESPACE}", 5),
            *(
                paul("plan", "plans", 1, fit(target_epsilon=0.5 + number / 10))
                for number in range(5 if self.plans else 0)
            ),
            paul("new token", "tokens", 2, {"name": "a notebook's", "expires_in_days": 1}),
            paul("new job", "jobs", 3, {"kind": "sample", "model": self.model, "prompts": ["A"]}),
        ]

    async def cancel_queued(self) -> None:
        """End all jobs that wait: nobody runs them here."""
        line = Line(self.served.port)
        waits = select(jobs.c.id).where(jobs.c.state == JobState.QUEUED.value)
        ids = self.gateway.read(lambda connection: connection.execute(waits).scalars().all())
        for job in ids:
            await line.ask(self._ask("cancel", f"jobs/{job}/cancel", 1, {}).data)

    def stream(self, number: int) -> bytes:
        """The request of one stream."""
        job = self.running[number % len(self.running)]
        return self._ask("stream", f"jobs/{job}/events", 1, None, "text/event-stream").data

    def _ask(
        self,
        name: str,
        path: str,
        weight: int,
        body: dict[str, Any] | None = None,
        accept: str = "application/json",
    ) -> Ask:
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{'GET' if body is None else 'POST'} /v1/{path} HTTP/1.1\r\nHost: gateway\r\n"
            f"Authorization: Bearer {self.world.tokens['paul']}\r\nAccept: {accept}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return Ask(name, head.encode() + data, weight)


@contextmanager
def place(kind: str, processes: int) -> Iterator[Place]:
    """A gateway with people, jobs and models, on a new database that waits for the disk."""
    with (
        tempfile.TemporaryDirectory(prefix="taciturn-bench-") as folder,
        database(kind) as url,
        _opened(url, folder, 1 if kind == "SQLite" else processes) as found,
    ):
        yield found


@contextmanager
def _opened(url: str, folder: str, processes: int) -> Iterator[Place]:
    engine, key = open_database(url), SealKey.generate()
    gateway = Gateway(
        Settings(data_dir=Path(folder), tick_s=TICK_S), engine, key, Ledger(engine, key), utc_now
    )
    world = GatewayWorld(gateway).populate()
    over, running, model = _furnish(world)
    settings = {
        "TACITURN_DATA_DIR": folder,
        "TACITURN_DATABASE_URL": url,
        "TACITURN_LEDGER_KEY": key.to_text(),
        "TACITURN_TICK_S": str(TICK_S),
        "TACITURN_PROCESSES": str(processes),
        "TACITURN_ADDRESS_CONNECTIONS": "100000",  # all of the load comes from one
    }
    with served(settings) as process:
        yield Place(process, processes, gateway, world, over, running, model)
    engine.dispose()


def _furnish(world: GatewayWorld) -> tuple[list[str], list[str], str]:
    """Jobs that are over, jobs that run, and models, straight into the tables."""
    gateway, now_ms = world.gateway, world.gateway.now_ms()
    events = Events(gateway)
    ids = [new_id("job") for _ in range(JOBS)]
    row = {
        "kind": "fit",
        "requester_id": world.users["paul"],
        "namespace": NAMESPACE,
        "dataset": DATASET,
        "request": json.dumps(fit()),
        "plan": json.dumps(plan_of(fit())),
        "grants": "[]",
        "attempt": 1,
        "lease": 1,
        "lease_until_ms": now_ms + 10**9,
        "cancel": False,
        "policy": LINE,
    }
    model_row = {
        "owner_id": world.users["paul"],
        "namespace": NAMESPACE,
        "base_model": MODEL,
        "report": "{}",
        "policy": LINE,
        "created_at_ms": now_ms,
    }
    said: list[JobEvent] = [StageEvent(stage=stage) for stage in Stage]
    made = [new_id("model") for _ in range(MODELS)]

    def work(connection: Connection) -> None:
        for number, job in enumerate(ids):
            state = JobState.RUNNING if number < RUNNING else JobState.SUCCEEDED
            times = {"created_at_ms": now_ms - number, "updated_at_ms": now_ms}
            connection.execute(insert(jobs).values(id=job, state=state.value, **times, **row))
            final = [] if number < RUNNING else [StateEvent(state=state)]
            for event in [*said, *final]:
                events.append(connection, job, event)
        for model, job in zip(made, ids[RUNNING:], strict=False):
            connection.execute(insert(models).values(id=model, job_id=job, **model_row))

    gateway.write(work)
    return ids[RUNNING:], ids[:RUNNING], made[0]


def answered(client: TestClient, ask: Ask) -> int:
    """The status of an answer in this process."""
    head, _, body = ask.data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    content = json.loads(body) if body else None
    del headers["Content-Length"]
    return client.request(method, path, headers=headers, json=content).status_code


def show(what: str, seen: Seen, cpu_s: float | None = None) -> None:
    """A line; with the processor time of the gateway where it is known."""
    median, slow = (quantile_ms(seen.seconds, share) for share in (0.5, 0.99))
    cost = ""
    if cpu_s is not None:
        each_ms = 1000 * cpu_s / len(seen.seconds)
        cost = f", gateway {cpu_s / seen.wall_s:.0%} of a core, {each_ms:.2f} ms each"
    print(
        f"  {what}: {seen.per_s:.0f}/s, median {median:.1f} ms, p99 {slow:.1f} ms, "
        f"{len(seen.seconds)} answers {dict(sorted(seen.statuses.items()))}{cost}"
    )


def details(seen: Seen) -> None:
    """Which requests are slow."""
    for name, seconds in sorted(seen.by_name.items()):
        print(
            f"    {name:10} {len(seconds):6}  median {quantile_ms(seconds, 0.5):6.1f} ms  "
            f"p99 {quantile_ms(seconds, 0.99):6.1f} ms"
        )


async def mixed(at: Place, seconds: float) -> bool:
    """The two loads. Returns whether the goals were met."""
    asks = at.asks()
    start = time.perf_counter()
    for ask in asks:  # the first plan of its kind is computed, later ones are looked up
        await closed_loop(at.served.port, [ask], 1, 0.01)
    print(f"  the first answers of each kind, one by one: {time.perf_counter() - start:.1f} s")
    await closed_loop(at.served.port, asks, LINES, 2)
    cpu_s = at.served.cpu_s()
    steady = await open_loop(at.served.port, asks, RATE, seconds)
    steady_s = at.served.cpu_s() - cpu_s
    show(f"at {RATE:.0f}/s", steady, steady_s)
    details(steady)
    cpu_s = at.served.cpu_s()
    most = await closed_loop(at.served.port, asks, LINES, seconds)
    show(f"{LINES} lines, as fast as they are answered", most, at.served.cpu_s() - cpu_s)
    details(most)
    at.figures |= {
        "rate": RATE,
        "quantile": 0.99,
        "p99_ms": quantile_ms(steady.seconds, 0.99),
        "most_per_s": most.per_s,
        "request_ms": 1000 * steady_s / len(steady.seconds),
        "process_mb": at.served.memory_mb() / at.processes,
    }
    well = all(status < 400 for status in [*steady.statuses, *most.statuses])
    return well and quantile_ms(steady.seconds, 0.99) < GOAL_MS and most.per_s >= RATE


async def streams(at: Place, number: int, seconds: float) -> bool:
    """Streams that all get an event, alone and beside the mixed requests."""
    before = at.served.memory_mb()
    watchers = Watchers(at.served.port, [at.stream(index) for index in range(number)])
    await watchers.open()
    first = len(Stage)
    got = await watchers.until(first, 30)
    print(
        f"  {number} streams: all open after {watchers.seen.connected_s:.1f} s, {got} have the "
        f"events so far; gateway {before:.0f} -> {at.served.memory_mb():.0f} MB"
    )
    well = got == number
    for load in (False, True):
        first += 1
        asking = open_loop(at.served.port, at.asks(), RATE, seconds) if load else _nothing()
        task = asyncio.create_task(asking)
        await asyncio.sleep(seconds / 3)
        await asyncio.to_thread(at.say, ProgressEvent(step=first, steps=100))
        tick = Events(at.gateway).tick_ms() / 1000
        got = await watchers.until(first, 30)
        late = sorted(watchers.seen.at.values())[-1] - tick
        seen = await task
        beside = "" if seen is None else f" beside {RATE:.0f} requests/s"
        print(f"  an event reaches {got} of {number}{beside}: the last {late * 1000:.0f} ms late")
        if seen is not None:
            show("those requests", seen)
            well &= quantile_ms(seen.seconds, 0.99) < GOAL_MS
        well &= got == number
    await watchers.close()
    await asyncio.sleep(3)
    print(f"  after all have hung up: {at.served.memory_mb():.0f} MB")
    return well


async def _nothing() -> None:
    return None


async def soak(at: Place, seconds: float, rate: float) -> bool:
    """Memory while everything goes on: requests, streams that come and go, events, jobs that are
    asked for and cancelled again."""
    asks: list[Ask] = at.asks()
    samples: list[tuple[float, float]] = []
    start, cpu_s = time.perf_counter(), at.served.cpu_s()
    loading = asyncio.create_task(open_loop(at.served.port, asks, rate, seconds))
    number = 0
    while not loading.done():
        watchers = Watchers(at.served.port, [at.stream(index) for index in range(100)])
        await watchers.open()
        number += 1
        await asyncio.to_thread(at.say, ProgressEvent(step=number, steps=10_000))
        await asyncio.sleep(5)
        await watchers.close()
        await at.cancel_queued()
        samples.append((time.perf_counter() - start, at.served.memory_mb()))
    seen = await loading
    cpu_s = at.served.cpu_s() - cpu_s
    show(f"{seconds:.0f} s at {rate:.0f}/s with 100 streams that come and go", seen, cpu_s)
    half = samples[len(samples) // 2 :]
    print(
        "  MB by time: "
        + ", ".join(f"{mb:.0f}" for _, mb in samples[:: max(1, len(samples) // 20)])
    )
    slope = _slope(half) * 60
    print(f"  slope of the second half: {slope:+.2f} MB/min")
    return abs(slope) < 0.5 and all(status < 400 for status in seen.statuses)


def _slope(samples: list[tuple[float, float]]) -> float:
    """The median of the slopes between any two (Theil 1950, Sen 1968): a helper process that is
    there for one look is not growth."""
    pairs = itertools.combinations(samples, 2)
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs)


def statements(at: Place) -> bool:
    """How often each kind of request waits for the database, alone in this process. The caller is
    remembered, as it is for a second; the row of the audit log is one transaction of each, which
    requests that are answered at the same time share."""
    client = TestClient(create_app(at.gateway, launcher=Nobody()))
    kinds = {ask.name: ask for ask in at.asks()}
    well = True
    for name, ask in kinds.items():
        answered(client, ask)
        with count_statements(at.gateway.engine) as talk:
            status = answered(client, ask)
        print(f"    {name:10} {talk}")
        well &= status < 400
    return well


def main() -> int:
    """Run what is asked for on each database."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--database", choices=["SQLite", "PostgreSQL"], action="append")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--soak", type=float, default=0.0)
    parser.add_argument("--soak-rate", type=float, default=100.0)
    parser.add_argument("--statements", action="store_true")
    parser.add_argument("--without-plans", action="store_true")
    add_out(parser)
    given = parser.parse_args()
    more_files()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    well, figures = True, {}
    for kind in given.database or ["SQLite", "PostgreSQL"]:
        print(kind)
        try:
            with place(kind, given.processes) as at:
                at.plans = not given.without_plans
                if given.statements:
                    well &= statements(at)
                elif given.soak:
                    well &= asyncio.run(soak(at, given.soak, given.soak_rate))
                elif given.streams:
                    well &= asyncio.run(streams(at, given.streams, given.seconds))
                else:
                    well &= asyncio.run(mixed(at, given.seconds))
                    figures[kind] = at.figures
        except NoPostgresError as error:
            print(f"  left out: {error}")
    keep(given.out, figures)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

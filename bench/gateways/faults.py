"""A gateway, its workers and its database connections, killed at random moments while people ask
for jobs; see `bench/gateway_faults.py`."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Connection, Row, Select, func, select

from ledgers.chaos import CRASH_SHARE, KILLS_PER_LOOK, Scene, whole_lines
from ledgers.herd import answer, kill, spawn
from support.gateway import DELTA, EPSILON, UNITS, GatewayWorld, fit, plan_of
from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.reports.privacy import PrivacyReport
from taciturn.server.app import create_app
from taciturn.server.context import Gateway
from taciturn.server.jobs.completion import NothingReleased
from taciturn.server.launchers.local import LocalLauncher
from taciturn.server.ledger import Ledger, SealKey, namespaces, statement
from taciturn.server.ledger.journal import utc_now
from taciturn.server.ledger.tables import jobs as ledger_jobs
from taciturn.server.schema.tables import jobs
from taciturn.server.serve import run
from taciturn.server.services import Services
from taciturn.server.settings import Settings
from taciturn.wire.jobs import JobState

BODY = fit(target_epsilon=1.5, steps=20)
CLIENTS, WORKERS, PROCESSES = 3, 4, 2  # on PostgreSQL; SQLite serves one process
LEASE_S, TICK_S = 3.0, 0.1
WAITING = 6  # jobs in the queue, of which no more are asked for: it has to empty in time
SETTLED_S = 60.0
STARTED_SHARE = 0.8  # of the gateways: they answer before the next fault comes
STUB = (sys.executable, "-I", "-S", str(Path(__file__).with_name("stub.py")))


def faults(url: str, key: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill `kills` times, then everything; start the gateway again, and look what is left.

    Returns:
        What was killed how often; `overspends`, `lost_charges` and `stuck`, which must be 0; how
        long after the restart the last reservation was closed; and how much happened.
    """
    with tempfile.TemporaryDirectory() as folder:
        scene = _Scene(url, SealKey.from_text(key), Path(folder), random.Random(seed))
        try:
            scene.prepare()
            killed = scene.run(kills)
            scene.end()
            return {"killed": dict(killed), **scene.outcome()}
        finally:
            scene.end()


@dataclass
class _Scene(Scene):
    port: int = 0
    world: GatewayWorld | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    report: bytes = b""

    def prepare(self) -> None:
        """People, a namespace, and the price, so that no gateway need compute it again."""
        (self.folder / "notes").mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.world = GatewayWorld(self.gateway()).populate()
        (self.folder / "newest").write_text("phee")
        self.plan = plan_of(BODY)
        self.report = _report(self.plan)

    def gateway(self) -> Gateway:
        settings = Settings(
            data_dir=self.folder / "gateway",
            port=self.port,
            database_url=self.url,
            processes=self.count,
            max_workers=WORKERS,
            lease_s=LEASE_S,
            stop_s=1.0,
            provision_s=10.0,
        )
        engine = self.connected()
        return Gateway(settings, engine, self.key, Ledger(engine, self.key, patience_s=60), utc_now)

    @property
    def count(self) -> int:
        """Processes that serve."""
        return PROCESSES if self.url.startswith("postgresql") else 1

    def run(self, kills: int) -> Counter[str]:
        for name in ("gateway", *(f"client-{each}" for each in range(CLIENTS))):
            self.start(name)
        self.wait()
        killed: Counter[str] = Counter()
        while killed.total() < kills:
            time.sleep(self.random.uniform(0, 0.4))
            victim = self.fault()
            if victim is None:
                continue
            killed[victim] += 1
            if victim == "gateway" and self.random.random() < STARTED_SHARE:
                self.wait()
            if killed.total() % KILLS_PER_LOOK == 0:
                self.refresh()
        return killed

    def wait(self) -> None:
        """Until the gateway answers: its processes import everything anew."""
        end_s = time.monotonic() + SETTLED_S
        while time.monotonic() < end_s:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", "/v1/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.1)

    def start(self, name: str) -> None:
        self.number += 1
        assert self.world is not None
        if self.engine is not None:
            self.engine.dispose()  # no open connection is shared with a child
            self.engine = None
        work = self.serve if name == "gateway" else _Client(self, f"{name}-{self.number}").run
        self.processes[name] = spawn(work)

    def serve(self) -> None:
        """The gateway's processes."""
        os.environ["NOTES"] = str(self.folder / "notes")
        run(
            self.gateway().settings,
            _Served(self.url, self.key, self.folder, self.port, self.report),
        )

    def fault(self) -> str | None:
        """Kill something; what the gateway does not start again itself is started again. None if
        it was a worker's turn and there is none: gateways must live long enough to start some."""
        draw = self.random.random()
        if self.url.startswith("postgresql"):
            if draw < CRASH_SHARE and self.backend(crash=True):
                return "database backend (kill -9, server restarts)"
            if draw < 0.3 and self.backend(crash=False):
                return "database connection"
        if draw < 0.75:
            return "worker" if self.kill_worker() else None
        if draw < 0.85 and self.count > 1:
            return "one process of the gateway" if self.kill_process() else None
        name = "gateway" if draw < 0.95 else self.random.choice(sorted(self.processes))
        kill(self.processes[name])
        self.start(name)
        return name.partition("-")[0]

    def kill_process(self) -> bool:
        """`kill -9` of a process that serves; False if there is none yet."""
        pid = self.processes["gateway"]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = [each for each in children if b"spawn_main" in _command(each)]
        if not found:
            return False
        os.kill(int(self.random.choice(found)), signal.SIGKILL)
        return True

    def kill_worker(self) -> bool:
        """`kill -9` of a worker that lives; False if there is none."""
        found = list((self.folder / "workspaces").glob("job_*/*/born"))
        self.random.shuffle(found)
        for born in found:
            with contextlib.suppress(OSError, ValueError):
                pid = int(born.read_text().split()[0])
                if b"stub.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    def refresh(self) -> None:
        """Where the newest namespace is full, open another one."""
        gateway = self.gateway()
        newest = namespaces(gateway.engine)[-1]
        if statement(gateway.engine, gateway.seal_key, newest).budget.used < 0.9:
            return
        self.number += 1
        name = f"namespace-{self.number:06}"
        assert self.world is not None
        GatewayWorld(gateway, users=self.world.users).open_namespace(name, f"data-{name}")
        draft = self.folder / "newest.draft"
        draft.write_text(f"data-{name}")
        draft.replace(self.folder / "newest")

    def end(self) -> None:
        for pid in self.processes.values():
            kill(pid)
        while self.kill_worker():
            time.sleep(0.01)
        self.processes.clear()

    def outcome(self) -> dict[str, Any]:
        self.start("gateway")
        seconds, stuck = self.settle()
        kill(self.processes.pop("gateway"))
        ran = self.ran()
        with self.connected().connect() as connection:
            states = connection.execute(
                select(jobs.c.state, func.count()).group_by(jobs.c.state)
            ).all()
        blocks = Counter(ran.values())
        spent = [epsilon(_steps(self.plan, 5 * count), DELTA) for count in blocks.values()]
        counts = {"stuck": stuck, "seconds_to_release": seconds}
        return self.result(ran, spent, EPSILON, **counts, jobs={row[0]: row[1] for row in states})

    def settle(self) -> tuple[float, int]:
        """Seconds after the restart until no job and no reservation is open, and how many are."""
        start = time.monotonic()
        held = select(func.count()).where(ledger_jobs.c.status == "open")
        over = [state for state in JobState if state.over]
        on = select(func.count()).where(jobs.c.state.not_in(over))
        while True:
            still, going = (self.gateway().read(partial(_number, query)) for query in (held, on))
            seconds = time.monotonic() - start
            if not still + going or seconds > SETTLED_S:
                return seconds, still
            time.sleep(0.1)

    def ran(self) -> dict[str, str]:
        """Operation id in the ledger of every block that was run, with its namespace."""
        lines = whole_lines(self.folder / "notes")
        found = {f"{job}-charge-{block}": namespace for job, block, namespace in lines}
        assert len(found) == len(lines), "a block was run twice under one charge"
        return found


@dataclass(frozen=True)
class _Served:
    """The application of one process; made there."""

    url: str
    key: str
    folder: Path
    port: int
    report: bytes

    def __call__(self) -> FastAPI:
        logging.disable(logging.CRITICAL)
        launcher = LocalLauncher(self.folder / "workspaces", ("NOTES",), STUB)
        scene = _Scene(self.url, self.key, self.folder, random.Random(), self.port)
        gateway = scene.gateway()
        app = create_app(gateway)
        services = Services.of(gateway, launcher=launcher, released=NothingReleased())
        object.__setattr__(services.jobs.ending, "released", _Reports(self.report))
        app.state.services = services
        threading.Thread(target=_ticks, args=(services,), daemon=True).start()
        return app


@dataclass
class _Client:
    """Somebody who asks for jobs, again under the same key until there is an answer."""

    scene: _Scene
    name: str

    def run(self) -> None:
        while True:
            waiting = self.ask("GET", f"/v1/jobs?state=queued&limit={WAITING}", None, None)
            if len(waiting["items"]) < WAITING:
                data = (self.scene.folder / "newest").read_text()
                body = {**BODY, "data": {"dataset": data}}
                self.ask("POST", "/v1/jobs", json.dumps(body), uuid.uuid4().hex)
            time.sleep(0.3)

    def ask(self, method: str, path: str, body: str | None, key: str | None) -> Any:
        assert self.scene.world is not None
        headers = {**self.scene.world.headers("olga", key), "Content-Type": "application/json"}
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.scene.port, timeout=10)
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                text = answer.read()
                connection.close()
                if answer.status < 500:
                    return json.loads(text)
            time.sleep(0.05)


class _Reports(NothingReleased):
    """Whatever a worker did, its report is the honest one for this plan."""

    def __init__(self, report: bytes) -> None:
        object.__setattr__(self, "report", report)

    def read(self, job_id: str, name: str) -> bytes | None:
        found: bytes = self.report  # type: ignore[attr-defined]
        return found

    def complete(self, connection: Connection, job: Row[Any]) -> dict[str, Any]:
        return {}


def _number(query: Select[tuple[int]], connection: Connection) -> int:
    return connection.execute(query).scalar_one()


def _ticks(services: Services) -> None:
    """More rounds than the dispatcher makes by itself, in the process that leads."""
    while True:
        with contextlib.suppress(Exception):
            if services.dispatcher.leader.leads:
                services.dispatcher.tick()
        time.sleep(TICK_S)


def _command(pid: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _steps(plan: dict[str, Any], count: int) -> Any:
    return dpsgd_event(
        sampling_probability=plan["batch_size"] / plan["n_units"],
        noise_multiplier=plan["privacy"]["noise_multiplier"],
        steps=count,
    )


def _report(plan: dict[str, Any]) -> bytes:
    event = _steps(plan, plan["steps"])
    report = PrivacyReport(
        guarantee="differential privacy",
        epsilon=epsilon(event, DELTA),
        delta=DELTA,
        privacy_unit="patient_id",
        n_units=UNITS,
        mechanism="DP-SGD",
        steps=plan["steps"],
        expected_batch_size=plan["batch_size"],
        dp_event=event_to_dict(event),
        base_model=BODY["model"],
        trainable_parameters=1,
        taciturn_version="0",
    )
    return report.model_dump_json().encode()


if __name__ == "__main__":
    answer(faults)

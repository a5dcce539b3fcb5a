"""Workers that run jobs, a server that reaps, and someone who kills them all at random moments.

A worker "runs" a block by noting it in a file of its own, after `charge` has returned and not
before: what stands there in the end is what really happened, whatever the ledger believes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError

from ledgers.herd import answer, kill, spawn
from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.accounting.filter import RenyiFilter, event_cost
from taciturn.errors import DatabaseUnavailableError, LedgerError
from taciturn.server.database import open_database
from taciturn.server.ledger import Ledger, SealKey, job_statements, namespaces, statement, verify
from taciturn.server.ledger.tables import entries

EPSILON, DELTA, NOISE, RATE = 3.0, 1e-6, 1.5, 0.05
BLOCKS, BLOCK_STEPS = 4, 5
LEASE_S, HOLD_S = 1.0, 3.0
WORKERS = 4
KILLS_PER_LOOK = 5
CRASH_SHARE = 0.02  # of the faults on PostgreSQL: a backend's `kill -9`, which restarts the server


def chaos(url: str, key: str, kills: int, seed: int, careless: bool = False) -> dict[str, Any]:
    """Kill `kills` times, then everything; restart, and look what is left.

    Args:
        careless: workers run a block before they charge it, to see that this is found.

    Returns:
        What was killed how often; `overspends`, `lost_charges` and `stuck`, which must be 0; how
        long after the restart the last reservation of a dead worker was released; and how much
        happened.
    """
    with tempfile.TemporaryDirectory() as folder:
        secret, choice = SealKey.from_text(key), random.Random(seed)
        scene = _LedgerScene(url, secret, Path(folder), choice, careless=careless)
        scene.open_namespace()
        try:
            killed = scene.run(kills)
        finally:
            scene.end()
        return {"killed": dict(killed), **scene.outcome()}


@dataclass
class Scene:
    """Database whose users are killed, and what is left in it."""

    url: str
    key: SealKey
    folder: Path
    random: random.Random
    processes: dict[str, int] = field(default_factory=dict)
    number: int = 0
    engine: Engine | None = None

    def connected(self) -> Engine:
        if self.engine is None:
            self.engine = open_database(self.url)
        return self.engine

    def backend(self, *, crash: bool) -> bool:
        """End a random connection of the others; False if there is none."""
        query = text(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'taciturn' "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        with contextlib.suppress(DBAPIError), self.connected().connect() as connection:
            found = list(connection.execute(query).scalars())
            if found and crash:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.random.choice(found), signal.SIGKILL)
                return True
            if found:
                victim = {"pid": self.random.choice(found)}
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), victim)
                return True
        return False

    def result(
        self, ran: dict[str, str], spent: list[float], cap: float, **counts: Any
    ) -> dict[str, Any]:
        """Return what is left: `overspends` and `lost_charges` must be 0.

        Args:
            ran: operation id of every block that was run, with its namespace.
            spent: epsilon of what was run, for each namespace.
        """
        engine = self.connected()
        with engine.connect() as connection:
            recorded = set(connection.execute(select(entries.c.operation_id)).scalars())
        statements = [statement(engine, self.key, name) for name in namespaces(engine)]
        verification = verify(engine, key=self.key)
        return {
            "overspends": sum(epsilon > cap for epsilon in spent)
            + sum(each.budget.used > 1 for each in statements),
            "lost_charges": len(ran.keys() - recorded),
            **counts,
            "namespaces": len(statements),
            "full": sum(each.budget.used > 0.8 for each in statements),
            "blocks_run": len(ran),
            "entries": verification.entries,
            "largest_epsilon": max(spent, default=0.0),
            "cap": cap,
            "problems": [str(problem) for problem in verification.problems],
        }


def whole_lines(folder: Path) -> list[list[str]]:
    """Return the words of every whole line in a folder's files."""
    return [
        line.split()
        for path in folder.iterdir()
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]


@dataclass
class _LedgerScene(Scene):
    careless: bool = False

    def run(self, kills: int) -> Counter[str]:
        for name in ("reaper", *(f"worker-{each}" for each in range(WORKERS))):
            self.start(name)
        killed: Counter[str] = Counter()
        while killed.total() < kills:
            time.sleep(self.random.uniform(0, 0.1))
            killed[self.fault()] += 1
            if killed.total() % KILLS_PER_LOOK == 0 and self.is_full():
                self.open_namespace()
        return killed

    def start(self, name: str) -> None:
        self.number += 1
        work: Callable[[], None] = (
            _Reaper(self.url, self.key).run
            if name == "reaper"
            else _Worker(
                self.url, self.key, self.folder, f"{name}-{self.number}", self.careless
            ).run
        )
        if self.engine is not None:
            self.engine.dispose()  # no open connection is shared with a child
        self.processes[name] = spawn(work)

    def fault(self) -> str:
        """Kill something; what stopped is started again."""
        if self.url.startswith("postgresql"):
            draw = self.random.random()
            if draw < CRASH_SHARE and self.backend(crash=True):
                return "database backend (kill -9, server restarts)"
            if draw < 0.4 and self.backend(crash=False):
                return "database connection"
        name = self.random.choice(list(self.processes))
        kill(self.processes.pop(name))
        self.start(name)
        return "server" if name == "reaper" else "worker"

    def open_namespace(self) -> None:
        self.number += 1
        name = f"namespace-{self.number:06}"
        ledger = Ledger(self.connected(), self.key, patience_s=120)
        ledger.open_account(name, name, epsilon=EPSILON, delta=DELTA)

    def is_full(self) -> bool:
        """The namespace opened last has no room for another job; False where a database that has
        just been killed does not answer in time: there will be another look."""
        needed = RenyiFilter(EPSILON, DELTA).share(event_cost(_steps(BLOCKS * BLOCK_STEPS)))
        try:
            newest = namespaces(self.connected())[-1]
            return statement(self.connected(), self.key, newest).budget.used + needed > 1
        except DatabaseUnavailableError:
            return False

    def end(self) -> None:
        for pid in self.processes.values():
            kill(pid)

    def outcome(self) -> dict[str, Any]:
        engine = self.connected()
        seconds, stuck = self.settle(Ledger(engine, self.key, patience_s=120))
        ran = self.ran()
        spent = [
            epsilon(_steps(count * BLOCK_STEPS), DELTA) for count in Counter(ran.values()).values()
        ]
        statements = [job_statements(engine, self.key, name) for name in namespaces(engine)]
        counts = {"stuck": stuck, "seconds_to_release": seconds, "jobs": sum(map(len, statements))}
        return self.result(ran, spent, EPSILON, **counts)

    def settle(self, ledger: Ledger) -> tuple[float, int]:
        """Seconds after the restart until nobody's reservation is open, and how many still are."""
        start = time.monotonic()
        while True:
            ledger.reap()
            still = sum(
                len(job_statements(self.connected(), self.key, name, only_open=True))
                for name in namespaces(self.connected())
            )
            seconds = time.monotonic() - start
            if not still or seconds > 60:
                return seconds, still
            time.sleep(0.1)

    def ran(self) -> dict[str, str]:
        """Operation id of every block that was run, with its namespace."""
        lines = whole_lines(self.folder)
        found = dict(lines)
        assert len(found) == len(lines), "a block was run twice"
        return found


@dataclass
class _Reaper:
    url: str
    key: SealKey

    def run(self) -> None:
        ledger = Ledger(open_database(self.url), self.key, patience_s=120)
        while True:
            with contextlib.suppress(DatabaseUnavailableError):
                ledger.reap()
            time.sleep(0.1)


@dataclass
class _Worker:
    url: str
    key: SealKey
    folder: Path
    name: str
    careless: bool

    def run(self) -> None:
        engine = open_database(self.url)
        ledger = Ledger(engine, self.key, patience_s=120)
        choice = random.Random(self.name)
        note = os.open(self.folder / self.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        number = 0
        while True:
            number += 1
            with contextlib.suppress(LedgerError, DatabaseUnavailableError):
                namespace = choice.choice(namespaces(engine)[-2:])
                self.job(ledger, f"{self.name}-{number}", namespace, note, choice)

    def job(
        self, ledger: Ledger, job: str, namespace: str, note: int, choice: random.Random
    ) -> None:
        plan = _steps(BLOCKS * BLOCK_STEPS)
        ledger.reserve(
            f"{job}-reserve", job, namespace=namespace, grants=(), event=plan, hold_s=HOLD_S
        )
        token = ledger.acquire(f"{job}-acquire", job, worker=self.name, lease_s=LEASE_S).token
        for block in range(choice.randint(1, BLOCKS)):
            operation = f"{job}-block-{block}"
            if not self.careless:
                ledger.charge(operation, job, token, _steps(BLOCK_STEPS))
            os.write(note, f"{operation} {namespace}\n".encode())
            if self.careless:
                time.sleep(0.05)
                ledger.charge(operation, job, token, _steps(BLOCK_STEPS))
        ledger.commit(f"{job}-commit", job, token)


def _steps(count: int) -> Any:
    return dpsgd_event(sampling_probability=RATE, noise_multiplier=NOISE, steps=count)


if __name__ == "__main__":
    answer(chaos)

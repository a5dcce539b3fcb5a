"""Operation of the gateway, for whoever runs it: queue, workers, machines, backups, versions."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sqlalchemy import Select, func, select

from taciturn.server.context import Gateway
from taciturn.server.jobs.deferrals import Outage
from taciturn.server.jobs.warm_workers import WarmWorkers
from taciturn.server.launchers.base import Launcher, OutageError
from taciturn.server.schema.tables import job_events, jobs, users
from taciturn.server.schema.versions import revisions
from taciturn.server.timestamps import moment
from taciturn.wire.events import JOB_EVENT, NodeEvent
from taciturn.wire.jobs import JobKind, JobState

_DAY_MS = 86_400_000
COST_DAYS = 30
_MOST_EVENTS = 5000
_MOST_FILES = 10_000
_WITH_WORKER = (JobState.PROVISIONING.value, JobState.RUNNING.value)
_UNFINISHED = tuple(state.value for state in JobState if not state.over)
_PACKAGES = ("torch", "transformers", "kubernetes", "psycopg")


@dataclass(frozen=True, slots=True)
class Worker:
    """A job that has a worker, or gets one.

    Attributes:
        silent: its worker has not said for too long that it lives.
    """

    job: str
    kind: JobKind
    state: JobState
    requester: str
    attempt: int
    handle: str
    since: datetime
    silent: bool


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs that are not over, by their state, and the places for them.

    Attributes:
        waiting_since: when the oldest job of the queue was asked for.
        warm: workers that keep a model in memory and wait for a request, at this process.
        outage_since: since when the launcher has not answered; None while it does.
    """

    launcher: str
    places: int
    queued: int
    provisioning: int
    running: int
    awaiting_approval: int
    waiting_since: datetime | None
    warm: int
    outage_since: datetime | None


@dataclass(frozen=True, slots=True)
class Machines:
    """Workers that the launcher knows to live, and what machines have cost.

    Attributes:
        alive: names of workers; None where the launcher does not answer.
        costs: sum over the last 30 days by currency; empty where machines have no price.
    """

    alive: tuple[str, ...] | None
    costs: dict[str, float]


@dataclass(frozen=True, slots=True)
class Backup:
    """The newest backup that is known of.

    Attributes:
        text: what is known, and what to do where it is not enough.
        old: it is older than it may be, or there is none.
    """

    at: datetime | None
    text: str
    old: bool


@dataclass(frozen=True, slots=True)
class Operations:
    """Looks at all of it; changes nothing."""

    gateway: Gateway
    launcher: Launcher
    outage: Outage
    warm_workers: WarmWorkers

    def load(self) -> Load:
        """Return how much there is to do, and whether it can be done."""
        query: Select[Any] = (
            select(
                jobs.c.state,
                func.count().label("n"),
                func.min(jobs.c.created_at_ms).label("since_ms"),
            )
            .where(jobs.c.state.in_(_UNFINISHED))
            .group_by(jobs.c.state)
        )
        rows = {row.state: (row.n, row.since_ms) for row in self.gateway.rows(query)}

        def count(state: JobState) -> int:
            return int(rows.get(state.value, (0, None))[0])

        oldest_ms = rows.get(JobState.QUEUED.value, (0, None))[1]
        settings, since_ms = self.gateway.settings, self.outage.since_ms
        return Load(
            launcher=settings.launcher,
            places=settings.worker_count,
            queued=count(JobState.QUEUED),
            provisioning=count(JobState.PROVISIONING),
            running=count(JobState.RUNNING),
            awaiting_approval=count(JobState.AWAITING_APPROVAL),
            waiting_since=None if oldest_ms is None else moment(oldest_ms),
            warm=self.warm_workers.waiting,
            outage_since=None if since_ms is None else moment(since_ms),
        )

    def workers(self, limit: int = 50) -> tuple[Worker, ...]:
        """Return the jobs that have a worker or get one, the longest first."""
        now_ms = self.gateway.now_ms()
        query = (
            select(jobs, users.c.name.label("requester"))
            .join(users, users.c.id == jobs.c.requester_id)
            .where(jobs.c.state.in_(_WITH_WORKER))
            .order_by(jobs.c.started_at_ms, jobs.c.id)
            .limit(limit)
        )
        return tuple(_worker(row, now_ms) for row in self.gateway.rows(query))

    def machines(self) -> Machines:
        """Ask the launcher for its workers, which may take a moment, and add up what machines have
        cost."""
        try:
            alive: tuple[str, ...] | None = self.launcher.alive()
        except OutageError:
            alive = None
        return Machines(alive, self._costs())

    def _costs(self) -> dict[str, float]:
        since_ms = self.gateway.now_ms() - COST_DAYS * _DAY_MS
        query = (
            select(job_events.c.data)
            .where(
                job_events.c.visible_at_ms > since_ms,
                job_events.c.data.startswith('{"type":"node"'),
                job_events.c.data.contains('"node_seconds"'),
            )
            .limit(_MOST_EVENTS)
        )
        costs: dict[str, float] = {}
        for row in self.gateway.rows(query):
            event = JOB_EVENT.validate_json(row.data)
            use = event.use if isinstance(event, NodeEvent) else None
            if use is not None and use.cost is not None:
                currency = use.currency or ""
                costs[currency] = costs.get(currency, 0.0) + use.cost
        return costs

    def backup(self) -> Backup:
        """Return what the file or folder of the settings says of backups."""
        settings, now = self.gateway.settings, moment(self.gateway.now_ms())
        path = settings.backup_file
        if path is None:
            return Backup(
                None,
                "TACITURN_BACKUP_FILE is not set: name the file that your backup job touches, or "
                "the folder where it leaves backups, to see here how old the newest is",
                True,
            )
        at = _newest(path)
        if at is None:
            return Backup(None, f"{path} is not there, empty or not readable: no backup yet", True)
        old = now - at > timedelta(hours=settings.backup_hours)
        limit = f"TACITURN_BACKUP_HOURS allows {settings.backup_hours:g} h"
        return Backup(at, f"{limit}; see whether the backup job still runs" if old else limit, old)

    def versions(self) -> dict[str, str]:
        """Return versions of the gateway, what it runs on, and its database's tables."""
        engine = self.gateway.engine
        current, newest = revisions(engine)
        facts = {
            "taciturn": _version("taciturn") or "a source tree",
            "Python": platform.python_version(),
            "Database": engine.dialect.name,
            "Tables": f"{current or 'none'}, of {newest}",
        }
        for name in _PACKAGES:
            facts[name] = _version(name) or "not installed"
        return facts


def _worker(row: Any, now_ms: int) -> Worker:
    late = row.lease_until_ms is not None and row.lease_until_ms < now_ms
    return Worker(
        job=row.id,
        kind=row.kind,
        state=row.state,
        requester=row.requester,
        attempt=row.attempt,
        handle=row.handle or "",
        since=moment(row.started_at_ms or row.created_at_ms),
        silent=late and row.state == JobState.RUNNING,
    )


def _newest(path: Path) -> datetime | None:
    """Return the time of a file, or of the newest entry of a folder; None where there is none."""
    try:
        if not path.is_dir():
            return moment(round(path.stat().st_mtime * 1000))
        entries = (entry for _, entry in zip(range(_MOST_FILES), path.iterdir(), strict=False))
        times = [entry.stat().st_mtime for entry in entries]
    except OSError:
        return None
    return moment(round(max(times) * 1000)) if times else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Gives queued jobs to workers, and finds those whose worker is gone.

All that it knows is in the database and with the launcher, so it may be killed at any moment: the
next tick of the next gateway goes on. What keeps a worker from being started twice is written
before it is started (attempt, handle, token); what keeps a slow one from going on is its token.

One process of those that share a database dispatches (`leader.py`): a launcher knows its own
workers only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select, update

from taciturn.errors import LedgerError
from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.jobs.completion import Completion, End
from taciturn.server.jobs.deferrals import Deferrals, Outage
from taciturn.server.jobs.leader import Leader
from taciturn.server.jobs.leases import Leases
from taciturn.server.jobs.states import States, job_row
from taciturn.server.jobs.submission import Jobs
from taciturn.server.launchers.base import (
    LaterError,
    Launcher,
    LaunchError,
    Order,
    OutageError,
    WorkerState,
    handle_of,
)
from taciturn.server.ledger.tables import jobs as ledger_jobs
from taciturn.server.notifications.outbox import announce
from taciturn.server.schema.tables import jobs, models, policies
from taciturn.wire.datasets import PolicyTerms
from taciturn.wire.events import FailureCode, NodeEvent
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.notifications import NotificationKind
from taciturn.wire.worker import NextJob

log = logging.getLogger("taciturn.server.jobs")

ATTEMPTS = 3
_PATIENCE_MS = 10_000  # before an unfinished submission counts as left behind by a crash
_WARM_MS = 1500  # a warm worker looks within a second, also where a notification is lost
_SILENT_LEASES = 4  # so many leases without a sign of life, and a live process counts as hung
_WITH_WORKER = (JobState.PROVISIONING.value, JobState.RUNNING.value)
_OVER = tuple(state.value for state in JobState if state.over)
_TOLD_MS = 60_000
"""How long the launcher is away before administrators are told."""
_LAUNCHER = "the launcher"  # among what rests; the others are ids of jobs


@dataclass
class Dispatcher:
    """Does everything that happens to jobs without anybody asking."""

    gateway: Gateway
    jobs: Jobs
    states: States
    leases: Leases
    ending: Completion
    directory: Directory
    launcher: Launcher
    url: Callable[[], str]
    leader: Leader
    outage: Outage
    _started: bool = field(default=False)
    _looked_at_ms: int = field(default=0)
    _deferrals: Deferrals = field(init=False)
    _reported: set[str] = field(default_factory=set)
    _told_since_ms: int | None = field(default=None)

    def __post_init__(self) -> None:
        self._deferrals = Deferrals(self.gateway.now_ms)

    def turn(self) -> None:
        """One round, as often as one likes, if this gateway is the one that dispatches. Workers
        are looked for once in a tick of the public clock: when one dies may depend on the rows that
        it has read."""
        if not self.leader.lead():
            self._started = False
            return
        tick_ms = self.states.events.tick_ms()
        looks, self._looked_at_ms = tick_ms != self._looked_at_ms, tick_ms
        self.tick(looks)

    def tick(self, looks: bool = True) -> None:
        """One round; what fails in one job does not keep the others waiting.

        Args:
            looks: whether what has become of workers is acted on.
        """
        if not self._started:
            self._for_each(self._rows(jobs.c.state.in_(_WITH_WORKER)), self._vouch)
            self._started = True
        self.jobs.approvals.expire()
        before_ms = self.gateway.now_ms() - _PATIENCE_MS
        self._for_each(self.jobs.unfinished(before_ms), self.jobs.advance)
        self._for_each(self._ids(_intended()), self.ending.settle)
        if looks:
            self._for_each(self._rows(jobs.c.state.in_(_WITH_WORKER)), self._watch)
        self._for_each(self._rows(_waits() & (jobs.c.attempt > 0)), self.leases.hold)
        self.gateway.ledger.reap()
        self._for_each(self._rows(_reaped()), self._ran_out)
        self._for_each(self._ids(_orphaned()), self.ending.close)
        self._for_each(self._next(), self._provision)
        if looks and not self._deferrals.rests(_LAUNCHER):
            self._for_each((None,), self._tidy)

    def claim(self, job_id: str, handle: str | None = None) -> str | None:
        """Take a job out of the queue for a worker; returns that worker's token for it.

        Args:
            handle: of a worker that lives and is free; by default a new one is meant.

        Returns:
            None where somebody else was faster.
        """
        job = self.gateway.read(lambda connection: job_row(connection, job_id))
        if job is None:
            return None
        attempt = job.attempt + 1
        new_token = self.directory.create_worker_token(job_id, attempt)

        def work(connection: Connection) -> bool:
            row = job_row(connection, job_id)
            if row is None or row.state != JobState.QUEUED or row.outcome is not None:
                return False
            if row.attempt + 1 != attempt:
                return False
            values = {
                "attempt": attempt,
                "handle": handle or handle_of(job_id, attempt),
                "worker_token": new_token.id,
                "started_at_ms": row.started_at_ms or self.gateway.now_ms(),
                "lease_until_ms": self._later_ms(self.gateway.settings.provision_s),
            }
            return self.states.move(connection, job_id, JobState.PROVISIONING, values)

        return new_token.text if self.gateway.write(work) else None

    def claim_sample(self, model_id: str, handle: str | None) -> NextJob | None:
        """Give the oldest queued sample of a model to a worker that has it in memory, without a
        place of its own; in any process."""
        sample = (jobs.c.kind == JobKind.SAMPLE) & (jobs.c.model_id == model_id)
        for job_id in self._ids(_waits() & sample):
            token = self.claim(job_id, handle)
            if token is not None:
                return NextJob(job=job_id, token=token)
        return None

    def _for_each(self, items: Iterable[Any], work: Callable[[Any], object]) -> None:
        for item in items:
            try:
                work(item)
            except LedgerError as error:
                # The ledger's words are about budgets and names, never about rows.
                log.error("a job is left for the next round", extra={"reason": str(error)})
            except OutageError as error:
                self._away(error)
            except Exception:
                log.exception("a job is left for the next round")

    def _vouch(self, row: Row[Any]) -> None:
        """After a restart: who lives could not say so meanwhile. Where nobody can see who does, all
        may."""
        lives = self._status(row) in (WorkerState.RUNNING, None)
        if lives and row.state == JobState.RUNNING:
            self.leases.vouch(row)

    def _watch(self, row: Row[Any]) -> None:
        now_ms = self.gateway.now_ms()
        if now_ms >= self._time_over_ms(row):
            self.ending.end(row.id, End.failed(FailureCode.TIME))
            return
        if row.cancel and now_ms >= row.updated_at_ms + 1000 * self.gateway.settings.stop_s:
            self.ending.end(row.id, End(state=JobState.CANCELLED))
            return
        worker_state = self._status(row)
        provisioning = row.state == JobState.PROVISIONING
        if worker_state is None:
            self._unseen(row, now_ms)
        elif worker_state is WorkerState.ABSENT and provisioning:
            self._relaunch(row)
        elif worker_state is WorkerState.GIVEN_UP and provisioning:
            self.ending.end(row.id, End.failed(FailureCode.EXPIRED))
        elif worker_state is not WorkerState.RUNNING:
            self._replace(row)
        elif self._is_late(row, now_ms):
            self._late(row, now_ms)

    def _status(self, row: Row[Any]) -> WorkerState | None:
        """State of a worker; None while the launcher does not answer."""
        if self._deferrals.rests(_LAUNCHER):
            return None
        try:
            worker_state = self.launcher.status(row.handle)
        except OutageError as error:
            self._away(error)
            return None
        self._answers()
        return worker_state

    def _away(self, error: OutageError) -> None:
        if self._deferrals.failed(_LAUNCHER):
            log.error("the launcher does not answer", extra={"reason": str(error)})
        self.outage.say(True)
        since_ms = self._deferrals.since_ms(_LAUNCHER)
        if since_ms is not None and self.gateway.now_ms() >= since_ms + _TOLD_MS:
            self._tell_away(since_ms)

    def _tell_away(self, since_ms: int) -> None:
        """Have administrators told of an outage, once, where it lasts."""
        if since_ms == self._told_since_ms:
            return
        self.gateway.write(
            lambda connection: announce(
                connection,
                NotificationKind.LAUNCHER_AWAY,
                f"launcher:{since_ms}",
                {"since_ms": since_ms},
                now_ms=self.gateway.now_ms(),
            )
        )
        self._told_since_ms = since_ms

    def _answers(self) -> None:
        if self._deferrals.succeeded(_LAUNCHER):
            log.warning("the launcher answers again")
            self.outage.say(False)
            self._reported.clear()

    def _unseen(self, row: Row[Any], now_ms: int) -> None:
        """Nobody can say what has become of a worker: neither it nor its job is given up for that,
        unless it takes for ever."""
        waited_s = (now_ms - row.updated_at_ms) / 1000
        limit_s = self.gateway.settings.outage_s
        over = min(waited_s, self._deferrals.lasts_s(_LAUNCHER)) > limit_s
        if row.state == JobState.PROVISIONING:
            if over:
                self.ending.end(row.id, End.failed(FailureCode.OUTAGE))
            else:
                self._say(row, OutageError())
        elif not over and self._is_late(row, now_ms):
            self.leases.spare(row)

    def _say(self, row: Row[Any], why: LaterError) -> None:
        """Tell the job what it waits for, once."""
        if row.id in self._reported:
            return
        self._reported.add(row.id)
        hours = self.gateway.settings.outage_s / 3600
        text = f"{why.text}; it is tried again, for up to {hours:g} h"
        event = NodeEvent(code=why.code, text=text)
        self.gateway.write(lambda connection: self.states.events.append(connection, row.id, event))

    def _is_late(self, row: Row[Any], now_ms: int) -> bool:
        """True if a lease has run out, or will have before workers are looked for again: the ledger
        closes what nobody holds in between."""
        soon_ms = now_ms + round(2000 * self.gateway.settings.tick_s)
        return row.lease_until_ms is not None and soon_ms > row.lease_until_ms

    def _time_over_ms(self, row: Row[Any]) -> int:
        """Time at which the job has had all its time, in milliseconds since 1970: the gateway's
        limit, or less by the policy of its data."""
        allowed_s = self.gateway.settings.job_s
        query = select(policies.c.terms).where(policies.c.namespace == row.namespace)
        terms = self.gateway.read(lambda connection: connection.scalar(query))
        if terms is not None:
            hours = PolicyTerms.model_validate_json(terms).job_hours
            allowed_s = min(allowed_s, math.inf if hours is None else 3600 * hours)
        began_ms = row.created_at_ms if row.started_at_ms is None else row.started_at_ms
        return int(began_ms + 1000 * allowed_s)

    def _late(self, row: Row[Any], now_ms: int) -> None:
        """A worker that lives and says nothing: spared for a while, then replaced."""
        silent_ms = now_ms - row.lease_until_ms
        running = row.state == JobState.RUNNING
        if not running and silent_ms <= 0:
            return
        if not running and self.launcher.waiting(row.handle):
            return  # its plan is held for longer than a machine may take
        if running and silent_ms < 1000 * self.gateway.settings.lease_s * _SILENT_LEASES:
            self.leases.spare(row)
            return
        self.launcher.stop(row.handle, 0)
        self._replace(row)

    def _replace(self, row: Row[Any]) -> None:
        """Another worker for a job whose own is gone; or the end, after too many."""
        log.warning("a worker is gone", extra={"job": row.id, "attempt": row.attempt})
        if row.cancel:
            self.ending.end(row.id, End(state=JobState.CANCELLED))
            return
        if row.attempt >= ATTEMPTS:
            self._end_as_lost(row.id)
            return

        def work(connection: Connection) -> bool:
            now = job_row(connection, row.id)
            same = now is not None and (now.attempt, now.lease) == (row.attempt, row.lease)
            if now is None or not same or now.outcome is not None or now.state != row.state:
                return False  # it has just said how it ended
            values = {"lease": row.lease + 1, "lease_operation": None, "worker_token": None}
            return self.states.move(connection, row.id, JobState.QUEUED, values)

        if self.gateway.write(work):
            self.leases.hold(row)

    def _end_as_lost(self, job_id: str) -> None:
        self.ending.end(job_id, End.failed(FailureCode.LOST))

    def _ran_out(self, row: Row[Any]) -> None:
        """End a job whose reservation ran out: no worker has come, or none any more."""
        code = FailureCode.LOST if row.attempt else FailureCode.EXPIRED
        self.ending.end(row.id, End.failed(code))

    def _provision(self, job_id: str) -> None:
        if self._deferrals.rests(_LAUNCHER):
            return
        token = self.claim(job_id)
        row = self.gateway.read(lambda connection: job_row(connection, job_id))
        if token is not None and row is not None:
            self._launch(row, token)

    def _relaunch(self, row: Row[Any]) -> None:
        """The gateway stopped between writing a worker down and starting it, or it could not be
        started then."""
        if self._deferrals.rests(row.id):
            return
        if row.handle != handle_of(row.id, row.attempt):
            self._replace(row)  # it was meant for a worker that had another job, and is gone
            return
        new_token = self.directory.create_worker_token(row.id, row.attempt)
        same = (jobs.c.id == row.id) & (jobs.c.attempt == row.attempt)
        waiting = same & (jobs.c.state == JobState.PROVISIONING)
        until_ms = self._later_ms(self.gateway.settings.provision_s)
        values = {"worker_token": new_token.id, "lease_until_ms": until_ms}
        change = update(jobs).where(waiting).values(**values)
        if self.gateway.write(lambda connection: connection.execute(change).rowcount):
            self._launch(row, new_token.text)

    def _launch(self, row: Row[Any], token: str) -> None:
        environment = {
            "TACITURN_GATEWAY_URL": self.url(),
            "TACITURN_JOB": row.id,
            "TACITURN_JOB_TOKEN": token,
        }
        settings = self.gateway.settings
        if settings.signing_key is not None and row.kind == JobKind.FIT:
            environment["TACITURN_SIGNING_KEY"] = settings.signing_key
        try:
            self.launcher.launch(Order(row.id, row.attempt, environment))
        except LaterError as error:
            self._wait(row, error)
        except LaunchError:
            log.exception("no worker could be started", extra={"job": row.id})
            self.ending.end(row.id, End.failed(FailureCode.LAUNCH))
            self._deferrals.succeeded(row.id)
        else:
            self._answers()
            self._deferrals.succeeded(row.id)
            self._reported.discard(row.id)

    def _wait(self, row: Row[Any], why: LaterError) -> None:
        """Leave the worker to be launched again, when it is found to be absent."""
        if isinstance(why, OutageError):
            self._away(why)
        else:
            self._answers()
        if self._deferrals.failed(row.id):
            log.warning("a worker waits", extra={"job": row.id, "reason": str(why)})
        if self._deferrals.lasts_s(row.id) > self.gateway.settings.outage_s:
            self.ending.end(row.id, End.failed(FailureCode.OUTAGE))
            self._deferrals.succeeded(row.id)
        else:
            self._say(row, why)

    def _next(self) -> tuple[str, ...]:
        """The oldest jobs of the queue, as many as there is room for workers. A look at a new
        dataset, which needs no model, has a place of its own: its owner waits for it."""
        room = self.gateway.settings.worker_count
        looks = jobs.c.kind == JobKind.PROBE
        warm = self._left_to_warm_workers()

        def of(connection: Connection, kind: ColumnElement[bool], room: int) -> list[str]:
            counted = select(func.count()).where(jobs.c.state.in_(_WITH_WORKER), kind)
            n_free = room - connection.execute(counted).scalar_one()
            query = (
                select(jobs.c.id)
                .where(_waits(), kind, ~warm)
                .order_by(jobs.c.created_at_ms, jobs.c.id)
                .limit(max(0, n_free))
            )
            return list(connection.execute(query).scalars())

        return self.gateway.read(
            lambda connection: (*of(connection, looks, 1), *of(connection, ~looks, room))
        )

    def _left_to_warm_workers(self) -> ColumnElement[bool]:
        """Samples that were queued just now, of models that a worker may have in memory, in
        whichever process it waits."""
        idle_ms = self._later_ms(-self.gateway.settings.idle_worker_s)
        earlier = jobs.alias()
        lately = select(earlier.c.id).where(
            earlier.c.model_id == jobs.c.model_id,
            earlier.c.kind == JobKind.SAMPLE,
            earlier.c.state == JobState.SUCCEEDED,
            earlier.c.updated_at_ms > idle_ms,
        )
        queued = jobs.c.updated_at_ms > self.gateway.now_ms() - _WARM_MS
        return (jobs.c.kind == JobKind.SAMPLE) & queued & lately.exists()

    def _tidy(self, _: None = None) -> None:
        """Stop workers that have no job any more, and remove what those of jobs that are over have
        left."""
        for handle in self.launcher.alive():
            if not self._is_wanted(handle):
                self.launcher.stop(handle, self.gateway.settings.stop_s)
        for job_id in self.launcher.leftover_jobs():
            if not self.gateway.read(partial(_leaves_something, job_id=job_id)):
                self.launcher.forget(job_id)
        self._answers()

    def _is_wanted(self, handle: str) -> bool:
        """True if a worker has a job, or has just had one: it may still be ending, and one that
        has sampled may be asked to do so again."""
        settings = self.gateway.settings
        is_recent = jobs.c.updated_at_ms > self._later_ms(-settings.stop_s)
        idle = jobs.c.updated_at_ms > self._later_ms(-settings.stop_s - settings.idle_worker_s)
        lingers = (jobs.c.state == JobState.SUCCEEDED) & (jobs.c.kind == JobKind.SAMPLE) & idle
        ending = jobs.c.state.in_((JobState.SUCCEEDED, JobState.FAILED)) & is_recent
        is_in_use = jobs.c.state.in_(_WITH_WORKER) | lingers | ending
        query = select(jobs.c.id).where(jobs.c.handle == handle, is_in_use).limit(1)
        return self.gateway.read(lambda connection: connection.execute(query).first()) is not None

    def _ids(self, where: ColumnElement[bool]) -> list[str]:
        query = select(jobs.c.id).where(where).order_by(jobs.c.created_at_ms)
        return self.gateway.read(lambda connection: list(connection.execute(query).scalars()))

    def _rows(self, where: ColumnElement[bool]) -> list[Row[Any]]:
        query = select(jobs).where(where).order_by(jobs.c.created_at_ms)
        return self.gateway.read(lambda connection: list(connection.execute(query)))

    def _later_ms(self, seconds: float) -> int:
        return self.gateway.now_ms() + round(seconds * 1000)


def _waits() -> ColumnElement[bool]:
    """Jobs of the queue."""
    return (jobs.c.state == JobState.QUEUED) & jobs.c.outcome.is_(None)


def _intended() -> ColumnElement[bool]:
    """Jobs whose end was written down and not reached."""
    return jobs.c.outcome.is_not(None) & jobs.c.state.not_in(_OVER)


def _reaped() -> ColumnElement[bool]:
    """Jobs that are still to run, and whose reservation is closed: it had run out."""
    closed_jobs = select(ledger_jobs.c.job).where(ledger_jobs.c.status != "open")
    on = jobs.c.state.in_((JobState.QUEUED.value, *_WITH_WORKER)) & jobs.c.outcome.is_(None)
    return on & jobs.c.id.in_(closed_jobs)


def _orphaned() -> ColumnElement[bool]:
    """Jobs that are over, and whose reservation is open: a crash came between the two."""
    still = select(ledger_jobs.c.job).where(ledger_jobs.c.status == "open")
    return jobs.c.state.in_(_OVER) & jobs.c.id.in_(still)


def _leaves_something(connection: Connection, job_id: str) -> bool:
    """True if a job's workspace is needed: it is not over, or its model is there, whose audits need
    to know who the canaries were. Of a fit that is over, its worker has removed all else."""
    row = job_row(connection, job_id)
    if row is None:
        return False
    kept_models = select(models.c.id).where(models.c.job_id == job_id)
    return not JobState(row.state).over or connection.execute(kept_models).first() is not None

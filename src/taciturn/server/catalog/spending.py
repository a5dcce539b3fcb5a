"""Spending: how a budget went over time, by whom, what it comes to together, and until when.

All of it follows from the ledger's entries. A namespace's chain only grows, so each process keeps
what it has added up so far and reads what is new. Times are those of the entries, to six hours.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from dp_accounting.dp_event import DpEvent
from sqlalchemy import Connection, Row, exists, select

from taciturn.accounting.compose import epsilon, renyi_bound
from taciturn.accounting.filter import RenyiCost
from taciturn.accounting.privacy_loss import SampledGaussian
from taciturn.server import ledger
from taciturn.server.catalog.policies import Policies
from taciturn.server.context import Gateway
from taciturn.server.identity.namespace_access import no_namespace, sees_all
from taciturn.server.identity.principal import Principal
from taciturn.server.ledger.entry import (
    Capped,
    Charged,
    Closed,
    Entry,
    Extended,
    Opened,
    Reserved,
)
from taciturn.server.ledger.rules import priced_steps
from taciturn.server.ledger.state import Balance, composed
from taciturn.server.ledger.tables import jobs as ledger_jobs
from taciturn.server.paging import Paging, newest_first, position_of
from taciturn.server.schema.tables import jobs, users
from taciturn.server.timestamps import moment
from taciturn.wire.values import Page

_DAY_MS = 86_400_000
_BUCKET_MS = _DAY_MS // 4
_WINDOW_MS, _LEAST_MS = 28 * _DAY_MS, 7 * _DAY_MS
_FURTHEST_MS = 3650 * _DAY_MS
_AT_ONCE = 2_000
_BOOKS = 64
_MOST_POINTS = 120
_FEW_STEPS = 12
_DELTAS = (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


@dataclass(frozen=True, slots=True)
class SpendingPoint:
    """Shares of the budget at some time: spent, and spent or held."""

    at_ms: int
    charged: float
    used: float


@dataclass(frozen=True, slots=True)
class BudgetChange:
    """A budget that was opened, or changed."""

    at_ms: int
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class PersonSpending:
    """Shares of a namespace's budget that one person's jobs took, as if they were the only ones.

    Attributes:
        reserved: share that they hold beside what they have charged.
    """

    name: str | None
    jobs: int
    charged: float
    reserved: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """The day on which the budget would be spent if people went on as they did.

    Attributes:
        since: when the span begins that the pace is taken from.
        gained: share that was spent in it.
        at: None if that is further away than ten years.
    """

    since: datetime
    gained: float
    at: datetime | None


@dataclass(frozen=True, slots=True)
class BudgetHistory:
    """Course of a namespace's budget.

    Attributes:
        read, entries: entries that were added up, and that there are.
        forecast: None where there is too little history, or nothing left.
    """

    points: tuple[SpendingPoint, ...]
    changes: tuple[BudgetChange, ...]
    people: tuple[PersonSpending, ...]
    forecast: Forecast | None
    read: int
    entries: int


@dataclass(frozen=True, slots=True)
class JobSpending:
    """Shares of the budget that one job took, as if it were the only one."""

    job: str
    kind: str
    dataset: str | None
    requester: str
    created_at: datetime
    status: str
    grants: tuple[str, ...]
    charged: float
    reserved: float


@dataclass(frozen=True, slots=True)
class SpentCurve:
    """Epsilon of everything that was charged, composed as it was run, at several deltas.

    Attributes:
        exact: by privacy loss distributions; else by a Rényi bound, which is higher.
        kinds: distinct kinds of steps that were composed.
    """

    deltas: tuple[float, ...]
    epsilons: tuple[float, ...]
    exact: bool
    kinds: int


@dataclass(slots=True)
class _Person:
    charged: RenyiCost = field(default_factory=RenyiCost.nothing)
    reserved: RenyiCost = field(default_factory=RenyiCost.nothing)
    jobs: int = 0


@dataclass(slots=True)
class _Book:
    """Sums over a namespace's entries so far; read and changed under `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    sequence: int = 0
    balance: Balance | None = None
    last_ms: int = 0
    points: list[SpendingPoint] = field(default_factory=list)
    changes: list[BudgetChange] = field(default_factory=list)
    people: dict[str | None, _Person] = field(default_factory=dict)
    requesters: dict[str, str] = field(default_factory=dict)
    steps: Counter[SampledGaussian] = field(default_factory=Counter)

    def add(self, entry: Entry) -> None:
        """Add an entry up."""
        if entry.recorded_at_ms // _BUCKET_MS != self.last_ms // _BUCKET_MS:
            self._keep()
        self.last_ms, self.sequence = entry.recorded_at_ms, entry.sequence
        match entry.details:
            case Opened() | Capped() as terms:
                self._keep()
                before = self.balance or Balance(terms.epsilon, terms.delta)
                self.balance = Balance(terms.epsilon, terms.delta, before.charged, before.reserved)
                self.changes.append(BudgetChange(entry.recorded_at_ms, terms.epsilon, terms.delta))
            case Reserved() | Extended() as plan:
                cost, person = RenyiCost(plan.cost), self._person(plan.job)
                person.jobs += isinstance(plan, Reserved)
                person.reserved += cost
                self.balance = self._balance.hold(cost)
            case Charged() as block:
                cost, person = RenyiCost(block.cost), self._person(block.job)
                person.reserved, person.charged = person.reserved - cost, person.charged + cost
                self.balance = self._balance.charge(cost)
                self.steps.update(priced_steps(block.event))
            case Closed() as end:
                cost, person = RenyiCost(end.freed), self._person(end.job)
                person.reserved -= cost
                self.balance = self._balance.free(cost)

    def shown_points(self, now_ms: int) -> tuple[SpendingPoint, ...]:
        """Points up to now, few enough for a chart."""
        self._keep()
        if not self.points:
            return ()
        every = math.ceil(len(self.points) / _MOST_POINTS)
        thinned = [*self.points[::-1][::every][::-1]]
        last = thinned[-1]
        return (*thinned, SpendingPoint(max(now_ms, last.at_ms), last.charged, last.used))

    def _keep(self) -> None:
        """Keep where the budget stands as a point, in place of one for the same entry."""
        if self.balance is None:
            return
        point = SpendingPoint(
            self.last_ms,
            self.balance.share(self.balance.charged),
            self.balance.share(self.balance.used),
        )
        if self.points and self.points[-1].at_ms == point.at_ms:
            self.points.pop()
        self.points.append(point)

    @property
    def _balance(self) -> Balance:
        assert self.balance is not None, "a chain begins with the budget"
        return self.balance

    def _person(self, job: str) -> _Person:
        return self.people.setdefault(self.requesters.get(job), _Person())


@dataclass(frozen=True, slots=True)
class Spending:
    """Shows owners and auditors where a budget went."""

    gateway: Gateway
    policies: Policies
    _books: OrderedDict[str, _Book] = field(default_factory=OrderedDict, init=False, repr=False)
    _opening: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def history(self, namespace: str, caller: Principal) -> BudgetHistory:
        """The course of a budget; of a long chain a part at a time, to be asked for again.

        Raises ProblemError `not_found` to all but the namespace's owner and auditors.
        """
        entries = self._entries(namespace, caller)
        book = self._book(namespace)
        with book.lock:
            self._read(namespace, book)
            now_ms = self.gateway.now_ms()
            points = book.shown_points(now_ms)
            return BudgetHistory(
                points=points,
                changes=tuple(book.changes),
                people=_people(book),
                forecast=_forecast(book, now_ms),
                read=book.sequence,
                entries=max(entries, book.sequence),
            )

    def curve(self, namespace: str, caller: Principal) -> SpentCurve:
        """Epsilon at several deltas of all that was charged so far; raises as `history`."""
        self._entries(namespace, caller)
        book = self._book(namespace)
        with book.lock:
            self._read(namespace, book)
            steps = tuple(sorted(book.steps.items()))
            delta = 1e-6 if book.balance is None else book.balance.delta
        deltas = tuple(sorted({*_DELTAS, delta}))
        return SpentCurve(deltas, *_curve(steps, deltas), len(steps))

    def jobs(self, namespace: str, caller: Principal, paging: Paging) -> Page[JobSpending]:
        """The jobs that took something of a budget, newest first; raises as `history`."""
        has_reservation = exists().where(ledger_jobs.c.job == jobs.c.id)
        query = (
            select(jobs, users.c.name.label("requester"))
            .join(users, users.c.id == jobs.c.requester_id)
            .where(jobs.c.namespace == namespace, has_reservation)
        )

        def work(connection: Connection) -> Page[JobSpending]:
            self._check(connection, namespace, caller)
            rows = connection.execute(newest_first(query, jobs, paging)).all()
            statements = ledger.job_statements_within(
                connection, self.gateway.seal_key, namespace, [row.id for row in rows]
            )
            return paging.page(rows, lambda row: _job(row, statements), position_of)

        return self.gateway.read(work)

    def _check(self, connection: Connection, namespace: str, caller: Principal) -> None:
        policy = self.policies.visible(connection, namespace, caller)
        if not sees_all(caller, policy.owner_id):
            raise no_namespace(namespace)

    def _entries(self, namespace: str, caller: Principal) -> int:
        def work(connection: Connection) -> int:
            self._check(connection, namespace, caller)
            key = self.gateway.seal_key
            return ledger.statement_within(connection, key, namespace).entries

        return self.gateway.read(work)

    def _book(self, namespace: str) -> _Book:
        with self._opening:
            book = self._books.setdefault(namespace, _Book())
            self._books.move_to_end(namespace)
            while len(self._books) > _BOOKS:
                self._books.popitem(last=False)
            return book

    def _read(self, namespace: str, book: _Book) -> None:
        entries = ledger.entries(
            self.gateway.engine, namespace, after=book.sequence, limit=_AT_ONCE
        )
        names = [entry.details.job for entry in entries if isinstance(entry.details, Reserved)]
        book.requesters.update(self._requesters(names))
        for entry in entries:
            book.add(entry)

    def _requesters(self, names: Sequence[str]) -> dict[str, str]:
        if not names:
            return {}
        query = (
            select(jobs.c.id, users.c.name)
            .join(users, users.c.id == jobs.c.requester_id)
            .where(jobs.c.id.in_(names))
        )
        return {row.id: row.name for row in self.gateway.rows(query)}


def _people(book: _Book) -> tuple[PersonSpending, ...]:
    if book.balance is None:
        return ()
    balance = book.balance
    people = (
        PersonSpending(
            name,
            person.jobs,
            balance.share(person.charged),
            balance.held_share(person.charged, person.reserved),
        )
        for name, person in book.people.items()
    )
    return tuple(sorted(people, key=lambda person: -(person.charged + person.reserved)))


def _forecast(book: _Book, now_ms: int) -> Forecast | None:
    """The pace of the last 28 days, carried on; of less where the first step was paid for, or the
    budget was changed, since then, but of a week at least."""
    points = book.points
    first_ms = next((point.at_ms for point in points if point.charged > 0), None)
    if first_ms is None or points[-1].used >= 1:
        return None
    since_ms = max(first_ms, now_ms - _WINDOW_MS, *(change.at_ms for change in book.changes))
    if now_ms - since_ms < _LEAST_MS:
        return None
    earlier_shares = [point.charged for point in points if point.at_ms <= since_ms]
    gained = points[-1].charged - (0.0 if since_ms == first_ms else earlier_shares[-1])
    if gained <= 0:
        return None
    wait_ms = (1 - points[-1].used) / gained * (now_ms - since_ms)
    at = moment(round(now_ms + wait_ms)) if wait_ms < _FURTHEST_MS else None
    return Forecast(moment(since_ms), gained, at)


def _job(row: Row[Any], statements: Mapping[str, ledger.JobStatement]) -> JobSpending:
    statement = statements[row.id]
    return JobSpending(
        job=row.id,
        kind=row.kind,
        dataset=row.dataset,
        requester=row.requester,
        created_at=moment(row.created_at_ms),
        status=statement.status,
        grants=statement.grants,
        charged=statement.charged,
        reserved=statement.reserved,
    )


@lru_cache(maxsize=64)
def _curve(
    steps: tuple[tuple[SampledGaussian, int], ...], deltas: tuple[float, ...]
) -> tuple[tuple[float, ...], bool]:
    """Epsilons, and whether they are exact: many kinds of steps would take long."""
    if not steps:
        return (0.0,) * len(deltas), True
    event: DpEvent = composed(steps)
    exact = len(steps) <= _FEW_STEPS
    bound = epsilon if exact else renyi_bound
    return tuple(bound(event, delta) for delta in deltas), exact

"""Reading the ledger: what is left of a budget, what a job cost, whether a plan would fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from dp_accounting.dp_event import ComposedDpEvent, DpEvent
from sqlalchemy import Connection, Engine

from taciturn.accounting.compose import ACCOUNTANT, epsilon
from taciturn.accounting.filter import event_cost
from taciturn.errors import UnknownEntryError
from taciturn.server.database import transact
from taciturn.server.ledger.book import Book, Job, Purse, Status
from taciturn.server.ledger.entry import Entry
from taciturn.server.ledger.rules import the_account
from taciturn.server.ledger.seal import SealKey
from taciturn.server.ledger.store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BudgetStatement:
    """A budget for people to read; shares are those of `RenyiFilter.share`.

    Attributes:
        charged: share that is spent for good.
        taken: share that is spent or held by open jobs; a new job needs the rest.
    """

    epsilon: float
    delta: float
    charged: float
    taken: float


@dataclass(frozen=True, slots=True)
class JobStatement:
    """Where a job stands; its shares are those of its namespace's budget."""

    job: str
    status: Status
    grants: tuple[str, ...]
    worker: str
    lease_until: datetime
    charged: float
    held: float


@dataclass(frozen=True, slots=True)
class JobCost:
    """What a job takes, spent and held together: that of an open job does not change as it runs.

    Attributes:
        epsilon: of the steps that are charged, by themselves, at the namespace's delta.
        shares: per budget, as in Quote.
    """

    epsilon: float
    delta: float
    shares: Mapping[str | None, float]


@dataclass(frozen=True, slots=True)
class Statement:
    """A namespace's balances.

    Attributes:
        exceptions: releases without guarantee; the budget's promise is about all others.
    """

    namespace: str
    budget: BudgetStatement
    grants: Mapping[str, BudgetStatement]
    exceptions: int
    entries: int


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a job has cost by itself: epsilon of all charged steps, by privacy loss distributions.

    That is what its model's report and certificate say. It is not what the job took from the
    budget: that is in Rényi costs, which hold for adaptively chosen jobs too.
    """

    job: str
    namespace: str
    status: Status
    event: DpEvent
    epsilon: float
    delta: float
    accountant: str = ACCOUNTANT


@dataclass(frozen=True, slots=True)
class Together:
    """What all jobs of a namespace have cost together: epsilon of every step that was charged.

    It is what was run, composed as it stands. Where a job was chosen because of what an earlier one
    said, a bound that holds is that of a budget which was set beforehand.

    Attributes:
        jobs: how many have charged anything, over or not.
        exceptions: releases without guarantee, which epsilon is not about.
    """

    namespace: str
    epsilon: float
    delta: float
    jobs: int
    exceptions: int


@dataclass(frozen=True, slots=True)
class Quote:
    """Whether a plan would be let through now: what it takes of each budget.

    Attributes:
        fits: per budget; the namespace's own is under None, each grant under its holder.
    """

    admitted: bool
    needed: Mapping[str | None, float]
    taken: Mapping[str | None, float]
    fits: Mapping[str | None, bool]


def namespaces(engine: Engine) -> list[str]:
    """All namespaces, in the order in which they were opened."""
    return _read(engine, None, lambda store: store.namespaces())


def statement(
    engine: Engine, key: SealKey | None, namespace: str, *, settled: bool = False
) -> Statement:
    """A namespace as of now. Without a key, seals are not checked.

    Args:
        settled: what open jobs have charged counts as held until they are over. When a block of
            steps is charged depends on how long the one before it took, and so on rows.

    Raises:
        UnknownEntryError: it has no account.
        LedgerTamperedError: a row is not as it was sealed.
    """

    return _read(engine, key, lambda store: _statement(store, namespace, settled=settled))


def statement_within(
    connection: Connection, key: SealKey | None, namespace: str, *, settled: bool = False
) -> Statement:
    """As `statement`, in the caller's transaction."""
    return _statement(Store(connection, key), namespace, settled=settled)


def _statement(store: Store, namespace: str, *, settled: bool) -> Statement:
    book = store.balances(namespace)
    for job in store.jobs(namespace, only_open=True) if settled else ():
        book = _uncharged(book, job)
    account = the_account(book)
    return Statement(
        namespace=namespace,
        budget=_budget(account.purse),
        grants={holder: _budget(purse) for holder, purse in sorted(book.grants.items())},
        exceptions=account.exceptions,
        entries=account.entries,
    )


def job_statements(
    engine: Engine, key: SealKey | None, namespace: str, *, only_open: bool = False
) -> list[JobStatement]:
    """The jobs of a namespace as of now, by name; raises as `statement`."""

    def work(store: Store) -> tuple[Book, list[Job]]:
        return store.balances(namespace), store.jobs(namespace, only_open=only_open)

    book, jobs = _read(engine, key, work)
    purse = the_account(book).purse
    return [_job(purse, job) for job in jobs]


def job_page(
    engine: Engine, key: SealKey | None, namespace: str, *, after: str, limit: int
) -> list[JobStatement]:
    """At most `limit` jobs of a namespace with names after `after`; raises as `statement`."""

    def work(store: Store) -> tuple[Book, list[Job]]:
        return store.balances(namespace), store.job_page(namespace, after, limit)

    book, jobs = _read(engine, key, work)
    purse = the_account(book).purse
    return [_job(purse, job) for job in jobs]


def job_statement(engine: Engine, key: SealKey | None, job: str) -> JobStatement:
    """Where one job stands.

    Raises:
        UnknownEntryError: it has no reservation.
        LedgerTamperedError: a row is not as it was sealed.
    """

    def work(store: Store) -> tuple[Purse, Job]:
        namespace, found = store.job(job, lock=False)
        return the_account(store.balances(namespace)).purse, found

    purse, found = _read(engine, key, work)
    return _job(purse, found)


def job_cost(engine: Engine, key: SealKey | None, job: str) -> JobCost:
    """What a job takes of its budgets; raises as `job_statement`."""

    def work(store: Store) -> tuple[Book, Job]:
        namespace, found = store.job(job, lock=False)
        return store.balances(namespace), found

    book, found = _read(engine, key, work)
    taken = found.charged + found.held
    purses = {None: the_account(book).purse} | {name: book.grants[name] for name in found.grants}
    return JobCost(
        epsilon=_spent(found, the_account(book).purse.delta),
        delta=the_account(book).purse.delta,
        shares={name: purse.share(taken) for name, purse in purses.items()},
    )


def _spent(job: Job, delta: float) -> float:
    return epsilon(job.charged_event, delta) if any(part.charged for part in job.parts) else 0.0


def entries(engine: Engine, namespace: str, *, after: int, limit: int) -> list[Entry]:
    """At most `limit` entries of a namespace's chain that follow entry `after`, in order.

    Raises LedgerTamperedError if one is not as it was written.
    """
    return _read(engine, None, lambda store: store.entry_page(namespace, after, limit))


def job_report(engine: Engine, key: SealKey | None, job: str) -> JobReport:
    """What a job's charged steps cost, at its namespace's delta.

    Raises:
        UnknownEntryError: it has no reservation.
        LedgerTamperedError: a row is not as it was sealed.
    """

    def work(store: Store) -> tuple[str, Job, float]:
        namespace, found = store.job(job, lock=False)
        account = store.account(namespace, lock=False)
        assert account is not None, "a foreign key keeps the account of every job"
        return namespace, found, account.purse.delta

    namespace, found, delta = _read(engine, key, work)
    event = found.charged_event
    return JobReport(job, namespace, found.status, event, epsilon(event, delta), delta)


def together(engine: Engine, key: SealKey | None, namespace: str) -> Together:
    """What a namespace's jobs have cost together, at its delta; raises as `statement`."""

    def work(store: Store) -> tuple[Book, list[Job]]:
        return store.balances(namespace), store.jobs(namespace, only_open=False)

    book, jobs = _read(engine, key, work)
    account = the_account(book)
    events = [job.charged_event for job in jobs if any(part.charged for part in job.parts)]
    delta = account.purse.delta
    total = epsilon(ComposedDpEvent(events), delta) if events else 0.0
    return Together(namespace, total, delta, len(events), account.exceptions)


def job_steps(engine: Engine, key: SealKey | None, job: str) -> tuple[int, int]:
    """How many steps a job holds and has not charged, and how many it has charged.

    Raises:
        UnknownEntryError: it has no reservation.
        LedgerTamperedError: a row is not as it was sealed.
    """
    _, found = _read(engine, key, lambda store: store.job(job, lock=False))
    return sum(part.held for part in found.parts), sum(part.charged for part in found.parts)


def was_done(engine: Engine, operation_id: str) -> bool:
    """Whether the ledger has an operation of this id."""
    return _read(engine, None, lambda store: store.entry(operation_id)) is not None


@dataclass(frozen=True, slots=True)
class Room:
    """Budgets as they stood at one moment, to be asked about plans."""

    purses: Mapping[str | None, Purse]

    def quote(self, event: DpEvent) -> Quote:
        """Whether `reserve` would have let a plan through then; raises GuaranteeError if the event
        is not private."""
        cost = event_cost(event)
        fits = {holder: purse.has_room(cost) for holder, purse in self.purses.items()}
        return Quote(
            admitted=all(fits.values()),
            needed={holder: purse.share(cost) for holder, purse in self.purses.items()},
            taken={holder: purse.share(purse.taken) for holder, purse in self.purses.items()},
            fits=fits,
        )


def room(engine: Engine, key: SealKey | None, *, namespace: str, grants: Sequence[str]) -> Room:
    """What there is to plan with: the namespace's budget and these grants.

    Raises:
        UnknownEntryError: the namespace or a grant does not exist.
    """
    book = _read(engine, key, lambda store: store.balances(namespace))
    account = the_account(book)
    for holder in grants:
        if holder not in book.grants:
            raise UnknownEntryError(f"{holder!r} has no grant in namespace {namespace!r}")
    return Room({None: account.purse, **{holder: book.grants[holder] for holder in grants}})


def _read(engine: Engine, key: SealKey | None, work: Callable[[Store], T]) -> T:
    return transact(engine, lambda connection: work(Store(connection, key)), read_only=True)


def _uncharged(book: Book, job: Job) -> Book:
    """As if all that the job has charged were held still."""
    account, cost = the_account(book), job.charged
    book = book.with_account(replace(account, purse=account.purse.uncharge(cost)))
    for holder in job.grants:
        book = book.with_grant(holder, book.grants[holder].uncharge(cost))
    return book


def _budget(purse: Purse) -> BudgetStatement:
    charged, taken = purse.share(purse.charged), purse.share(purse.taken)
    return BudgetStatement(purse.epsilon, purse.delta, charged, taken)


def _job(purse: Purse, job: Job) -> JobStatement:
    return JobStatement(
        job=job.job,
        status=job.status,
        grants=job.grants,
        worker=job.worker,
        lease_until=datetime.fromtimestamp(job.lease_until_ms / 1000, UTC),
        charged=purse.share(job.charged),
        held=purse.share(job.held),
    )

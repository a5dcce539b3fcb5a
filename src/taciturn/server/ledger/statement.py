"""Statements of the ledger: balance of a budget, cost of a job, room for a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from dp_accounting.dp_event import ComposedDpEvent, DpEvent
from sqlalchemy import Connection, Engine

from taciturn.accounting.compose import ACCOUNTANT, epsilon
from taciturn.accounting.filter import event_cost
from taciturn.errors import UnknownEntryError
from taciturn.server.database import transact
from taciturn.server.ledger.entry import Entry
from taciturn.server.ledger.rules import the_account
from taciturn.server.ledger.seal import SealKey
from taciturn.server.ledger.state import Balance, JobReservation, LedgerState, Status
from taciturn.server.ledger.store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BudgetStatement:
    """A budget for people to read; shares are those of `RenyiFilter.share`.

    Attributes:
        charged: share that is spent for good.
        used: share that is spent or held by open jobs; a new job needs the rest.
    """

    epsilon: float
    delta: float
    charged: float
    used: float


@dataclass(frozen=True, slots=True)
class JobStatement:
    """Status of a job; its shares are those of its namespace's budget, as if it were the only one.

    Attributes:
        reserved: share that it adds to what is charged.
    """

    job: str
    status: Status
    grants: tuple[str, ...]
    worker: str
    lease_until: datetime
    charged: float
    reserved: float


@dataclass(frozen=True, slots=True)
class JobShares:
    """Cost of a job, spent and held together: that of an open job does not change as it runs.

    Its shares are those of a job that is the only one: beside unlike ones it takes more.

    Attributes:
        epsilon: of the steps that are charged, by themselves, at the namespace's delta.
        shares: per budget, as in RoomQuote.
    """

    epsilon: float
    delta: float
    shares: Mapping[str | None, float]


@dataclass(frozen=True, slots=True)
class NamespaceStatement:
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
    """Cost of a job by itself: epsilon of all charged steps, by privacy loss distributions.

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
    """Joint cost of all jobs of a namespace: epsilon of every step that was charged.

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
class RoomQuote:
    """Quote for a plan: whether it would be let through now, and its share of each budget.

    Attributes:
        needed_shares: of the plan by itself.
        left_shares, left_after_shares: neither spent nor held, now and with the plan, below 0 where
            it has no room. Their difference is what it takes, which is more than it needs by itself
            where other jobs are unlike it.
        fits: per budget; the namespace's own is under None, each grant under its holder.
    """

    admitted: bool
    needed_shares: Mapping[str | None, float]
    left_shares: Mapping[str | None, float]
    left_after_shares: Mapping[str | None, float]
    fits: Mapping[str | None, bool]


def namespaces(engine: Engine) -> list[str]:
    """All namespaces, in the order in which they were opened."""
    return _read(engine, None, lambda store: store.namespaces())


def statement(
    engine: Engine, key: SealKey | None, namespace: str, *, settled: bool = False
) -> NamespaceStatement:
    """A namespace as of now. Without a key, seals are not checked.

    Args:
        settled: what open jobs have charged counts as held until they are over. When a block of
            steps is charged depends on how long the one before it took, and so on rows.

    Raises:
        UnknownEntryError: it has no account.
        LedgerTamperedError: a row is not as it was sealed.
    """

    settled_names = (namespace,) if settled else ()
    return _read(engine, key, lambda store: _statements(store, (namespace,), settled_names))[
        namespace
    ]


def statement_within(
    connection: Connection, key: SealKey | None, namespace: str, *, settled: bool = False
) -> NamespaceStatement:
    """Return `statement`, read in the caller's transaction."""
    settled_names = (namespace,) if settled else ()
    return statements_within(connection, key, (namespace,), settled=settled_names)[namespace]


def statements_within(
    connection: Connection,
    key: SealKey | None,
    namespaces: Collection[str],
    *,
    settled: Collection[str] = (),
) -> dict[str, NamespaceStatement]:
    """Return statements of several namespaces, by as many queries as for one; raises as
    `statement`.

    Args:
        settled: those of them whose open jobs' charges count as held.
    """
    return _statements(Store(connection, key), namespaces, settled)


def _statements(
    store: Store, namespaces: Collection[str], settled: Collection[str]
) -> dict[str, NamespaceStatement]:
    states = store.balances_of(namespaces)
    for namespace, job in store.open_jobs(settled) if settled else ():
        states[namespace] = _uncharged(states[namespace], job)
    return {namespace: _statement(namespace, state) for namespace, state in states.items()}


def _statement(namespace: str, state: LedgerState) -> NamespaceStatement:
    account = the_account(state)
    return NamespaceStatement(
        namespace=namespace,
        budget=_budget(account.balance),
        grants={holder: _budget(balance) for holder, balance in sorted(state.grants.items())},
        exceptions=account.exceptions,
        entries=account.entries,
    )


def job_statements(
    engine: Engine, key: SealKey | None, namespace: str, *, only_open: bool = False
) -> list[JobStatement]:
    """The jobs of a namespace as of now, by name; raises as `statement`."""

    def work(store: Store) -> tuple[LedgerState, list[JobReservation]]:
        return store.balances(namespace), store.jobs(namespace, only_open=only_open)

    state, jobs = _read(engine, key, work)
    balance = the_account(state).balance
    return [_job(balance, job) for job in jobs]


def job_page(
    engine: Engine, key: SealKey | None, namespace: str, *, after: str, limit: int
) -> list[JobStatement]:
    """Page of at most `limit` jobs of a namespace, with names after `after`; raises as
    `statement`."""

    def work(store: Store) -> tuple[LedgerState, list[JobReservation]]:
        return store.balances(namespace), store.job_page(namespace, after, limit)

    state, jobs = _read(engine, key, work)
    balance = the_account(state).balance
    return [_job(balance, job) for job in jobs]


def job_statements_within(
    connection: Connection, key: SealKey | None, namespace: str, jobs: Collection[str]
) -> dict[str, JobStatement]:
    """Status of these jobs of a namespace, of those with a reservation; raises as `statement`."""
    store = Store(connection, key)
    balance = the_account(store.balances(namespace)).balance
    return {job.job: _job(balance, job) for job in store.named_jobs(namespace, jobs)}


def job_statement(engine: Engine, key: SealKey | None, job: str) -> JobStatement:
    """Status of one job.

    Raises:
        UnknownEntryError: it has no reservation.
        LedgerTamperedError: a row is not as it was sealed.
    """

    def work(store: Store) -> tuple[Balance, JobReservation]:
        namespace, job_state = store.job(job, lock=False)
        return the_account(store.balances(namespace)).balance, job_state

    balance, job_state = _read(engine, key, work)
    return _job(balance, job_state)


def job_cost(engine: Engine, key: SealKey | None, job: str) -> JobShares:
    """Shares of budgets that a job takes; raises as `job_statement`."""

    def work(store: Store) -> tuple[LedgerState, JobReservation]:
        namespace, job_state = store.job(job, lock=False)
        return store.balances(namespace), job_state

    state, job_state = _read(engine, key, work)
    total_cost = job_state.charged + job_state.reserved
    balances = {None: the_account(state).balance} | {
        name: state.grants[name] for name in job_state.grants
    }
    return JobShares(
        epsilon=_spent(job_state, the_account(state).balance.delta),
        delta=the_account(state).balance.delta,
        shares={name: balance.share(total_cost) for name, balance in balances.items()},
    )


def _spent(job: JobReservation, delta: float) -> float:
    return epsilon(job.charged_event, delta) if any(part.charged for part in job.parts) else 0.0


def entries(engine: Engine, namespace: str, *, after: int, limit: int) -> list[Entry]:
    """Page of at most `limit` entries of a namespace's chain that follow entry `after`, in order.

    Raises LedgerTamperedError if one is not as it was written.
    """
    return _read(engine, None, lambda store: store.entry_page(namespace, after, limit))


def job_report(engine: Engine, key: SealKey | None, job: str) -> JobReport:
    """Cost of a job's charged steps, at its namespace's delta.

    Raises:
        UnknownEntryError: it has no reservation.
        LedgerTamperedError: a row is not as it was sealed.
    """

    def work(store: Store) -> tuple[str, JobReservation, float]:
        namespace, job_state = store.job(job, lock=False)
        account = store.account(namespace, lock=False)
        assert account is not None, "a foreign key keeps the account of every job"
        return namespace, job_state, account.balance.delta

    namespace, job_state, delta = _read(engine, key, work)
    event = job_state.charged_event
    return JobReport(job, namespace, job_state.status, event, epsilon(event, delta), delta)


def together(engine: Engine, key: SealKey | None, namespace: str) -> Together:
    """Joint cost of a namespace's jobs, at its delta; raises as `statement`."""

    def work(store: Store) -> tuple[LedgerState, list[JobReservation]]:
        return store.balances(namespace), store.jobs(namespace, only_open=False)

    state, jobs = _read(engine, key, work)
    account = the_account(state)
    events = [job.charged_event for job in jobs if any(part.charged for part in job.parts)]
    delta = account.balance.delta
    total = epsilon(ComposedDpEvent(events), delta) if events else 0.0
    return Together(namespace, total, delta, len(events), account.exceptions)


def job_steps(engine: Engine, key: SealKey | None, job: str) -> tuple[int, int]:
    """Numbers of steps that a job holds and has not charged, and that it has charged.

    Raises:
        UnknownEntryError: it has no reservation.
        LedgerTamperedError: a row is not as it was sealed.
    """
    _, job_state = _read(engine, key, lambda store: store.job(job, lock=False))
    return sum(part.reserved for part in job_state.parts), sum(
        part.charged for part in job_state.parts
    )


def was_done(engine: Engine, operation_id: str) -> bool:
    """True if the ledger has an operation of this id."""
    return _read(engine, None, lambda store: store.entry(operation_id)) is not None


@dataclass(frozen=True, slots=True)
class Room:
    """Budgets as they stood at one moment, to be asked about plans."""

    balances: Mapping[str | None, Balance]

    @property
    def left(self) -> float:
        """Share of the namespace's budget that is neither spent nor held."""
        return self.balances[None].left

    def left_after(self, event: DpEvent) -> float:
        """Return the share of the namespace's budget that an event would leave, below 0 where there
        is no room; raises GuaranteeError if the event is not private."""
        return self.balances[None].left_after(event_cost(event))

    def quote(self, event: DpEvent) -> RoomQuote:
        """Quote a plan: whether `reserve` would have let it through then; raises GuaranteeError if
        the event is not private."""
        cost = event_cost(event)
        fits = {holder: balance.has_room(cost) for holder, balance in self.balances.items()}
        return RoomQuote(
            admitted=all(fits.values()),
            needed_shares={
                holder: balance.share(cost) for holder, balance in self.balances.items()
            },
            left_shares={holder: balance.left for holder, balance in self.balances.items()},
            left_after_shares={
                holder: balance.left_after(cost) for holder, balance in self.balances.items()
            },
            fits=fits,
        )

    def epsilon_after(self, event: DpEvent) -> float:
        """Return the epsilon that all would come to together in the namespace's budget, spent and
        held; raises GuaranteeError if the event is not private."""
        balance = self.balances[None]
        return balance.epsilon_of(balance.used + event_cost(event))


def rooms_within(
    connection: Connection,
    key: SealKey | None,
    namespaces: Collection[str],
    *,
    used: bool = False,
) -> dict[str, Room]:
    """Room in the budgets of several namespaces, by one query; raises LedgerTamperedError.

    Args:
        used: leaves those out of which nothing is spent or held.
    """
    accounts = Store(connection, key).accounts(namespaces, used=used)
    return {account.namespace: Room({None: account.balance}) for account in accounts}


def room(engine: Engine, key: SealKey | None, *, namespace: str, grants: Sequence[str]) -> Room:
    """Room to plan with: the namespace's budget and these grants.

    Raises:
        UnknownEntryError: the namespace or a grant does not exist.
    """
    state = _read(engine, key, lambda store: store.balances(namespace))
    account = the_account(state)
    for holder in grants:
        if holder not in state.grants:
            raise UnknownEntryError(f"{holder!r} has no grant in namespace {namespace!r}")
    return Room({None: account.balance, **{holder: state.grants[holder] for holder in grants}})


def _read(engine: Engine, key: SealKey | None, work: Callable[[Store], T]) -> T:
    return transact(engine, lambda connection: work(Store(connection, key)), read_only=True)


def _uncharged(state: LedgerState, job: JobReservation) -> LedgerState:
    """State in which all that the job has charged is held still."""
    account, cost = the_account(state), job.charged
    state = state.with_account(replace(account, balance=account.balance.uncharge(cost)))
    for holder in job.grants:
        state = state.with_grant(holder, state.grants[holder].uncharge(cost))
    return state


def _budget(balance: Balance) -> BudgetStatement:
    charged, used = balance.share(balance.charged), balance.share(balance.used)
    return BudgetStatement(balance.epsilon, balance.delta, charged, used)


def _job(balance: Balance, job: JobReservation) -> JobStatement:
    return JobStatement(
        job=job.job,
        status=job.status,
        grants=job.grants,
        worker=job.worker,
        lease_until=datetime.fromtimestamp(job.lease_until_ms / 1000, UTC),
        charged=balance.share(job.charged),
        reserved=balance.held_share(job.charged, job.reserved),
    )

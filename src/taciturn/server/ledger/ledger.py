"""The ledger's operations. Each is one serialisable transaction, and none of them calls anybody.

An operation loads the part of the state that it needs, under a lock on the namespace's account;
makes the entry; applies the rules, which may refuse; and writes. What is refused has changed
nothing. An operation id that is repeated, because an answer was lost, is answered as at first.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, TypeVar

from dp_accounting.dp_event import DpEvent
from sqlalchemy import Engine

from taciturn.accounting.events import event_to_dict
from taciturn.accounting.filter import FILTER, PRICED_BY, RenyiCost, RenyiFilter, step_cost
from taciturn.errors import LedgerConflictError, SpecError
from taciturn.server.database import PATIENCE_S, transact
from taciturn.server.ledger.entry import (
    Acquired,
    Capped,
    Charged,
    Closed,
    Entry,
    Excepted,
    Extended,
    Granted,
    Opened,
    Reserved,
    StepPrice,
    checked_name,
)
from taciturn.server.ledger.journal import Clock, Journal, Request, utc_now
from taciturn.server.ledger.rules import check_token, priced_steps, the_job
from taciturn.server.ledger.seal import SealKey
from taciturn.server.ledger.state import JobReservation, LedgerState, total
from taciturn.server.ledger.store import Store

T = TypeVar("T")

MAX_HOLD_S = 90 * 86_400.0
"""The longest that a plan may be held without a worker, or a lease may last."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Position of an operation in the ledger."""

    namespace: str
    sequence: int
    digest: str


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on a job: its fencing token, and when it counts as gone.

    Attributes:
        receipt: None for a heartbeat, which is no entry.
    """

    job: str
    token: int
    until: datetime
    receipt: Receipt | None = None


class Ledger:
    """Budgets of namespaces: who may spend what, what is held, what is spent.

    Args:
        engine: from `database.open_database`, with the schema of `schema.upgrade`.
        key: seals rows; the same as when they were written.
        clock: tells leases and times of entries. Wrong clocks make leases too short or too long;
            they never let anybody overspend.
        patience_s: how long an operation is tried before DatabaseUnavailableError.

    Every operation may raise DatabaseUnavailableError: then it is not known whether it happened,
    and repeating it with the same operation id finds out. LedgerError: nothing has changed.
    """

    def __init__(
        self,
        engine: Engine,
        key: SealKey,
        *,
        clock: Clock = utc_now,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._journal = Journal(engine, key, clock, patience_s)

    def open_account(
        self, operation_id: str, namespace: str, *, epsilon: float, delta: float
    ) -> Receipt:
        """Give a namespace its joint budget.

        Raises:
            PrivacyParameterError: no filter enforces such a budget.
            LedgerConflictError: the namespace is open already.
        """
        checked_name(namespace, "namespace")
        budget = RenyiFilter(float(epsilon), float(delta))

        def details(store: Store, _: LedgerState, now_ms: int) -> Opened:
            count = store.accounts_opened() + 1
            store.write_accounts_opened(count)
            return Opened(ordinal=count, epsilon=budget.epsilon, delta=budget.delta, filter=FILTER)

        arguments = {"epsilon": budget.epsilon, "delta": budget.delta}
        request = Request.of("open", operation_id, arguments, namespace=namespace)
        return _receipt(self._journal.write(request, details))

    def set_cap(
        self, operation_id: str, namespace: str, *, epsilon: float, delta: float
    ) -> Receipt:
        """Change a namespace's joint budget, up or down; what is spent stays spent.

        The guarantee is that of the highest cap ever in force, and only as long as it was not
        raised because of what released models say.
        """
        budget = RenyiFilter(float(epsilon), float(delta))
        details = Capped(epsilon=budget.epsilon, delta=budget.delta)
        request = Request.of("cap", operation_id, details.model_dump(), namespace=namespace)
        return _receipt(self._journal.write(request, lambda store, state, now_ms: details))

    def set_grant(
        self, operation_id: str, namespace: str, holder: str, *, epsilon: float, delta: float
    ) -> Receipt:
        """Let a user or group spend up to a sub-cap, or change it; the joint budget holds too."""
        checked_name(holder, "holder")
        budget = RenyiFilter(float(epsilon), float(delta))
        details = Granted(holder=holder, epsilon=budget.epsilon, delta=budget.delta)
        request = Request.of(
            "grant", operation_id, details.model_dump(), namespace=namespace, grants=(holder,)
        )
        return _receipt(self._journal.write(request, lambda store, state, now_ms: details))

    def record_exception(
        self, operation_id: str, namespace: str, job: str, *, approvals: Sequence[str]
    ) -> Receipt:
        """Write down a release without guarantee, which no budget covers, and who approved it."""
        checked_name(job, "job")
        names = tuple(checked_name(approval, "approvals") for approval in approvals)
        details = Excepted(job=job, approvals=names)
        request = Request.of("except", operation_id, details.model_dump(), namespace=namespace)
        return _receipt(self._journal.write(request, lambda store, state, now_ms: details))

    def reserve(
        self,
        operation_id: str,
        job: str,
        *,
        namespace: str,
        grants: Sequence[str],
        event: DpEvent,
        hold_s: float,
    ) -> Receipt:
        """Hold a job's whole plan, before anything of it runs.

        Args:
            grants: holders of the grants that it counts against, besides the joint budget.
            hold_s: how long it is held without a worker; then `reap` releases it.

        Raises:
            BudgetExceededError: the joint budget or a grant has no room.
            UnknownEntryError: the namespace or a grant does not exist.
            LedgerConflictError: the job has a reservation already.
            GuaranteeError: the event is not private.
        """
        checked_name(job, "job")
        fields = event_to_dict(event)
        names = tuple(sorted({checked_name(holder, "grants") for holder in grants}))
        _check_span(hold_s, "hold_s")
        request = Request.of(
            "reserve",
            operation_id,
            {"event": fields, "hold_s": hold_s},
            namespace=namespace,
            job=job,
            grants=names,
        )
        prices = _prices(fields)

        def details(_: Store, __: LedgerState, now_ms: int) -> Reserved:
            return Reserved(
                job=job,
                grants=names,
                event=fields,
                prices=prices,
                cost=_cost(prices).units,
                accountant=PRICED_BY,
                hold_until_ms=_later(now_ms, hold_s),
            )

        return _receipt(self._journal.write(request, details))

    def extend(self, operation_id: str, job: str, token: int, event: DpEvent) -> Receipt:
        """Hold more steps for a job that runs, such as those to be done again after a crash.

        Raises as `reserve`, and FencedError.
        """
        fields = event_to_dict(event)
        request = Request.of("extend", operation_id, {"event": fields}, job=job, token=token)
        _prices(fields)  # takes a while, and is remembered: not while the account is locked

        def details(_: Store, state: LedgerState, now_ms: int) -> Extended:
            prices = _prices(fields, the_job(state, job))
            return Extended(
                job=job,
                token=token,
                event=fields,
                prices=prices,
                cost=_cost(prices).units,
                accountant=PRICED_BY,
            )

        return _receipt(self._journal.write(request, details))

    def acquire(
        self,
        operation_id: str,
        job: str,
        *,
        worker: str,
        lease_s: float,
        takeover: bool = False,
    ) -> Lease:
        """Give a job to a worker, with a token above all earlier ones, which are void from now on.

        Args:
            lease_s: without a heartbeat for this long, the worker counts as gone.
            takeover: also while another worker's lease lasts.

        Raises:
            LeaseHeldError: it does, and `takeover` is not set.
            LedgerConflictError: the job is over.
        """
        checked_name(worker, "worker")
        _check_span(lease_s, "lease_s")
        arguments = {"worker": worker, "lease_s": lease_s, "takeover": takeover}
        request = Request.of("acquire", operation_id, arguments, job=job)

        def details(_: Store, state: LedgerState, now_ms: int) -> Acquired:
            return Acquired(
                job=job,
                token=the_job(state, job).token + 1,
                worker=worker,
                takeover=takeover,
                lease_until_ms=_later(now_ms, lease_s),
            )

        entry = self._journal.write(request, details)
        assert isinstance(entry.details, Acquired)
        until = _moment(entry.details.lease_until_ms)
        return Lease(job, entry.details.token, until, _receipt(entry))

    def heartbeat(self, job: str, token: int, *, lease_s: float) -> Lease:
        """The worker is alive: its lease lasts `lease_s` from now. Raises FencedError."""
        _check_span(lease_s, "lease_s")

        def work(store: Store) -> Lease:
            namespace, job_state = store.job(job, lock=True)
            _check_held(job_state, token)
            until_ms = max(job_state.lease_until_ms, _later(self._journal.now_ms(), lease_s))
            store.write_job(namespace, replace(job_state, lease_until_ms=until_ms))
            return Lease(job, token, _moment(until_ms))

        return self._transact(work)

    def check_token(self, job: str, token: int) -> None:
        """Raises FencedError unless this worker holds the job: ask before believing its report."""

        _, job_state = self._transact(lambda store: store.job(job, lock=False), read_only=True)
        _check_held(job_state, token)

    def charge(self, operation_id: str, job: str, token: int, block: DpEvent) -> Receipt:
        """Spend a block of steps. Only once this has returned may they run.

        Raises:
            FencedError: the worker no longer holds the job.
            LedgerConflictError: the job does not hold these steps.
        """
        fields = event_to_dict(block)
        request = Request.of("charge", operation_id, {"block": fields}, job=job, token=token)
        steps = priced_steps(fields)

        def details(_: Store, state: LedgerState, now_ms: int) -> Charged:
            parts = the_job(state, job).parts
            cost = total((part.unit, steps.get(part.step, 0)) for part in parts)
            return Charged(job=job, token=token, event=fields, cost=cost.units)

        return _receipt(self._journal.write(request, details))

    def commit(self, operation_id: str, job: str, token: int) -> Receipt:
        """The job is done: only what was never charged is free again. Raises FencedError."""
        request = Request.of("commit", operation_id, {}, job=job, token=token)
        return self._close(request, "committed", token)

    def release(self, operation_id: str, job: str) -> Receipt:
        """Give back the reservation of a job that never started.

        Raises:
            LedgerConflictError: a worker has taken it, or it is over.
        """
        request = Request.of("release", operation_id, {}, job=job)
        return self._close(request, "released", 0)

    def reap(self) -> list[str]:
        """Close the jobs whose worker is gone, or never came; what was charged stays charged.

        To be called when a server starts, and every few seconds.

        Returns:
            The jobs that this call closed.
        """
        now_ms = self._journal.now_ms()
        expired = self._transact(lambda store: store.expired(now_ms), read_only=True)
        return [job for job, token in expired if self._expire(job, token)]

    def _expire(self, job: str, token: int) -> bool:
        # An id that no client can have used before; of several reapers, the rules let one through.
        operation_id = f"expire-{secrets.token_hex(16)}"
        request = Request.of("expire", operation_id, {}, job=job)
        try:
            self._close(request, "expired", token + 1)
        except LedgerConflictError:
            return False  # a heartbeat, a takeover or a commit came first
        return True

    def _close(
        self, request: Request, reason: Literal["committed", "released", "expired"], token: int
    ) -> Receipt:
        def details(_: Store, state: LedgerState, now_ms: int) -> Closed:
            freed = the_job(state, request.job).reserved.units
            return Closed(job=request.job, token=token, reason=reason, freed=freed)

        return _receipt(self._journal.write(request, details))

    def _transact(self, work: Callable[[Store], T], *, read_only: bool = False) -> T:
        journal = self._journal
        return transact(
            journal.engine,
            lambda connection: work(Store(connection, journal.key)),
            read_only=read_only,
            patience_s=journal.patience_s,
        )


def _check_held(job: JobReservation, token: int) -> None:
    check_token(job, token)
    if job.status != "open":
        raise LedgerConflictError(f"job {job.job!r} is {job.status}")


def _receipt(entry: Entry) -> Receipt:
    return Receipt(entry.namespace, entry.sequence, entry.digest)


def _prices(event: dict[str, object], job: JobReservation | None = None) -> tuple[StepPrice, ...]:
    """Prices of the distinct steps of an event; a job's own steps cost what they did before."""
    known_units = {part.step: part.unit for part in job.parts} if job else {}
    return tuple(
        StepPrice(
            sampling_probability=step.sampling_probability,
            noise_multiplier=step.noise_multiplier,
            count=count,
            unit=(known_units.get(step) or step_cost(step)).units,
        )
        for step, count in sorted(priced_steps(event).items())
    )


def _cost(prices: tuple[StepPrice, ...]) -> RenyiCost:
    return total((RenyiCost(price.unit), price.count) for price in prices)


def _check_span(seconds: float, what: str) -> None:
    if not 0 < seconds <= MAX_HOLD_S:
        raise SpecError(f"{what}={seconds:g} must lie in (0, {MAX_HOLD_S:g}] seconds")


def _later(now_ms: int, seconds: float) -> int:
    return now_ms + round(seconds * 1000)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

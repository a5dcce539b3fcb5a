"""The rules: what an entry does to a state, or why it may not be.

Pure, and the only place where a verdict is reached: an operation applies its entry inside its
transaction before it writes anything, and `verification` applies all entries again from the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from taciturn.accounting.compose import counted_steps
from taciturn.accounting.events import event_from_dict, event_to_dict
from taciturn.accounting.filter import RenyiCost, RenyiFilter
from taciturn.accounting.privacy_loss import SampledGaussian
from taciturn.errors import (
    BudgetExceededError,
    FencedError,
    GuaranteeError,
    LeaseHeldError,
    LedgerConflictError,
    UnknownEntryError,
)
from taciturn.server.ledger.entry import (
    START,
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
)
from taciturn.server.ledger.state import (
    Account,
    Balance,
    JobReservation,
    LedgerState,
    ReservedSteps,
    total,
)


def applied(state: LedgerState, entry: Entry) -> LedgerState:
    """The state after an entry.

    Raises:
        BudgetExceededError: a budget or a grant has no room for it.
        FencedError, LeaseHeldError, UnknownEntryError, LedgerConflictError: it may not be.
    """
    account = state.account
    place = (account.entries, account.head) if account else (0, START)
    if (entry.sequence, entry.previous) != (place[0] + 1, place[1]):
        raise LedgerConflictError(
            f"entry {entry.sequence} of {entry.namespace!r} does not follow entry {place[0]}"
        )
    after = _effect(state, entry)
    account_after = replace(the_account(after), entries=entry.sequence, head=entry.digest)
    return after.with_account(account_after)


def _effect(state: LedgerState, entry: Entry) -> LedgerState:
    match entry.details:
        case Opened() as details:
            return _apply_opened(state, details, entry.namespace)
        case Capped() as details:
            return _capped(state, details)
        case Granted() as details:
            return _apply_granted(state, details)
        case Reserved() as details:
            return _apply_reserved(state, details)
        case Extended() as details:
            return _apply_extended(state, details)
        case Acquired() as details:
            return _apply_acquired(state, details, entry.recorded_at_ms)
        case Charged() as details:
            return _apply_charged(state, details)
        case Closed() as details:
            return _apply_closed(state, details, entry.recorded_at_ms)
        case Excepted():
            return _apply_excepted(state)


def the_account(state: LedgerState) -> Account:
    """The account of a state; raises UnknownEntryError if it is not open."""
    if state.account is None:
        raise UnknownEntryError("the namespace has no account; open one with a budget first")
    return state.account


def the_job(state: LedgerState, name: str) -> JobReservation:
    """A job of a state; raises UnknownEntryError."""
    if name not in state.jobs:
        raise UnknownEntryError(f"job {name!r} has no reservation; reserve its whole plan first")
    return state.jobs[name]


def check_token(job: JobReservation, token: int) -> None:
    """Raises FencedError unless `token` is that of the worker that holds the job now."""
    if job.token != token or token == 0:
        raise FencedError(
            f"token {token} of job {job.job!r} is no longer valid, {job.token} is: another worker "
            "has taken the job over, or it expired; stop, and report nothing"
        )


def priced_steps(event: Mapping[str, Any]) -> Mapping[SampledGaussian, int]:
    """The distinct steps of a stored event; raises GuaranteeError if it is not private."""
    parsed = event_from_dict(dict(event))
    if event_to_dict(parsed) != event:
        raise LedgerConflictError("the event is not in its canonical form")
    steps = counted_steps(parsed)
    if steps is None:
        raise GuaranteeError(
            "an event without noise has no price; a release without guarantee needs approval"
        )
    return steps


def _apply_opened(state: LedgerState, details: Opened, namespace: str) -> LedgerState:
    if state.account is not None:
        raise LedgerConflictError(f"namespace {namespace!r} is open already; change its cap")
    RenyiFilter(details.epsilon, details.delta)  # refuses what is outside its bound
    balance = Balance(details.epsilon, details.delta)
    return state.with_account(Account(namespace, details.ordinal, balance, 0, 0, START))


def _capped(state: LedgerState, details: Capped) -> LedgerState:
    account = the_account(state)
    RenyiFilter(details.epsilon, details.delta)
    balance = replace(account.balance, epsilon=details.epsilon, delta=details.delta)
    return state.with_account(replace(account, balance=balance))


def _apply_granted(state: LedgerState, details: Granted) -> LedgerState:
    the_account(state)
    RenyiFilter(details.epsilon, details.delta)
    earlier = state.grants.get(details.holder, Balance(details.epsilon, details.delta))
    balance = replace(earlier, epsilon=details.epsilon, delta=details.delta)
    return state.with_grant(details.holder, balance)


def _apply_reserved(state: LedgerState, details: Reserved) -> LedgerState:
    if details.job in state.jobs:
        raise LedgerConflictError(f"job {details.job!r} has a reservation already; extend it")
    if list(details.grants) != sorted(set(details.grants)):
        raise LedgerConflictError("grants must be sorted, each named once")
    cost = _checked_cost(details)
    parts = tuple(
        ReservedSteps(price.step, RenyiCost(price.unit), price.count) for price in details.prices
    )
    job = JobReservation(details.job, details.grants, parts, details.hold_until_ms)
    return _reserve(state.with_job(job), job, cost)


def _apply_extended(state: LedgerState, details: Extended) -> LedgerState:
    job = _running(state, details.job, details.token)
    cost = _checked_cost(details)
    parts = {part.step: part for part in job.parts}
    for price in details.prices:
        part = parts.get(price.step, ReservedSteps(price.step, RenyiCost(price.unit), 0))
        if part.unit.units != price.unit:
            raise LedgerConflictError("a step has another price than when it was reserved")
        parts[price.step] = replace(part, reserved=part.reserved + price.count)
    job = replace(job, parts=tuple(parts.values()))
    return _reserve(state.with_job(job), job, cost)


def _apply_acquired(state: LedgerState, details: Acquired, moment_ms: int) -> LedgerState:
    job = _open(state, details.job)
    if job.token and job.lease_until_ms > moment_ms and not details.takeover:
        raise LeaseHeldError(
            f"job {job.job!r} is held by {job.worker!r}; wait until its lease runs out, or take "
            "the job over if that worker is known to be gone"
        )
    if details.token != job.token + 1:
        raise LedgerConflictError(f"the token after {job.token} is not {details.token}")
    acquired = replace(
        job,
        token=details.token,
        worker=details.worker,
        lease_until_ms=details.lease_until_ms,
    )
    return state.with_job(acquired)


def _apply_charged(state: LedgerState, details: Charged) -> LedgerState:
    job = _running(state, details.job, details.token)
    block = priced_steps(details.event)
    charged = tuple(_charge_part(part, block.get(part.step, 0), job.job) for part in job.parts)
    if not set(block) <= {part.step for part in job.parts}:
        raise LedgerConflictError(f"job {job.job!r} did not reserve such a step; extend its plan")
    cost = total((part.unit, block.get(part.step, 0)) for part in job.parts)
    if cost.units != details.cost:
        raise LedgerConflictError("the cost is not that of the block")
    state = state.with_job(replace(job, parts=charged))
    return _every_balance(state, job, lambda balance: balance.charge(cost))


def _charge_part(part: ReservedSteps, count: int, job: str) -> ReservedSteps:
    if count > part.reserved:
        raise LedgerConflictError(
            f"a block of {count} steps is more than the {part.reserved} that job {job!r} still "
            "holds; charge less, or extend its plan"
        )
    return replace(part, reserved=part.reserved - count, charged=part.charged + count)


def _apply_closed(state: LedgerState, details: Closed, moment_ms: int) -> LedgerState:
    if details.reason == "committed":
        check_token(the_job(state, details.job), details.token)
    job = _open(state, details.job)
    _check_unfinished(job, details, moment_ms)
    freed = job.reserved
    if freed.units != details.freed:
        raise LedgerConflictError("what is freed is not what was held and never charged")
    parts = tuple(replace(part, reserved=0) for part in job.parts)
    over = replace(job, parts=parts, status=details.reason, token=details.token)
    return _every_balance(state.with_job(over), job, lambda balance: balance.free(freed))


def _check_unfinished(job: JobReservation, details: Closed, moment_ms: int) -> None:
    """Check that a job ends without a commit only before it starts, or when its worker is gone."""
    if details.reason == "released" and (job.token or details.token):
        raise LedgerConflictError(
            f"job {job.job!r} has started; only its worker commits it, or it expires"
        )
    if details.reason == "expired" and (
        job.lease_until_ms > moment_ms or details.token != job.token + 1
    ):
        # The token moves on, so that a worker that was only slow finds itself fenced off.
        raise LedgerConflictError(f"job {job.job!r} has not expired")


def _apply_excepted(state: LedgerState) -> LedgerState:
    account = the_account(state)
    return state.with_account(replace(account, exceptions=account.exceptions + 1))


def _reserve(state: LedgerState, job: JobReservation, cost: RenyiCost) -> LedgerState:
    """The verdict: every balance has room, or nothing happens."""
    account = the_account(state)
    for holder, balance in ((None, account.balance), *_grants(state, job)):
        if not balance.has_room(cost):
            raise _exceeded(job, account.namespace, holder, balance, cost)
    return _every_balance(state, job, lambda balance: balance.hold(cost))


def _exceeded(
    job: JobReservation, namespace: str, holder: str | None, balance: Balance, cost: RenyiCost
) -> BudgetExceededError:
    owner_text = (
        f"of namespace {namespace!r}" if holder is None else f"of {holder!r} in {namespace!r}"
    )
    return BudgetExceededError(
        f"job {job.job!r} needs {balance.share(cost):.1%} of the budget {owner_text} (epsilon="
        f"{balance.epsilon:g}, delta={balance.delta:g}), of which {1 - balance.left:.1%} is spent "
        f"or reserved; together they come to {1 - balance.left_after(cost):.1%}. Ask for a "
        "smaller target_epsilon, or for a larger budget",
        grant=holder,
    )


def _every_balance(
    state: LedgerState, job: JobReservation, change: Callable[[Balance], Balance]
) -> LedgerState:
    account = the_account(state)
    state = state.with_account(replace(account, balance=change(account.balance)))
    for holder, balance in _grants(state, job):
        state = state.with_grant(holder, change(balance))
    return state


def _grants(state: LedgerState, job: JobReservation) -> list[tuple[str, Balance]]:
    for holder in job.grants:
        if holder not in state.grants:
            raise UnknownEntryError(f"{holder!r} has no grant here; its owner must give one first")
    return [(holder, state.grants[holder]) for holder in job.grants]


def _checked_cost(details: Reserved | Extended) -> RenyiCost:
    prices = {price.step: price for price in details.prices}
    counts = {step: price.count for step, price in prices.items()}
    if len(prices) != len(details.prices) or counts != dict(priced_steps(details.event)):
        raise LedgerConflictError("the prices are not those of the event's steps")
    cost = total((RenyiCost(price.unit), price.count) for price in details.prices)
    if cost.units != details.cost:
        raise LedgerConflictError("the cost is not the sum of its prices")
    return cost


def _open(state: LedgerState, name: str) -> JobReservation:
    job = the_job(state, name)
    if job.status != "open":
        raise LedgerConflictError(f"job {name!r} is {job.status}; make a new reservation")
    return job


def _running(state: LedgerState, name: str, token: int) -> JobReservation:
    check_token(the_job(state, name), token)
    return _open(state, name)

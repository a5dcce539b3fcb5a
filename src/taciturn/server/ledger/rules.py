"""The rules: what an entry does to a book, or why it may not be.

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
from taciturn.server.ledger.book import Account, Book, Job, Part, Purse, total
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


def applied(book: Book, entry: Entry) -> Book:
    """The book after an entry.

    Raises:
        BudgetExceededError: a budget or a grant has no room for it.
        FencedError, LeaseHeldError, UnknownEntryError, LedgerConflictError: it may not be.
    """
    account = book.account
    place = (account.entries, account.head) if account else (0, START)
    if (entry.sequence, entry.previous) != (place[0] + 1, place[1]):
        raise LedgerConflictError(
            f"entry {entry.sequence} of {entry.namespace!r} does not follow entry {place[0]}"
        )
    after = _effect(book, entry)
    written = replace(the_account(after), entries=entry.sequence, head=entry.digest)
    return after.with_account(written)


def _effect(book: Book, entry: Entry) -> Book:
    match entry.details:
        case Opened() as details:
            return _opened(book, details, entry.namespace)
        case Capped() as details:
            return _capped(book, details)
        case Granted() as details:
            return _granted(book, details)
        case Reserved() as details:
            return _reserved(book, details)
        case Extended() as details:
            return _extended(book, details)
        case Acquired() as details:
            return _acquired(book, details, entry.recorded_at_ms)
        case Charged() as details:
            return _charged(book, details)
        case Closed() as details:
            return _closed(book, details, entry.recorded_at_ms)
        case Excepted():
            return _excepted(book)


def the_account(book: Book) -> Account:
    """The account of a book; raises UnknownEntryError if it is not open."""
    if book.account is None:
        raise UnknownEntryError("the namespace has no account; open one with a budget first")
    return book.account


def the_job(book: Book, name: str) -> Job:
    """A job of a book; raises UnknownEntryError."""
    if name not in book.jobs:
        raise UnknownEntryError(f"job {name!r} has no reservation; reserve its whole plan first")
    return book.jobs[name]


def check_token(job: Job, token: int) -> None:
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
            "an event without noise has no price; what has no guarantee is an approved exception"
        )
    return steps


def _opened(book: Book, details: Opened, namespace: str) -> Book:
    if book.account is not None:
        raise LedgerConflictError(f"namespace {namespace!r} is open already; change its cap")
    RenyiFilter(details.epsilon, details.delta)  # refuses what is outside its bound
    purse = Purse(details.epsilon, details.delta)
    return book.with_account(Account(namespace, details.ordinal, purse, 0, 0, START))


def _capped(book: Book, details: Capped) -> Book:
    account = the_account(book)
    RenyiFilter(details.epsilon, details.delta)
    purse = replace(account.purse, epsilon=details.epsilon, delta=details.delta)
    return book.with_account(replace(account, purse=purse))


def _granted(book: Book, details: Granted) -> Book:
    the_account(book)
    RenyiFilter(details.epsilon, details.delta)
    earlier = book.grants.get(details.holder, Purse(details.epsilon, details.delta))
    purse = replace(earlier, epsilon=details.epsilon, delta=details.delta)
    return book.with_grant(details.holder, purse)


def _reserved(book: Book, details: Reserved) -> Book:
    if details.job in book.jobs:
        raise LedgerConflictError(f"job {details.job!r} has a reservation already; extend it")
    if list(details.grants) != sorted(set(details.grants)):
        raise LedgerConflictError("grants must be sorted, each named once")
    cost = _checked_cost(details)
    parts = tuple(Part(each.step, RenyiCost(each.unit), each.count) for each in details.prices)
    job = Job(details.job, details.grants, parts, details.hold_until_ms)
    return _held(book.with_job(job), job, cost)


def _extended(book: Book, details: Extended) -> Book:
    job = _running(book, details.job, details.token)
    cost = _checked_cost(details)
    parts = {part.step: part for part in job.parts}
    for price in details.prices:
        part = parts.get(price.step, Part(price.step, RenyiCost(price.unit), 0))
        if part.unit.units != price.unit:
            raise LedgerConflictError("a step has another price than when it was reserved")
        parts[price.step] = replace(part, held=part.held + price.count)
    job = replace(job, parts=tuple(parts.values()))
    return _held(book.with_job(job), job, cost)


def _acquired(book: Book, details: Acquired, moment_ms: int) -> Book:
    job = _open(book, details.job)
    if job.token and job.lease_until_ms > moment_ms and not details.takeover:
        raise LeaseHeldError(
            f"job {job.job!r} is held by {job.worker!r}; wait until its lease runs out, or take "
            "the job over if that worker is known to be gone"
        )
    if details.token != job.token + 1:
        raise LedgerConflictError(f"the token after {job.token} is not {details.token}")
    taken = replace(
        job,
        token=details.token,
        worker=details.worker,
        lease_until_ms=details.lease_until_ms,
    )
    return book.with_job(taken)


def _charged(book: Book, details: Charged) -> Book:
    job = _running(book, details.job, details.token)
    block = priced_steps(details.event)
    charged = tuple(_charge_part(part, block.get(part.step, 0), job.job) for part in job.parts)
    if not set(block) <= {part.step for part in job.parts}:
        raise LedgerConflictError(f"job {job.job!r} did not reserve such a step; extend its plan")
    cost = total((part.unit, block.get(part.step, 0)) for part in job.parts)
    if cost.units != details.cost:
        raise LedgerConflictError("the cost is not that of the block")
    book = book.with_job(replace(job, parts=charged))
    return _every_purse(book, job, lambda purse: purse.charge(cost))


def _charge_part(part: Part, count: int, job: str) -> Part:
    if count > part.held:
        raise LedgerConflictError(
            f"a block of {count} steps is more than the {part.held} that job {job!r} still holds; "
            "charge less, or extend its plan"
        )
    return replace(part, held=part.held - count, charged=part.charged + count)


def _closed(book: Book, details: Closed, moment_ms: int) -> Book:
    if details.reason == "committed":
        check_token(the_job(book, details.job), details.token)
    job = _open(book, details.job)
    _check_unfinished(job, details, moment_ms)
    freed = job.held
    if freed.units != details.freed:
        raise LedgerConflictError("what is freed is not what was held and never charged")
    parts = tuple(replace(part, held=0) for part in job.parts)
    over = replace(job, parts=parts, status=details.reason, token=details.token)
    return _every_purse(book.with_job(over), job, lambda purse: purse.free(freed))


def _check_unfinished(job: Job, details: Closed, moment_ms: int) -> None:
    """Without a commit, a job is released before it starts, or expires when its worker is gone."""
    if details.reason == "released" and (job.token or details.token):
        raise LedgerConflictError(
            f"job {job.job!r} has started; only its worker commits it, or it expires"
        )
    if details.reason == "expired" and (
        job.lease_until_ms > moment_ms or details.token != job.token + 1
    ):
        # The token moves on, so that a worker that was only slow finds itself fenced off.
        raise LedgerConflictError(f"job {job.job!r} has not expired")


def _excepted(book: Book) -> Book:
    account = the_account(book)
    return book.with_account(replace(account, exceptions=account.exceptions + 1))


def _held(book: Book, job: Job, cost: RenyiCost) -> Book:
    """The verdict: every purse has room, or nothing happens."""
    account = the_account(book)
    for holder, purse in ((None, account.purse), *_grants(book, job)):
        if not purse.has_room(cost):
            raise _exceeded(job, account.namespace, holder, purse, cost)
    return _every_purse(book, job, lambda purse: purse.hold(cost))


def _exceeded(
    job: Job, namespace: str, holder: str | None, purse: Purse, cost: RenyiCost
) -> BudgetExceededError:
    whose = f"of namespace {namespace!r}" if holder is None else f"of {holder!r} in {namespace!r}"
    return BudgetExceededError(
        f"job {job.job!r} needs {purse.share(cost):.1%} of the budget {whose} (epsilon="
        f"{purse.epsilon:g}, delta={purse.delta:g}), of which {purse.share(purse.taken):.1%} is "
        "spent or reserved; ask for a smaller target_epsilon, or for a larger budget",
        grant=holder,
    )


def _every_purse(book: Book, job: Job, change: Callable[[Purse], Purse]) -> Book:
    account = the_account(book)
    book = book.with_account(replace(account, purse=change(account.purse)))
    for holder, purse in _grants(book, job):
        book = book.with_grant(holder, change(purse))
    return book


def _grants(book: Book, job: Job) -> list[tuple[str, Purse]]:
    for holder in job.grants:
        if holder not in book.grants:
            raise UnknownEntryError(f"{holder!r} has no grant here; its owner must give one first")
    return [(holder, book.grants[holder]) for holder in job.grants]


def _checked_cost(details: Reserved | Extended) -> RenyiCost:
    prices = {price.step: price for price in details.prices}
    counts = {step: price.count for step, price in prices.items()}
    if len(prices) != len(details.prices) or counts != dict(priced_steps(details.event)):
        raise LedgerConflictError("the prices are not those of the event's steps")
    cost = total((RenyiCost(price.unit), price.count) for price in details.prices)
    if cost.units != details.cost:
        raise LedgerConflictError("the cost is not the sum of its prices")
    return cost


def _open(book: Book, name: str) -> Job:
    job = the_job(book, name)
    if job.status != "open":
        raise LedgerConflictError(f"job {name!r} is {job.status}; make a new reservation")
    return job


def _running(book: Book, name: str, token: int) -> Job:
    check_token(the_job(book, name), token)
    return _open(book, name)

"""Ways in which a ledger gets it wrong: each is killed by the check that is for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dp_accounting.dp_event import DpEvent
from sqlalchemy import Engine

from support.databases import open_quickly
from support.ledger import KEY, PLAN, LedgerWorld, steps
from taciturn.accounting.filter import RenyiFilter, event_cost
from taciturn.errors import BudgetExceededError, FencedError, LedgerError
from taciturn.server.ledger import Lease, Ledger, Receipt, journal, rules, verify
from taciturn.server.ledger.entry import Closed
from taciturn.server.ledger.state import Balance, JobReservation, LedgerState
from taciturn.server.schema import versions

SHARE = RenyiFilter(8.0, 1e-6).share


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = open_quickly(f"sqlite:///{tmp_path / 'ledger.db'}")
    versions.upgrade(opened)
    yield opened
    opened.dispose()


class DebitsAfter(Ledger):
    """Writes a charge down when the job reports success."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.due: list[tuple[str, str, int, DpEvent]] = []

    def charge(self, operation_id: str, job: str, token: int, block: DpEvent) -> Receipt:
        self.due.append((operation_id, job, token, block))
        return Receipt("", 0, "")

    def commit(self, operation_id: str, job: str, token: int) -> Receipt:
        for each in self.due:
            super().charge(*each)
        return super().commit(operation_id, job, token)


class ChecksOutside(Ledger):
    """Asks whether there is room, and then writes, in a transaction of its own."""

    def reserve(self, operation_id: str, job: str, **plan: Any) -> Receipt:
        budget = self._transact(
            lambda store: store.account(plan["namespace"], lock=False), read_only=True
        )
        assert budget is not None
        if not budget.balance.has_room(event_cost(plan["event"])):
            raise BudgetExceededError("no room")
        time.sleep(0.3)
        with without_a_verdict():
            return super().reserve(operation_id, job, **plan)


@contextlib.contextmanager
def without_a_verdict() -> Iterator[None]:
    NO_VERDICT.active = True
    try:
        yield
    finally:
        NO_VERDICT.active = False


class _NoVerdict(threading.local):
    active = False


NO_VERDICT = _NoVerdict()
HAS_ROOM = Balance.has_room


def has_room_or_asked_before(balance: Balance, cost: Any) -> bool:
    return NO_VERDICT.active or HAS_ROOM(balance, cost)


def refunds_what_ran(state: LedgerState, details: Closed, moment_ms: int) -> LedgerState:
    job = rules.the_job(state, details.job)
    spent = job.charged
    over = replace(job, parts=(), status=details.reason, token=details.token)
    state = rules._every_balance(
        state.with_job(over), job, lambda balance: balance.free(job.reserved)
    )
    return rules._every_balance(
        state, job, lambda balance: replace(balance, charged=balance.charged - spent)
    )


def frees_nothing(state: LedgerState, details: Closed, moment_ms: int) -> LedgerState:
    job = rules.the_job(state, details.job)
    return state.with_job(replace(job, status=details.reason, token=details.token))


def ignores_its_verdict(state: LedgerState, job: JobReservation, cost: Any) -> LedgerState:
    account = rules.the_account(state)
    with contextlib.suppress(BudgetExceededError):
        if not account.balance.has_room(cost):
            raise BudgetExceededError("no room")
    return rules._every_balance(state, job, lambda balance: balance.hold(cost))


def only_the_joint_budget(state: LedgerState, job: JobReservation, cost: Any) -> LedgerState:
    if not rules.the_account(state).balance.has_room(cost):
        raise BudgetExceededError("no room")
    return rules._every_balance(state, job, lambda balance: balance.hold(cost))


def only_the_grants(state: LedgerState, job: JobReservation, cost: Any) -> LedgerState:
    for _, balance in rules._grants(state, job):
        if not balance.has_room(cost):
            raise BudgetExceededError("no room")
    return rules._every_balance(state, job, lambda balance: balance.hold(cost))


def charges_without_limit(part: Any, count: int, job: str) -> Any:
    return replace(part, reserved=max(part.reserved - count, 0), charged=part.charged + count)


def counts_charges_only(balance: Balance, cost: Any) -> bool:
    return RenyiFilter(balance.epsilon, balance.delta).admits(balance.charged + cost)


class NeverReaps(Ledger):
    def reap(self) -> list[str]:
        return []


class SameToken(Ledger):
    """Gives whoever comes the token that is already out."""

    def acquire(self, operation_id: str, job: str, **rest: Any) -> Lease:
        _, found = self._transact(lambda store: store.job(job, lock=False), read_only=True)
        if found.token:
            return Lease(job, found.token, self._journal.clock())
        return super().acquire(operation_id, job, **rest)


def commit_keeps_what_was_charged(world: LedgerWorld) -> None:
    token = world.started()
    world.charge(40, token)
    world.ledger.commit(world.op(), "job", token)
    assert world.statement().budget.charged == SHARE(event_cost(steps(40)))


def commit_frees_what_never_ran(world: LedgerWorld) -> None:
    token = world.started()
    world.charge(40, token)
    world.ledger.commit(world.op(), "job", token)
    budget = world.statement().budget
    assert budget.used == budget.charged


def a_crash_loses_no_charge(world: LedgerWorld) -> None:
    token = world.started()
    world.charge(40, token)  # the block runs here, and then the worker dies
    world.clock.forward(31)
    world.ledger.reap()
    budget = world.statement().budget
    assert budget.charged == SHARE(event_cost(steps(40)))
    assert budget.used == budget.charged, "a reservation is stuck"


def nobody_overspends_in_a_race(world: LedgerWorld) -> None:
    """Eight clients, room for one."""
    count = int(0.6 / SHARE(event_cost(steps(1))))
    answers: list[str] = []

    def client(number: int) -> None:
        try:
            world.reserve(f"job-{number}", steps(count))
            answers.append("admitted")
        except BudgetExceededError:
            answers.append("refused")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["admitted", *["refused"] * 7]
    assert world.statement().budget.used <= 1


def the_joint_budget_holds(world: LedgerWorld) -> None:
    for number in range(3):
        world.grant(f"user:{number}", epsilon=8.0)
        with contextlib.suppress(BudgetExceededError):
            world.reserve(f"job-{number}", steps(600), [f"user:{number}"])
    assert world.statement().budget.used <= 1


def the_grant_holds(world: LedgerWorld) -> None:
    for number in range(3):
        with contextlib.suppress(BudgetExceededError):
            world.reserve(f"job-{number}", PLAN, ["user:ada"])
    assert world.statement().grants["user:ada"].used <= 1


def a_stale_token_is_refused(world: LedgerWorld) -> None:
    stale = world.started()
    world.acquire(worker="second", takeover=True)
    with pytest.raises(FencedError):
        world.charge(1, stale)
    with pytest.raises(FencedError):
        world.ledger.commit(world.op(), "job", stale)


def nothing_runs_that_was_not_reserved(world: LedgerWorld) -> None:
    token = world.started()
    with contextlib.suppress(LedgerError):
        world.charge(101, token)
    assert world.statement().budget.charged <= SHARE(event_cost(PLAN))


def a_repeated_operation_counts_once(world: LedgerWorld) -> None:
    token = world.started()
    for _ in range(2):
        world.ledger.charge("the-id", "job", token, steps(10))
    with contextlib.suppress(LedgerError):
        world.ledger.charge("the-id", "job", token, steps(20))
    assert world.statement().budget.charged == SHARE(event_cost(steps(10)))


Check = Callable[[LedgerWorld], None]
Patch = tuple[Any, str, Any]

MUTANTS: dict[str, tuple[type[Ledger], Sequence[Patch], Check]] = {
    "refunds executed steps": (
        Ledger,
        [(rules, "_apply_closed", refunds_what_ran)],
        commit_keeps_what_was_charged,
    ),
    "refunds executed steps of the dead": (
        Ledger,
        [(rules, "_apply_closed", refunds_what_ran)],
        a_crash_loses_no_charge,
    ),
    "frees nothing": (
        Ledger,
        [(rules, "_apply_closed", frees_nothing)],
        commit_frees_what_never_ran,
    ),
    "debits after": (DebitsAfter, [], a_crash_loses_no_charge),
    "never reaps": (NeverReaps, [], a_crash_loses_no_charge),
    "checks outside the transaction": (
        ChecksOutside,
        [(Balance, "has_room", has_room_or_asked_before)],
        nobody_overspends_in_a_race,
    ),
    "ignores the fencing token": (
        Ledger,
        [
            (rules, "check_token", lambda job, token: None),
            (journal, "check_token", lambda job, token: None),
        ],
        a_stale_token_is_refused,
    ),
    "gives the same token twice": (SameToken, [], a_stale_token_is_refused),
    "ignores its own verdict": (
        Ledger,
        [(rules, "_reserve", ignores_its_verdict)],
        the_joint_budget_holds,
    ),
    "checks grants only": (Ledger, [(rules, "_reserve", only_the_grants)], the_joint_budget_holds),
    "checks the joint budget only": (
        Ledger,
        [(rules, "_reserve", only_the_joint_budget)],
        the_grant_holds,
    ),
    "forgets what is held": (
        Ledger,
        [(Balance, "has_room", counts_charges_only)],
        the_joint_budget_holds,
    ),
    "charges more than is held": (
        Ledger,
        [
            (rules, "_charge_part", charges_without_limit),
            (
                Balance,
                "charge",
                lambda balance, cost: replace(balance, charged=balance.charged + cost),
            ),
        ],
        nothing_runs_that_was_not_reserved,
    ),
}
CHECKS = list(dict.fromkeys(check for _, _, check in MUTANTS.values()))
CHECKS.append(a_repeated_operation_counts_once)


def set_up(engine: Engine, kind: type[Ledger]) -> LedgerWorld:
    world = LedgerWorld(engine, kind=kind)
    world.open()
    world.grant("user:ada")
    return world


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_real_one_passes(engine: Engine, check: Check) -> None:
    check(set_up(engine, Ledger))
    assert verify(engine, key=KEY).ok


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, patches, check = MUTANTS[name]
    for target, attribute, broken in patches:
        monkeypatch.setattr(target, attribute, broken)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(set_up(engine, kind))


@pytest.mark.parametrize(
    "patch",
    [(rules, "_apply_closed", refunds_what_ran), (rules, "_reserve", ignores_its_verdict)],
    ids=["refunds", "ignores its verdict"],
)
def test_what_a_mutant_wrote_is_found_by_verify(engine: Engine, patch: Patch) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(*patch)
        world = set_up(engine, Ledger)
        for number in range(3):
            token = world.started(f"job-{number}", steps(600))
            world.charge(5, token, f"job-{number}")
            world.ledger.commit(world.op(), f"job-{number}", token)
        world.reserve("one", steps(1200))
        with contextlib.suppress(LedgerError):
            world.reserve("two", steps(1200))
    assert not verify(engine, key=KEY).ok

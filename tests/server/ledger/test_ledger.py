"""The contract of the ledger, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from dp_accounting.dp_event import ComposedDpEvent, NonPrivateDpEvent, NoOpDpEvent
from sqlalchemy import text, update

from support.ledger import KEY, NAMESPACE, PLAN, LedgerWorld, steps
from taciturn.accounting.compose import epsilon
from taciturn.accounting.filter import RenyiFilter, event_cost
from taciturn.errors import (
    BudgetExceededError,
    FencedError,
    GuaranteeError,
    LeaseHeldError,
    LedgerConflictError,
    LedgerError,
    LedgerTamperedError,
    PrivacyParameterError,
    SpecError,
    UnknownEntryError,
)
from taciturn.server.ledger import SealKey, job_report, job_statements, namespaces, room, verify
from taciturn.server.ledger.state import Balance
from taciturn.server.ledger.tables import accounts

SHARE = RenyiFilter(8.0, 1e-6).share


def test_a_job_from_reservation_to_commit(world: LedgerWorld) -> None:
    world.reserve(grants=["user:ada"])
    whole = SHARE(event_cost(PLAN))
    assert world.statement().budget.used == pytest.approx(whole)
    assert world.statement().budget.charged == 0
    token = world.acquire()
    for _ in range(3):
        world.charge(10, token)
    budget = world.statement().budget
    assert (budget.charged, budget.used) == pytest.approx((0.3 * whole, whole))
    world.ledger.commit(world.op(), "job", token)
    after = world.statement()
    assert (after.budget.charged, after.budget.used) == pytest.approx((0.3 * whole, 0.3 * whole))
    ada = after.grants["user:ada"]
    assert ada.used == pytest.approx(RenyiFilter(3.0, 1e-6).share(event_cost(steps(30))))
    assert world.statuses() == {"job": "committed"}
    assert verify(world.engine, key=KEY).ok


def test_the_report_is_by_privacy_loss_distributions(world: LedgerWorld) -> None:
    token = world.started()
    world.charge(40, token)
    report = job_report(world.engine, KEY, "job")
    assert report.epsilon == epsilon(steps(40), 1e-6)
    assert report.event == ComposedDpEvent([steps(40)])
    assert (report.delta, report.status, report.namespace) == (1e-6, "open", NAMESPACE)
    assert "taciturn" in report.accountant


def test_the_joint_budget_holds_whoever_spends(world: LedgerWorld) -> None:
    for number in range(5):
        world.grant(f"user:{number}", epsilon=8.0)
    fits = int(1 / SHARE(event_cost(steps(300))))
    for number in range(fits):
        world.reserve(f"job-{number}", steps(300), [f"user:{number % 5}"])
    with pytest.raises(BudgetExceededError, match="of namespace 'patients'") as refused:
        world.reserve("one-more", steps(300), ["user:0"])
    assert refused.value.grant is None
    everything = ComposedDpEvent([steps(300)] * fits)
    assert epsilon(everything, 1e-6) <= 8


def test_a_grant_holds_below_the_joint_budget(world: LedgerWorld) -> None:
    world.reserve("first", grants=["user:ada"])
    before = world.rows()
    with pytest.raises(BudgetExceededError, match="'user:ada'") as refused:
        world.reserve("second", grants=["user:ada"])
    assert refused.value.grant == "user:ada"
    assert world.rows() == before
    world.reserve("second")  # the owner's own job counts against the joint budget only


def test_a_user_and_a_group_both_pay(world: LedgerWorld) -> None:
    world.grant("group:oncology", epsilon=8.0)
    world.reserve(grants=["user:ada", "group:oncology", "user:ada"])
    taken = {holder: grant.used for holder, grant in world.statement().grants.items()}
    assert all(share > 0 for share in taken.values())


def test_several_kinds_of_steps_in_one_job(world: LedgerWorld) -> None:
    token = world.started(plan=ComposedDpEvent([steps(20), steps(5, noise=4.0), NoOpDpEvent()]))
    world.ledger.charge(world.op(), "job", token, ComposedDpEvent([steps(20), steps(2, noise=4.0)]))
    with pytest.raises(LedgerConflictError, match="the 0 that"):
        world.charge(1, token)
    world.charge(3, token, noise=4.0)
    world.ledger.commit(world.op(), "job", token)
    budget = world.statement().budget
    assert budget.charged == budget.used


def test_a_running_job_is_extended_within_the_budget(world: LedgerWorld) -> None:
    token = world.started()
    world.charge(100, token)
    world.ledger.extend(world.op(), "job", token, steps(20))
    world.ledger.extend(world.op(), "job", token, steps(5, noise=3.0))
    world.charge(20, token)
    world.charge(5, token, noise=3.0)
    with pytest.raises(BudgetExceededError):
        world.ledger.extend(world.op(), "job", token, steps(5000))
    assert verify(world.engine, key=KEY).ok


def test_a_stale_worker_is_fenced_off(world: LedgerWorld) -> None:
    stale = world.started()
    world.charge(10, stale)
    fresh = world.acquire(worker="second", takeover=True)
    assert fresh == stale + 1
    before = world.rows()
    for attempt in (
        lambda: world.charge(10, stale),
        lambda: world.ledger.commit(world.op(), "job", stale),
        lambda: world.ledger.heartbeat("job", stale, lease_s=30),
        lambda: world.ledger.check_token("job", stale),
        lambda: world.ledger.extend(world.op(), "job", stale, steps(1)),
    ):
        with pytest.raises(FencedError, match="no longer valid"):
            attempt()
    assert world.rows() == before
    world.charge(90, fresh)
    world.ledger.check_token("job", fresh)
    world.ledger.commit(world.op(), "job", fresh)


def test_a_stale_worker_is_fenced_off_when_it_repeats_itself(world: LedgerWorld) -> None:
    token = world.started()
    world.ledger.charge("lost-answer", "job", token, steps(10))
    world.acquire(worker="second", takeover=True)
    with pytest.raises(FencedError):
        world.ledger.charge("lost-answer", "job", token, steps(10))


def test_nobody_runs_a_job_that_was_never_acquired(world: LedgerWorld) -> None:
    world.reserve()
    for token in (0, 1):
        with pytest.raises(FencedError):
            world.charge(1, token)


def test_a_lease_is_held_until_it_runs_out(world: LedgerWorld) -> None:
    token = world.started()
    with pytest.raises(LeaseHeldError, match="held by 'worker'"):
        world.acquire(worker="second")
    world.clock.forward(20)
    lease = world.ledger.heartbeat("job", token, lease_s=30)
    assert (lease.until - world.clock()).total_seconds() == 30
    world.clock.forward(20)
    with pytest.raises(LeaseHeldError):
        world.acquire(worker="second")
    world.clock.forward(11)
    assert world.acquire(worker="second") == token + 1


def test_a_heartbeat_never_shortens_a_lease(world: LedgerWorld) -> None:
    token = world.started()
    until = world.ledger.heartbeat("job", token, lease_s=100).until
    assert world.ledger.heartbeat("job", token, lease_s=1).until == until


def test_the_reaper_frees_what_never_ran_and_keeps_the_rest(world: LedgerWorld) -> None:
    token = world.started(grants=["user:ada"])
    world.charge(30, token)
    world.started("alive")
    assert world.ledger.reap() == []
    world.clock.forward(29)
    world.ledger.heartbeat("alive", 1, lease_s=30)
    world.clock.forward(2)
    assert world.ledger.reap() == ["job"]
    assert world.ledger.reap() == []
    after = world.statement()
    assert world.statuses() == {"job": "expired", "alive": "open"}
    (alive,) = job_statements(world.engine, KEY, NAMESPACE, only_open=True)
    assert (alive.job, alive.worker, alive.charged) == ("alive", "worker", 0)
    assert alive.reserved == SHARE(event_cost(PLAN))
    assert alive.lease_until > world.clock()
    ada = after.grants["user:ada"]
    assert ada.charged == ada.used
    assert ada.charged == pytest.approx(RenyiFilter(3.0, 1e-6).share(event_cost(steps(30))))
    with pytest.raises(FencedError):  # it was only slow
        world.charge(10, token)
    with pytest.raises(LedgerConflictError, match="is expired"):
        world.acquire()
    assert verify(world.engine, key=KEY).ok


def test_a_plan_that_no_worker_takes_expires(world: LedgerWorld) -> None:
    world.reserve()
    world.clock.forward(3601)
    assert world.ledger.reap() == ["job"]
    assert world.statement().budget.used == 0


def test_a_slow_worker_goes_on_if_nobody_noticed(world: LedgerWorld) -> None:
    token = world.started()
    world.clock.forward(1000)
    world.charge(10, token)  # the token decides, not the clock
    world.ledger.heartbeat("job", token, lease_s=30)
    assert world.ledger.reap() == []


def test_a_reservation_that_never_started_is_released(world: LedgerWorld) -> None:
    world.reserve()
    world.ledger.release(world.op(), "job")
    assert world.statement().budget.used == 0
    with pytest.raises(LedgerConflictError, match="is released"):
        world.acquire()
    token = world.started("other")
    with pytest.raises(LedgerConflictError, match="has started"):
        world.ledger.release(world.op(), "other")
    world.charge(1, token, job="other")


def test_a_lower_cap_admits_nothing_more_and_a_higher_one_does(world: LedgerWorld) -> None:
    world.reserve("first")
    world.ledger.set_cap(world.op(), NAMESPACE, epsilon=0.5, delta=1e-6)
    assert world.statement().budget.used > 1
    with pytest.raises(BudgetExceededError):
        world.reserve("second", steps(1))
    token = world.acquire("first")
    world.charge(100, token, job="first")  # what was let in before may run
    world.ledger.set_cap(world.op(), NAMESPACE, epsilon=10, delta=1e-6)
    world.reserve("second", steps(1))
    assert verify(world.engine, key=KEY).ok


def test_a_changed_grant_keeps_what_was_spent(world: LedgerWorld) -> None:
    world.reserve(grants=["user:ada"])
    taken = world.statement().grants["user:ada"].used
    world.grant("user:ada", epsilon=6.0)
    grant = world.statement().grants["user:ada"]
    assert grant.epsilon == 6
    assert 0 < grant.used < taken


def test_an_exception_is_written_down_and_costs_nothing(world: LedgerWorld) -> None:
    world.ledger.record_exception(world.op(), NAMESPACE, "job", approvals=["user:eve", "user:bob"])
    after = world.statement()
    assert (after.exceptions, after.budget.used) == (1, 0)
    assert verify(world.engine, key=KEY).ok


def test_namespaces_are_apart(world: LedgerWorld) -> None:
    world.open(namespace="others")
    world.reserve()
    assert world.statement("others").budget.used == 0
    assert namespaces(world.engine) == [NAMESPACE, "others"]
    with pytest.raises(LedgerConflictError, match="reservation already"):
        world.reserve(namespace="others")  # one reservation per job, wherever


DENIED: dict[str, tuple[Callable[[LedgerWorld], object], type[Exception]]] = {
    "an account twice": (lambda world: world.open(), LedgerConflictError),
    "no account": (lambda world: world.reserve(namespace="nowhere"), UnknownEntryError),
    "a grant without account": (
        lambda world: world.grant("user:ada", namespace="nowhere"),
        UnknownEntryError,
    ),
    "a cap without account": (
        lambda world: world.ledger.set_cap(world.op(), "nowhere", epsilon=1, delta=1e-6),
        UnknownEntryError,
    ),
    "an exception without account": (
        lambda world: world.ledger.record_exception(world.op(), "nowhere", "job", approvals=["a"]),
        UnknownEntryError,
    ),
    "no grant": (lambda world: world.reserve("new", grants=["user:eve"]), UnknownEntryError),
    "more than the joint budget": (
        lambda world: world.reserve("new", steps(10_000)),
        BudgetExceededError,
    ),
    "more than the grant": (
        lambda world: world.reserve("new", steps(200), ["user:ada"]),
        BudgetExceededError,
    ),
    "a job twice": (lambda world: world.reserve("held"), LedgerConflictError),
    "no noise": (lambda world: world.reserve("new", NonPrivateDpEvent()), GuaranteeError),
    "no such job": (lambda world: world.acquire("nothing"), UnknownEntryError),
    "no such job to charge": (lambda world: world.charge(1, 1, "nothing"), UnknownEntryError),
    "no such job to release": (
        lambda world: world.ledger.release(world.op(), "nothing"),
        UnknownEntryError,
    ),
    "no such job to hold": (
        lambda world: world.ledger.heartbeat("nothing", 1, lease_s=1),
        UnknownEntryError,
    ),
    "a charge without token": (lambda world: world.charge(1, 0, "held"), FencedError),
    "a charge with a token to come": (lambda world: world.charge(1, 2, "running"), FencedError),
    "more steps than are held": (
        lambda world: world.charge(101, 1, "running"),
        LedgerConflictError,
    ),
    "steps of another kind": (
        lambda world: world.charge(1, 1, "running", noise=1.4),
        LedgerConflictError,
    ),
    "a commit without token": (
        lambda world: world.ledger.commit(world.op(), "held", 0),
        FencedError,
    ),
    "another worker": (lambda world: world.acquire("running", "second"), LeaseHeldError),
    "a job that is over": (lambda world: world.acquire("over"), LedgerConflictError),
    "a charge after the commit": (lambda world: world.charge(1, 1, "over"), LedgerConflictError),
    "a second commit": (
        lambda world: world.ledger.commit(world.op(), "over", 1),
        LedgerConflictError,
    ),
    "a heartbeat after the commit": (
        lambda world: world.ledger.heartbeat("over", 1, lease_s=30),
        LedgerConflictError,
    ),
    "a report after the commit": (
        lambda world: world.ledger.check_token("over", 1),
        LedgerConflictError,
    ),
    "release of what runs": (
        lambda world: world.ledger.release(world.op(), "running"),
        LedgerConflictError,
    ),
    "an extension beyond the budget": (
        lambda world: world.ledger.extend(world.op(), "running", 1, steps(10_000)),
        BudgetExceededError,
    ),
    "an extension of what is over": (
        lambda world: world.ledger.extend(world.op(), "over", 1, steps(1)),
        LedgerConflictError,
    ),
    "epsilon 0": (lambda world: world.open(0.0, "new"), PrivacyParameterError),
    "epsilon nan": (lambda world: world.grant("user:x", float("nan")), PrivacyParameterError),
    "a name with a line break": (lambda world: world.reserve("a\nb"), SpecError),
    "an empty name": (lambda world: world.open(namespace=""), SpecError),
    "a name too long": (lambda world: world.reserve("a" * 201), SpecError),
    "no operation id": (
        lambda world: world.ledger.release("", "held"),
        SpecError,
    ),
    "a hold that never ends": (
        lambda world: world.ledger.reserve(
            world.op(), "new", namespace=NAMESPACE, grants=(), event=PLAN, hold_s=1e9
        ),
        SpecError,
    ),
    "a lease of no time": (
        lambda world: world.ledger.acquire(world.op(), "held", worker="w", lease_s=0),
        SpecError,
    ),
}


@pytest.mark.parametrize("name", DENIED)
def test_what_is_denied_has_changed_nothing(world: LedgerWorld, name: str) -> None:
    world.reserve("held")
    world.started("running")
    world.started("over")
    world.ledger.commit(world.op(), "over", 1)
    before = world.rows()
    attempt, error = DENIED[name]
    with pytest.raises(error):
        attempt(world)
    assert world.rows() == before


def test_errors_of_the_ledger_are_of_one_tree() -> None:
    assert all(
        issubclass(error, LedgerError | SpecError | GuaranteeError) for _, error in DENIED.values()
    )


def test_another_key_writes_nothing(world: LedgerWorld) -> None:
    before = world.rows()
    stranger = LedgerWorld(world.engine, world.clock, SealKey.generate(), numbers=world.numbers)
    for attempt in (stranger.reserve, stranger.statement, lambda: stranger.open(namespace="new")):
        with pytest.raises(LedgerTamperedError, match="key is another"):
            attempt()
    assert world.rows() == before


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger_accounts SET epsilon = 80",
        "UPDATE ledger_accounts SET held = charged",
        "UPDATE ledger_accounts SET head = previous FROM ledger_entries WHERE sequence = 2",
        "UPDATE ledger_grants SET epsilon = 80",
        "UPDATE ledger_jobs SET token = 0",
        "UPDATE ledger_jobs SET parts = '[]'",
        "UPDATE ledger_jobs SET parts = 'nonsense'",
        "UPDATE ledger_jobs SET grants = '[]'",
    ],
)
def test_an_edited_balance_is_noticed_when_it_is_used(world: LedgerWorld, change: str) -> None:
    token = world.started(grants=["user:ada"])
    with world.engine.begin() as connection:
        connection.execute(text(change))
    with pytest.raises(LedgerTamperedError):
        world.charge(1, token)


def test_an_account_that_was_put_back_is_noticed_when_it_is_used(world: LedgerWorld) -> None:
    """Its seal is true, of an earlier time; but the chain goes on after it."""
    token = world.started()
    columns = ", ".join(column.name for column in accounts.columns)
    with world.engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE backup AS SELECT {columns} FROM ledger_accounts"))
    world.charge(100, token)
    with world.engine.begin() as connection:
        row = connection.execute(text("SELECT * FROM backup")).one()
        connection.execute(update(accounts).values(row._asdict()))
        connection.execute(text("DROP TABLE backup"))
    with pytest.raises(LedgerTamperedError, match="do not end where"):
        world.reserve("second")


def test_a_quote_is_what_reserve_would_say(world: LedgerWorld) -> None:
    def asked(count: int) -> object:
        return room(world.engine, KEY, namespace=NAMESPACE, grants=["user:ada"]).quote(steps(count))

    before = world.rows()
    small, large, huge = asked(100), asked(300), asked(3000)
    assert world.rows() == before
    assert small.admitted  # type: ignore[attr-defined]
    assert large.fits == {None: True, "user:ada": False}  # type: ignore[attr-defined]
    assert huge.fits == {None: False, "user:ada": False}  # type: ignore[attr-defined]
    world.reserve(plan=steps(100), grants=["user:ada"])
    assert asked(100).left_shares[None] == pytest.approx(1 - small.needed_shares[None])  # type: ignore[attr-defined]
    with pytest.raises(UnknownEntryError, match="user:eve"):
        room(world.engine, KEY, namespace=NAMESPACE, grants=["user:eve"]).quote(steps(1))
    with pytest.raises(UnknownEntryError, match="no account"):
        room(world.engine, KEY, namespace="nowhere", grants=[]).quote(steps(1))


def test_shares_of_unlike_steps_do_not_add_up_and_what_is_shown_does() -> None:
    balance = Balance(8.0, 1e-6)
    few_loud, many_quiet = event_cost(steps(3, noise=0.6)), event_cost(steps(200, noise=2.0))
    both = balance.share(few_loud + many_quiet)
    assert balance.share(few_loud) + balance.share(many_quiet) < both - 0.01
    shown = balance.share(few_loud) + balance.held_share(few_loud, many_quiet)
    assert shown == pytest.approx(both, abs=1e-9)
    taken = replace(balance, charged=few_loud)
    assert taken.left_after(many_quiet) == pytest.approx(1 - both, abs=1e-9)
    assert taken.left == pytest.approx(1 - balance.share(few_loud), abs=1e-9)


def test_what_is_not_there_has_no_statement(world: LedgerWorld) -> None:
    with pytest.raises(UnknownEntryError):
        world.statement("nowhere")
    with pytest.raises(UnknownEntryError):
        job_statements(world.engine, KEY, "nowhere")
    with pytest.raises(UnknownEntryError):
        job_report(world.engine, KEY, "nothing")


def test_a_clock_that_goes_back_harms_nobody(world: LedgerWorld) -> None:
    token = world.started()
    world.clock.forward(-10_000)
    world.charge(10, token)
    world.ledger.commit(world.op(), "job", token)
    assert verify(world.engine, key=KEY).ok

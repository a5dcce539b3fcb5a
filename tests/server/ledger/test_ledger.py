"""The contract of the ledger, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dp_accounting.dp_event import ComposedDpEvent, NonPrivateDpEvent, NoOpDpEvent
from sqlalchemy import text, update

from desk import KEY, NAMESPACE, PLAN, Desk, steps
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
from taciturn.server.ledger.tables import accounts

SHARE = RenyiFilter(8.0, 1e-6).share


def test_a_job_from_reservation_to_commit(desk: Desk) -> None:
    desk.reserve(grants=["user:ada"])
    whole = SHARE(event_cost(PLAN))
    assert desk.statement().budget.used == pytest.approx(whole)
    assert desk.statement().budget.charged == 0
    token = desk.acquire()
    for _ in range(3):
        desk.charge(10, token)
    budget = desk.statement().budget
    assert (budget.charged, budget.used) == pytest.approx((0.3 * whole, whole))
    desk.ledger.commit(desk.op(), "job", token)
    after = desk.statement()
    assert (after.budget.charged, after.budget.used) == pytest.approx((0.3 * whole, 0.3 * whole))
    ada = after.grants["user:ada"]
    assert ada.used == pytest.approx(RenyiFilter(3.0, 1e-6).share(event_cost(steps(30))))
    assert desk.statuses() == {"job": "committed"}
    assert verify(desk.engine, key=KEY).ok


def test_the_report_is_by_privacy_loss_distributions(desk: Desk) -> None:
    token = desk.started()
    desk.charge(40, token)
    report = job_report(desk.engine, KEY, "job")
    assert report.epsilon == epsilon(steps(40), 1e-6)
    assert report.event == ComposedDpEvent([steps(40)])
    assert (report.delta, report.status, report.namespace) == (1e-6, "open", NAMESPACE)
    assert "taciturn" in report.accountant


def test_the_joint_budget_holds_whoever_spends(desk: Desk) -> None:
    for number in range(5):
        desk.grant(f"user:{number}", epsilon=8.0)
    fits = int(1 / SHARE(event_cost(steps(300))))
    for number in range(fits):
        desk.reserve(f"job-{number}", steps(300), [f"user:{number % 5}"])
    with pytest.raises(BudgetExceededError, match="of namespace 'patients'") as refused:
        desk.reserve("one-more", steps(300), ["user:0"])
    assert refused.value.grant is None
    everything = ComposedDpEvent([steps(300)] * fits)
    assert epsilon(everything, 1e-6) <= 8


def test_a_grant_holds_below_the_joint_budget(desk: Desk) -> None:
    desk.reserve("first", grants=["user:ada"])
    before = desk.rows()
    with pytest.raises(BudgetExceededError, match="'user:ada'") as refused:
        desk.reserve("second", grants=["user:ada"])
    assert refused.value.grant == "user:ada"
    assert desk.rows() == before
    desk.reserve("second")  # the owner's own job counts against the joint budget only


def test_a_user_and_a_group_both_pay(desk: Desk) -> None:
    desk.grant("group:oncology", epsilon=8.0)
    desk.reserve(grants=["user:ada", "group:oncology", "user:ada"])
    taken = {holder: grant.used for holder, grant in desk.statement().grants.items()}
    assert all(share > 0 for share in taken.values())


def test_several_kinds_of_steps_in_one_job(desk: Desk) -> None:
    token = desk.started(plan=ComposedDpEvent([steps(20), steps(5, noise=4.0), NoOpDpEvent()]))
    desk.ledger.charge(desk.op(), "job", token, ComposedDpEvent([steps(20), steps(2, noise=4.0)]))
    with pytest.raises(LedgerConflictError, match="the 0 that"):
        desk.charge(1, token)
    desk.charge(3, token, noise=4.0)
    desk.ledger.commit(desk.op(), "job", token)
    budget = desk.statement().budget
    assert budget.charged == budget.used


def test_a_running_job_is_extended_within_the_budget(desk: Desk) -> None:
    token = desk.started()
    desk.charge(100, token)
    desk.ledger.extend(desk.op(), "job", token, steps(20))
    desk.ledger.extend(desk.op(), "job", token, steps(5, noise=3.0))
    desk.charge(20, token)
    desk.charge(5, token, noise=3.0)
    with pytest.raises(BudgetExceededError):
        desk.ledger.extend(desk.op(), "job", token, steps(5000))
    assert verify(desk.engine, key=KEY).ok


def test_a_stale_worker_is_fenced_off(desk: Desk) -> None:
    stale = desk.started()
    desk.charge(10, stale)
    fresh = desk.acquire(worker="second", takeover=True)
    assert fresh == stale + 1
    before = desk.rows()
    for attempt in (
        lambda: desk.charge(10, stale),
        lambda: desk.ledger.commit(desk.op(), "job", stale),
        lambda: desk.ledger.heartbeat("job", stale, lease_s=30),
        lambda: desk.ledger.check_token("job", stale),
        lambda: desk.ledger.extend(desk.op(), "job", stale, steps(1)),
    ):
        with pytest.raises(FencedError, match="no longer valid"):
            attempt()
    assert desk.rows() == before
    desk.charge(90, fresh)
    desk.ledger.check_token("job", fresh)
    desk.ledger.commit(desk.op(), "job", fresh)


def test_a_stale_worker_is_fenced_off_when_it_repeats_itself(desk: Desk) -> None:
    token = desk.started()
    desk.ledger.charge("lost-answer", "job", token, steps(10))
    desk.acquire(worker="second", takeover=True)
    with pytest.raises(FencedError):
        desk.ledger.charge("lost-answer", "job", token, steps(10))


def test_nobody_runs_a_job_that_was_never_acquired(desk: Desk) -> None:
    desk.reserve()
    for token in (0, 1):
        with pytest.raises(FencedError):
            desk.charge(1, token)


def test_a_lease_is_held_until_it_runs_out(desk: Desk) -> None:
    token = desk.started()
    with pytest.raises(LeaseHeldError, match="held by 'worker'"):
        desk.acquire(worker="second")
    desk.clock.advance(20)
    lease = desk.ledger.heartbeat("job", token, lease_s=30)
    assert (lease.until - desk.clock()).total_seconds() == 30
    desk.clock.advance(20)
    with pytest.raises(LeaseHeldError):
        desk.acquire(worker="second")
    desk.clock.advance(11)
    assert desk.acquire(worker="second") == token + 1


def test_a_heartbeat_never_shortens_a_lease(desk: Desk) -> None:
    token = desk.started()
    until = desk.ledger.heartbeat("job", token, lease_s=100).until
    assert desk.ledger.heartbeat("job", token, lease_s=1).until == until


def test_the_reaper_frees_what_never_ran_and_keeps_the_rest(desk: Desk) -> None:
    token = desk.started(grants=["user:ada"])
    desk.charge(30, token)
    desk.started("alive")
    assert desk.ledger.reap() == []
    desk.clock.advance(29)
    desk.ledger.heartbeat("alive", 1, lease_s=30)
    desk.clock.advance(2)
    assert desk.ledger.reap() == ["job"]
    assert desk.ledger.reap() == []
    after = desk.statement()
    assert desk.statuses() == {"job": "expired", "alive": "open"}
    (alive,) = job_statements(desk.engine, KEY, NAMESPACE, only_open=True)
    assert (alive.job, alive.worker, alive.charged) == ("alive", "worker", 0)
    assert alive.reserved == SHARE(event_cost(PLAN))
    assert alive.lease_until > desk.clock()
    ada = after.grants["user:ada"]
    assert ada.charged == ada.used
    assert ada.charged == pytest.approx(RenyiFilter(3.0, 1e-6).share(event_cost(steps(30))))
    with pytest.raises(FencedError):  # it was only slow
        desk.charge(10, token)
    with pytest.raises(LedgerConflictError, match="is expired"):
        desk.acquire()
    assert verify(desk.engine, key=KEY).ok


def test_a_plan_that_no_worker_takes_expires(desk: Desk) -> None:
    desk.reserve()
    desk.clock.advance(3601)
    assert desk.ledger.reap() == ["job"]
    assert desk.statement().budget.used == 0


def test_a_slow_worker_goes_on_if_nobody_noticed(desk: Desk) -> None:
    token = desk.started()
    desk.clock.advance(1000)
    desk.charge(10, token)  # the token decides, not the clock
    desk.ledger.heartbeat("job", token, lease_s=30)
    assert desk.ledger.reap() == []


def test_a_reservation_that_never_started_is_released(desk: Desk) -> None:
    desk.reserve()
    desk.ledger.release(desk.op(), "job")
    assert desk.statement().budget.used == 0
    with pytest.raises(LedgerConflictError, match="is released"):
        desk.acquire()
    token = desk.started("other")
    with pytest.raises(LedgerConflictError, match="has started"):
        desk.ledger.release(desk.op(), "other")
    desk.charge(1, token, job="other")


def test_a_lower_cap_admits_nothing_more_and_a_higher_one_does(desk: Desk) -> None:
    desk.reserve("first")
    desk.ledger.set_cap(desk.op(), NAMESPACE, epsilon=0.5, delta=1e-6)
    assert desk.statement().budget.used > 1
    with pytest.raises(BudgetExceededError):
        desk.reserve("second", steps(1))
    token = desk.acquire("first")
    desk.charge(100, token, job="first")  # what was let in before may run
    desk.ledger.set_cap(desk.op(), NAMESPACE, epsilon=10, delta=1e-6)
    desk.reserve("second", steps(1))
    assert verify(desk.engine, key=KEY).ok


def test_a_changed_grant_keeps_what_was_spent(desk: Desk) -> None:
    desk.reserve(grants=["user:ada"])
    taken = desk.statement().grants["user:ada"].used
    desk.grant("user:ada", epsilon=6.0)
    grant = desk.statement().grants["user:ada"]
    assert grant.epsilon == 6
    assert 0 < grant.used < taken


def test_an_exception_is_written_down_and_costs_nothing(desk: Desk) -> None:
    desk.ledger.record_exception(desk.op(), NAMESPACE, "job", approvals=["user:eve", "user:bob"])
    after = desk.statement()
    assert (after.exceptions, after.budget.used) == (1, 0)
    assert verify(desk.engine, key=KEY).ok


def test_namespaces_are_apart(desk: Desk) -> None:
    desk.open(namespace="others")
    desk.reserve()
    assert desk.statement("others").budget.used == 0
    assert namespaces(desk.engine) == [NAMESPACE, "others"]
    with pytest.raises(LedgerConflictError, match="reservation already"):
        desk.reserve(namespace="others")  # one reservation per job, wherever


DENIED: dict[str, tuple[Callable[[Desk], object], type[Exception]]] = {
    "an account twice": (lambda desk: desk.open(), LedgerConflictError),
    "no account": (lambda desk: desk.reserve(namespace="nowhere"), UnknownEntryError),
    "a grant without account": (
        lambda desk: desk.grant("user:ada", namespace="nowhere"),
        UnknownEntryError,
    ),
    "a cap without account": (
        lambda desk: desk.ledger.set_cap(desk.op(), "nowhere", epsilon=1, delta=1e-6),
        UnknownEntryError,
    ),
    "an exception without account": (
        lambda desk: desk.ledger.record_exception(desk.op(), "nowhere", "job", approvals=["a"]),
        UnknownEntryError,
    ),
    "no grant": (lambda desk: desk.reserve("new", grants=["user:eve"]), UnknownEntryError),
    "more than the joint budget": (
        lambda desk: desk.reserve("new", steps(10_000)),
        BudgetExceededError,
    ),
    "more than the grant": (
        lambda desk: desk.reserve("new", steps(200), ["user:ada"]),
        BudgetExceededError,
    ),
    "a job twice": (lambda desk: desk.reserve("held"), LedgerConflictError),
    "no noise": (lambda desk: desk.reserve("new", NonPrivateDpEvent()), GuaranteeError),
    "no such job": (lambda desk: desk.acquire("nothing"), UnknownEntryError),
    "no such job to charge": (lambda desk: desk.charge(1, 1, "nothing"), UnknownEntryError),
    "no such job to release": (
        lambda desk: desk.ledger.release(desk.op(), "nothing"),
        UnknownEntryError,
    ),
    "no such job to hold": (
        lambda desk: desk.ledger.heartbeat("nothing", 1, lease_s=1),
        UnknownEntryError,
    ),
    "a charge without token": (lambda desk: desk.charge(1, 0, "held"), FencedError),
    "a charge with a token to come": (lambda desk: desk.charge(1, 2, "running"), FencedError),
    "more steps than are held": (
        lambda desk: desk.charge(101, 1, "running"),
        LedgerConflictError,
    ),
    "steps of another kind": (
        lambda desk: desk.charge(1, 1, "running", noise=1.4),
        LedgerConflictError,
    ),
    "a commit without token": (
        lambda desk: desk.ledger.commit(desk.op(), "held", 0),
        FencedError,
    ),
    "another worker": (lambda desk: desk.acquire("running", "second"), LeaseHeldError),
    "a job that is over": (lambda desk: desk.acquire("over"), LedgerConflictError),
    "a charge after the commit": (lambda desk: desk.charge(1, 1, "over"), LedgerConflictError),
    "a second commit": (
        lambda desk: desk.ledger.commit(desk.op(), "over", 1),
        LedgerConflictError,
    ),
    "a heartbeat after the commit": (
        lambda desk: desk.ledger.heartbeat("over", 1, lease_s=30),
        LedgerConflictError,
    ),
    "a report after the commit": (
        lambda desk: desk.ledger.check_token("over", 1),
        LedgerConflictError,
    ),
    "release of what runs": (
        lambda desk: desk.ledger.release(desk.op(), "running"),
        LedgerConflictError,
    ),
    "an extension beyond the budget": (
        lambda desk: desk.ledger.extend(desk.op(), "running", 1, steps(10_000)),
        BudgetExceededError,
    ),
    "an extension of what is over": (
        lambda desk: desk.ledger.extend(desk.op(), "over", 1, steps(1)),
        LedgerConflictError,
    ),
    "epsilon 0": (lambda desk: desk.open(0.0, "new"), PrivacyParameterError),
    "epsilon nan": (lambda desk: desk.grant("user:x", float("nan")), PrivacyParameterError),
    "a name with a line break": (lambda desk: desk.reserve("a\nb"), SpecError),
    "an empty name": (lambda desk: desk.open(namespace=""), SpecError),
    "a name too long": (lambda desk: desk.reserve("a" * 201), SpecError),
    "no operation id": (
        lambda desk: desk.ledger.release("", "held"),
        SpecError,
    ),
    "a hold that never ends": (
        lambda desk: desk.ledger.reserve(
            desk.op(), "new", namespace=NAMESPACE, grants=(), event=PLAN, hold_s=1e9
        ),
        SpecError,
    ),
    "a lease of no time": (
        lambda desk: desk.ledger.acquire(desk.op(), "held", worker="w", lease_s=0),
        SpecError,
    ),
}


@pytest.mark.parametrize("name", DENIED)
def test_what_is_denied_has_changed_nothing(desk: Desk, name: str) -> None:
    desk.reserve("held")
    desk.started("running")
    desk.started("over")
    desk.ledger.commit(desk.op(), "over", 1)
    before = desk.rows()
    attempt, error = DENIED[name]
    with pytest.raises(error):
        attempt(desk)
    assert desk.rows() == before


def test_errors_of_the_ledger_are_of_one_tree() -> None:
    assert all(
        issubclass(error, LedgerError | SpecError | GuaranteeError) for _, error in DENIED.values()
    )


def test_another_key_writes_nothing(desk: Desk) -> None:
    before = desk.rows()
    stranger = Desk(desk.engine, desk.clock, SealKey.generate(), numbers=desk.numbers)
    for attempt in (stranger.reserve, stranger.statement, lambda: stranger.open(namespace="new")):
        with pytest.raises(LedgerTamperedError, match="key is another"):
            attempt()
    assert desk.rows() == before


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
def test_an_edited_balance_is_noticed_when_it_is_used(desk: Desk, change: str) -> None:
    token = desk.started(grants=["user:ada"])
    with desk.engine.begin() as connection:
        connection.execute(text(change))
    with pytest.raises(LedgerTamperedError):
        desk.charge(1, token)


def test_an_account_that_was_put_back_is_noticed_when_it_is_used(desk: Desk) -> None:
    """Its seal is true, of an earlier time; but the chain goes on after it."""
    token = desk.started()
    columns = ", ".join(column.name for column in accounts.columns)
    with desk.engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE backup AS SELECT {columns} FROM ledger_accounts"))
    desk.charge(100, token)
    with desk.engine.begin() as connection:
        row = connection.execute(text("SELECT * FROM backup")).one()
        connection.execute(update(accounts).values(row._asdict()))
        connection.execute(text("DROP TABLE backup"))
    with pytest.raises(LedgerTamperedError, match="do not end where"):
        desk.reserve("second")


def test_a_quote_is_what_reserve_would_say(desk: Desk) -> None:
    def asked(count: int) -> object:
        return room(desk.engine, KEY, namespace=NAMESPACE, grants=["user:ada"]).quote(steps(count))

    before = desk.rows()
    small, large, huge = asked(100), asked(300), asked(3000)
    assert desk.rows() == before
    assert small.admitted  # type: ignore[attr-defined]
    assert large.fits == {None: True, "user:ada": False}  # type: ignore[attr-defined]
    assert huge.fits == {None: False, "user:ada": False}  # type: ignore[attr-defined]
    desk.reserve(plan=steps(100), grants=["user:ada"])
    assert asked(100).used_shares[None] == pytest.approx(small.needed_shares[None])  # type: ignore[attr-defined]
    with pytest.raises(UnknownEntryError, match="user:eve"):
        room(desk.engine, KEY, namespace=NAMESPACE, grants=["user:eve"]).quote(steps(1))
    with pytest.raises(UnknownEntryError, match="no account"):
        room(desk.engine, KEY, namespace="nowhere", grants=[]).quote(steps(1))


def test_what_is_not_there_has_no_statement(desk: Desk) -> None:
    with pytest.raises(UnknownEntryError):
        desk.statement("nowhere")
    with pytest.raises(UnknownEntryError):
        job_statements(desk.engine, KEY, "nowhere")
    with pytest.raises(UnknownEntryError):
        job_report(desk.engine, KEY, "nothing")


def test_a_clock_that_goes_back_harms_nobody(desk: Desk) -> None:
    token = desk.started()
    desk.clock.advance(-10_000)
    desk.charge(10, token)
    desk.ledger.commit(desk.op(), "job", token)
    assert verify(desk.engine, key=KEY).ok

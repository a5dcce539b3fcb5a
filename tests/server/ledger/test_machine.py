"""Any sequence of operations: the ledger answers as a simple model in memory does."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from dp_accounting.dp_event import ComposedDpEvent, DpEvent
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine

from support.clock import Clock
from support.ledger import KEY, LedgerWorld, steps
from taciturn.accounting.compose import epsilon
from taciturn.accounting.filter import RenyiCost, RenyiFilter, event_cost
from taciturn.errors import (
    BudgetExceededError,
    FencedError,
    LeaseHeldError,
    LedgerConflictError,
    LedgerError,
)
from taciturn.server.ledger import verify

NOISES = (1.0, 2.0)
HOLDERS = ("user:ada", "group:all")
CAPS = {None: 6.0, "user:ada": 3.0, "group:all": 5.0}
DELTA = 1e-6
_NUMBERS = itertools.count()


@dataclass
class ModelJob:
    grants: tuple[str, ...]
    held: Counter[float]
    until: float
    charged: Counter[float] = field(default_factory=Counter)
    token: int = 0
    status: str = "open"


class Machine(RuleBasedStateMachine):
    """Operations with random arguments, right ones and wrong ones."""

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        number = next(_NUMBERS)
        self.namespace = f"machine-{number}"
        self.world = LedgerWorld(self.engine, Clock(), numbers=_NUMBERS)
        self.caps = dict(CAPS)
        self.highest = self.caps[None]
        self.jobs: dict[str, ModelJob] = {}
        self.now = 0.0
        self.last: Any = None
        self.world.open(self.caps[None], self.namespace)
        for holder in HOLDERS:
            self.world.grant(holder, self.caps[holder], self.namespace)

    @rule(
        noise=st.sampled_from(NOISES),
        count=st.sampled_from([1, 10, 60, 300, 3000]),
        grants=st.sets(st.sampled_from(HOLDERS)),
    )
    def reserve(self, noise: float, count: int, grants: set[str]) -> None:
        name = f"{self.namespace}-job-{len(self.jobs)}"
        names = tuple(sorted(grants))
        room = self.has_room(names, steps(count, noise))
        self.does(
            None if room else BudgetExceededError,
            lambda op: self.world.ledger.reserve(
                op,
                name,
                namespace=self.namespace,
                grants=names,
                event=steps(count, noise),
                hold_s=100,
            ),
        )
        if room:
            self.jobs[name] = ModelJob(names, Counter({noise: count}), self.now + 100)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), takeover=st.booleans())
    def acquire(self, data: st.DataObject, takeover: bool) -> None:
        name, job = self.some_job(data)
        refused: type[LedgerError] | None = None
        if job.status != "open":
            refused = LedgerConflictError
        elif job.token and job.until > self.now and not takeover:
            refused = LeaseHeldError
        self.does(
            refused,
            lambda op: self.world.ledger.acquire(
                op, name, worker="w", lease_s=30, takeover=takeover
            ),
        )
        if refused is None:
            job.token, job.until = job.token + 1, self.now + 30

    @precondition(lambda self: self.jobs)
    @rule(
        data=st.data(),
        noise=st.sampled_from(NOISES),
        count=st.sampled_from([1, 5, 60]),
        behind=st.sampled_from([0, 0, 0, 1]),
    )
    def charge(self, data: st.DataObject, noise: float, count: int, behind: int) -> None:
        name, job = self.some_job(data)
        token = job.token - behind
        refused = self.refused(job, token)
        if refused is None and job.held[noise] < count:
            refused = LedgerConflictError
        self.does(
            refused, lambda op: self.world.ledger.charge(op, name, token, steps(count, noise))
        )
        if refused is None:
            job.held[noise] -= count
            job.charged[noise] += count

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), noise=st.sampled_from(NOISES), count=st.sampled_from([1, 100, 3000]))
    def extend(self, data: st.DataObject, noise: float, count: int) -> None:
        name, job = self.some_job(data)
        refused = self.refused(job, job.token)
        if refused is None and not self.has_room(job.grants, steps(count, noise)):
            refused = BudgetExceededError
        self.does(
            refused,
            lambda op: self.world.ledger.extend(op, name, job.token, steps(count, noise)),
        )
        if refused is None:
            job.held[noise] += count

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), behind=st.sampled_from([0, 0, 1]))
    def commit(self, data: st.DataObject, behind: int) -> None:
        name, job = self.some_job(data)
        token = job.token - behind
        refused = self.refused(job, token)
        self.does(refused, lambda op: self.world.ledger.commit(op, name, token))
        if refused is None:
            job.status, job.held = "committed", Counter()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name, job = self.some_job(data)
        wrong = job.status != "open" or job.token > 0
        refused = LedgerConflictError if wrong else None
        self.does(refused, lambda op: self.world.ledger.release(op, name))
        if refused is None:
            job.status, job.held = "released", Counter()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), lease_s=st.sampled_from([1, 50]))
    def heartbeat(self, data: st.DataObject, lease_s: float) -> None:
        name, job = self.some_job(data)
        refused = self.refused(job, job.token)
        self.does(refused, lambda op: self.world.ledger.heartbeat(name, job.token, lease_s=lease_s))
        self.last = None  # a heartbeat that is repeated later is another one
        if refused is None:
            job.until = max(job.until, self.now + lease_s)

    @rule(seconds=st.sampled_from([1, 20, 120]))
    def wait(self, seconds: float) -> None:
        self.world.clock.forward(seconds)
        self.now += seconds

    @rule()
    def reap(self) -> None:
        gone = {
            name
            for name, job in self.jobs.items()
            if job.status == "open" and job.until <= self.now
        }
        found = self.world.ledger.reap()
        assert {name for name in found if name.startswith(f"{self.namespace}-")} == gone
        if gone:
            self.last = None  # its worker is fenced off, and would hear that
        for name in gone:
            job = self.jobs[name]
            job.status, job.held, job.token = "expired", Counter(), job.token + 1

    @rule(holder=st.sampled_from([None, *HOLDERS]), cap=st.sampled_from([0.5, 3.0, 6.0, 9.0]))
    def change_cap(self, holder: str | None, cap: float) -> None:
        if holder is None:
            self.does(
                None,
                lambda op: self.world.ledger.set_cap(op, self.namespace, epsilon=cap, delta=DELTA),
            )
            self.highest = max(self.highest, cap)
        else:
            self.world.grant(holder, cap, self.namespace)
        self.caps[holder] = cap

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat(self) -> None:
        """The answer was lost; nothing else was asked in between."""
        operation, call, answer = self.last
        assert call(operation) == answer

    @invariant()
    def balances_are_those_of_the_model(self) -> None:
        statement = self.world.statement(self.namespace)
        budgets = {None: statement.budget, **statement.grants}
        for holder, budget in budgets.items():
            charged = self.cost(holder, lambda job: job.charged)
            held = self.cost(holder, lambda job: job.held)
            cap = RenyiFilter(self.caps[holder], DELTA)
            assert budget.charged == cap.share(charged)
            assert budget.used == cap.share(charged + held)
        status = {name: job.status for name, job in self.jobs.items()}
        assert self.world.statuses(self.namespace) == status

    def teardown(self) -> None:
        spent = [
            steps(count, noise)
            for job in self.jobs.values()
            for noise, count in job.charged.items()
            if count
        ]
        assert epsilon(ComposedDpEvent(spent), DELTA) <= self.highest
        assert verify(self.engine, key=KEY).ok

    def does(self, refused: type[LedgerError] | None, call: Any) -> None:
        """The call is refused as the model says, or goes through."""
        operation = self.world.op()
        if refused is None:
            self.last = operation, call, call(operation)
            return
        with pytest.raises(refused):
            call(operation)

    def some_job(self, data: st.DataObject) -> tuple[str, ModelJob]:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        self.last = None
        return name, self.jobs[name]

    def refused(self, job: ModelJob, token: int) -> type[LedgerError] | None:
        if token != job.token or token == 0:
            return FencedError
        return None if job.status == "open" else LedgerConflictError

    def cost(self, holder: str | None, steps_of: Any) -> RenyiCost:
        total = RenyiCost.nothing()
        for job in self.jobs.values():
            if holder is None or holder in job.grants:
                for noise, count in steps_of(job).items():
                    if count:
                        total += event_cost(steps(count, noise))
        return total

    def has_room(self, grants: tuple[str, ...], event: DpEvent) -> bool:
        return all(
            RenyiFilter(self.caps[holder], DELTA).admits(
                self.cost(holder, lambda job: job.charged + job.held) + event_cost(event)
            )
            for holder in (None, *grants)
        )


def test_the_ledger_does_what_the_model_does(engine: Engine) -> None:
    fast = engine.dialect.name == "sqlite"
    kind = type("BoundMachine", (Machine,), {"engine": engine})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=20 if fast else 8,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

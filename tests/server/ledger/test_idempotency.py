"""An operation that is repeated with its id is answered as at first, and happens once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from support.ledger import NAMESPACE, PLAN, LedgerWorld, steps
from taciturn.errors import LedgerConflictError
from taciturn.server import database

Operation = Callable[[LedgerWorld, str], object]

OPERATIONS: dict[str, Operation] = {
    "open": lambda world, op: world.ledger.open_account(op, "new", epsilon=1, delta=1e-6),
    "cap": lambda world, op: world.ledger.set_cap(op, NAMESPACE, epsilon=9, delta=1e-6),
    "grant": lambda world, op: world.ledger.set_grant(
        op, NAMESPACE, "user:bob", epsilon=1, delta=1e-6
    ),
    "exception": lambda world, op: world.ledger.record_exception(
        op, NAMESPACE, "wild", approvals=["user:eve"]
    ),
    "reserve": lambda world, op: world.ledger.reserve(
        op, "new", namespace=NAMESPACE, grants=["user:ada"], event=steps(5), hold_s=60
    ),
    "extend": lambda world, op: world.ledger.extend(op, "running", 1, steps(5)),
    "acquire": lambda world, op: world.ledger.acquire(op, "held", worker="w", lease_s=30),
    "charge": lambda world, op: world.ledger.charge(op, "running", 1, steps(5)),
    "commit": lambda world, op: world.ledger.commit(op, "running", 1),
    "release": lambda world, op: world.ledger.release(op, "held"),
}


@pytest.fixture
def busy(world: LedgerWorld) -> LedgerWorld:
    world.reserve("held")
    world.started("running")
    return world


@pytest.mark.parametrize("name", OPERATIONS)
def test_repeated_is_answered_the_same(busy: LedgerWorld, name: str) -> None:
    first = OPERATIONS[name](busy, "the-id")
    after = busy.rows()
    busy.clock.forward(5)
    assert OPERATIONS[name](busy, "the-id") == first
    assert busy.rows() == after


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_id_is_not_used_twice_for_different_things(busy: LedgerWorld, name: str) -> None:
    other = "release" if name != "release" else "charge"
    OPERATIONS[name](busy, "the-id")
    after = busy.rows()
    with pytest.raises(LedgerConflictError, match="used for something else"):
        OPERATIONS[other](busy, "the-id")
    assert busy.rows() == after


def test_other_arguments_are_something_else(busy: LedgerWorld) -> None:
    busy.ledger.charge("the-id", "running", 1, steps(5))
    with pytest.raises(LedgerConflictError, match="used for something else"):
        busy.ledger.charge("the-id", "running", 1, steps(6))


def test_whole_numbers_and_floats_ask_for_the_same(world: LedgerWorld) -> None:
    first = world.ledger.open_account("the-id", "new", epsilon=1, delta=1e-6)
    assert world.ledger.open_account("the-id", "new", epsilon=1.0, delta=1e-6) == first


def test_what_was_refused_is_decided_anew(world: LedgerWorld) -> None:
    def ask() -> object:
        return world.ledger.reserve(
            "the-id", "big", namespace=NAMESPACE, grants=["user:ada"], event=PLAN, hold_s=60
        )

    world.reserve("first", grants=["user:ada"])
    with pytest.raises(Exception, match="user:ada"):
        ask()
    world.ledger.release(world.op(), "first")
    assert ask() == ask()


def test_a_commit_whose_answer_was_lost_happens_once(
    world: LedgerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the commit: the transaction runs again, and finds itself done."""
    token = world.started()
    once = database._once
    lost = []

    def losing(engine: object, work: Callable[[Connection], object], read_only: bool) -> object:
        answer = once(engine, work, read_only)  # type: ignore[arg-type]
        if not lost:
            lost.append(answer)
            raise database.OperationalError("COMMIT", {}, Exception("the line went dead"))
        return answer

    before = world.statement().entries
    monkeypatch.setattr(database, "_once", losing)
    world.charge(10, token)
    monkeypatch.undo()
    assert lost
    assert world.statement().entries == before + 1

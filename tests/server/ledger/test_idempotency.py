"""An operation that is repeated with its id is answered as at first, and happens once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from desk import NAMESPACE, PLAN, Desk, steps
from taciturn.errors import LedgerConflictError
from taciturn.server import database

Operation = Callable[[Desk, str], object]

OPERATIONS: dict[str, Operation] = {
    "open": lambda desk, op: desk.ledger.open_account(op, "new", epsilon=1, delta=1e-6),
    "cap": lambda desk, op: desk.ledger.set_cap(op, NAMESPACE, epsilon=9, delta=1e-6),
    "grant": lambda desk, op: desk.ledger.set_grant(
        op, NAMESPACE, "user:bob", epsilon=1, delta=1e-6
    ),
    "exception": lambda desk, op: desk.ledger.record_exception(
        op, NAMESPACE, "wild", approvals=["user:eve"]
    ),
    "reserve": lambda desk, op: desk.ledger.reserve(
        op, "new", namespace=NAMESPACE, grants=["user:ada"], event=steps(5), hold_s=60
    ),
    "extend": lambda desk, op: desk.ledger.extend(op, "running", 1, steps(5)),
    "acquire": lambda desk, op: desk.ledger.acquire(op, "held", worker="w", lease_s=30),
    "charge": lambda desk, op: desk.ledger.charge(op, "running", 1, steps(5)),
    "commit": lambda desk, op: desk.ledger.commit(op, "running", 1),
    "release": lambda desk, op: desk.ledger.release(op, "held"),
}


@pytest.fixture
def busy(desk: Desk) -> Desk:
    desk.reserve("held")
    desk.started("running")
    return desk


@pytest.mark.parametrize("name", OPERATIONS)
def test_repeated_is_answered_the_same(busy: Desk, name: str) -> None:
    first = OPERATIONS[name](busy, "the-id")
    after = busy.rows()
    busy.clock.advance(5)
    assert OPERATIONS[name](busy, "the-id") == first
    assert busy.rows() == after


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_id_is_not_used_twice_for_different_things(busy: Desk, name: str) -> None:
    other = "release" if name != "release" else "charge"
    OPERATIONS[name](busy, "the-id")
    after = busy.rows()
    with pytest.raises(LedgerConflictError, match="used for something else"):
        OPERATIONS[other](busy, "the-id")
    assert busy.rows() == after


def test_other_arguments_are_something_else(busy: Desk) -> None:
    busy.ledger.charge("the-id", "running", 1, steps(5))
    with pytest.raises(LedgerConflictError, match="used for something else"):
        busy.ledger.charge("the-id", "running", 1, steps(6))


def test_whole_numbers_and_floats_ask_for_the_same(desk: Desk) -> None:
    first = desk.ledger.open_account("the-id", "new", epsilon=1, delta=1e-6)
    assert desk.ledger.open_account("the-id", "new", epsilon=1.0, delta=1e-6) == first


def test_what_was_refused_is_decided_anew(desk: Desk) -> None:
    def ask() -> object:
        return desk.ledger.reserve(
            "the-id", "big", namespace=NAMESPACE, grants=["user:ada"], event=PLAN, hold_s=60
        )

    desk.reserve("first", grants=["user:ada"])
    with pytest.raises(Exception, match="user:ada"):
        ask()
    desk.ledger.release(desk.op(), "first")
    assert ask() == ask()


def test_a_commit_whose_answer_was_lost_happens_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the commit: the transaction runs again, and finds itself done."""
    token = desk.started()
    once = database._once
    lost = []

    def losing(engine: object, work: Callable[[Connection], object], read_only: bool) -> object:
        answer = once(engine, work, read_only)  # type: ignore[arg-type]
        if not lost:
            lost.append(answer)
            raise database.OperationalError("COMMIT", {}, Exception("the line went dead"))
        return answer

    before = desk.statement().entries
    monkeypatch.setattr(database, "_once", losing)
    desk.charge(10, token)
    monkeypatch.undo()
    assert lost
    assert desk.statement().entries == before + 1

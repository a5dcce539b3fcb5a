"""The rules refuse entries that no operation would write: what `verify` meets in a forged chain."""

from __future__ import annotations

from typing import Any

import pytest

from support.ledger import NAMESPACE, steps
from taciturn.accounting.events import event_to_dict
from taciturn.accounting.filter import RenyiCost, event_cost, step_cost
from taciturn.accounting.privacy_loss import SampledGaussian
from taciturn.errors import GuaranteeError, LedgerConflictError, LedgerError
from taciturn.server.ledger.entry import (
    START,
    Acquired,
    Charged,
    Closed,
    Details,
    Entry,
    Extended,
    Opened,
    Reserved,
    StepPrice,
)
from taciturn.server.ledger.rules import applied, priced_steps
from taciturn.server.ledger.state import LedgerState

STEP = SampledGaussian(0.05, 1.5)
UNIT = step_cost(STEP)
NOTHING = RenyiCost.nothing().units


def price(count: int = 10, unit: RenyiCost = UNIT) -> StepPrice:
    return StepPrice(sampling_probability=0.05, noise_multiplier=1.5, count=count, unit=unit.units)


def reserved(**changes: Any) -> Reserved:
    fields: dict[str, Any] = {
        "job": "job",
        "grants": (),
        "event": event_to_dict(steps(10)),
        "prices": (price(),),
        "cost": (UNIT * 10).units,
        "accountant": "test",
        "hold_until_ms": 1000,
    }
    return Reserved.model_validate(fields | changes)


def after(*details: Details, state: LedgerState | None = None) -> LedgerState:
    """The state after these, from an account that is open."""
    if state is None:
        opened = Opened(ordinal=1, epsilon=8.0, delta=1e-6, filter="test")
        state = after(opened, state=LedgerState())
    for each in details:
        account = state.account
        entry = Entry(
            namespace=NAMESPACE,
            sequence=account.entries + 1 if account else 1,
            operation_id="op",
            request="",
            recorded_at_ms=500,
            details=each,
            previous=account.head if account else START,
        )
        state = applied(state, entry)
    return state


ACQUIRED = Acquired(job="job", token=1, worker="w", takeover=False, lease_until_ms=900)
CHARGED = Charged(job="job", token=1, event=event_to_dict(steps(4)), cost=(UNIT * 4).units)


def test_a_chain_by_hand() -> None:
    left = (UNIT * 6).units
    closed = Closed(job="job", token=1, reason="committed", freed=left)
    state = after(reserved(), ACQUIRED, CHARGED, closed)
    assert state.account is not None
    assert state.account.balance.charged == UNIT * 4
    assert state.account.balance.reserved == RenyiCost.nothing()
    assert state.jobs["job"].charged_event.events[0] == steps(4)


FORGED: dict[str, list[Details]] = {
    "a cost that is not its prices'": [reserved(cost=(UNIT * 9).units)],
    "prices of other steps": [reserved(event=event_to_dict(steps(10, noise=1.0)))],
    "prices of fewer steps": [reserved(prices=(price(9),), cost=(UNIT * 9).units)],
    "a step priced twice": [reserved(prices=(price(4), price(10)), cost=(UNIT * 14).units)],
    "an event spelled otherwise": [
        reserved(event=dict(reversed(event_to_dict(steps(10)).items())) | {"count": 10.0})
    ],
    "grants in another order": [reserved(grants=("b", "a"))],
    "a grant twice": [reserved(grants=("a", "a"))],
    "a token left out": [reserved(), ACQUIRED.model_copy(update={"token": 2})],
    "a token given again": [
        reserved(),
        ACQUIRED,
        ACQUIRED.model_copy(update={"takeover": True}),
    ],
    "a charge below its price": [
        reserved(),
        ACQUIRED,
        CHARGED.model_copy(update={"cost": (UNIT * 3).units}),
    ],
    "a charge before the worker": [reserved(), CHARGED],
    "more freed than was held": [
        reserved(),
        ACQUIRED,
        CHARGED,
        Closed(job="job", token=1, reason="committed", freed=(UNIT * 10).units),
    ],
    "less freed than was held": [
        reserved(),
        ACQUIRED,
        CHARGED,
        Closed(job="job", token=1, reason="committed", freed=NOTHING),
    ],
    "released though it started": [
        reserved(),
        ACQUIRED,
        Closed(job="job", token=0, reason="released", freed=(UNIT * 10).units),
    ],
    "expired too early": [
        reserved(),
        ACQUIRED,
        Closed(job="job", token=2, reason="expired", freed=(UNIT * 10).units),
    ],
    "expired with its token": [
        reserved(hold_until_ms=400),
        Closed(job="job", token=0, reason="expired", freed=(UNIT * 10).units),
    ],
    "an extension at a lower price": [
        reserved(),
        ACQUIRED,
        Extended(
            job="job",
            token=1,
            event=event_to_dict(steps(10)),
            prices=(price(unit=RenyiCost.nothing()),),
            cost=NOTHING,
            accountant="test",
        ),
    ],
    "opened twice": [Opened(ordinal=2, epsilon=1.0, delta=1e-6, filter="test")],
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_entry_is_refused(name: str) -> None:
    *fine, forged = FORGED[name]
    state = after(*fine)
    with pytest.raises((LedgerError, ValueError)):
        after(forged, state=state)


def test_an_entry_follows_the_one_before() -> None:
    state = after()
    for sequence, previous in ((1, START), (3, state.account.head), (2, START)):  # type: ignore[union-attr]
        entry = Entry(NAMESPACE, sequence, "op", "", 0, reserved(), previous)
        with pytest.raises(LedgerConflictError, match="does not follow"):
            applied(state, entry)


def test_a_refused_entry_leaves_the_book_as_it_is() -> None:
    state = after(reserved())
    with pytest.raises(LedgerConflictError):
        after(reserved(), state=state)
    assert state == after(reserved())


def test_steps_without_noise_have_no_price() -> None:
    with pytest.raises(GuaranteeError, match="needs approval"):
        priced_steps({"type": "NonPrivateDpEvent"})
    assert event_cost(steps(10)) == UNIT * 10

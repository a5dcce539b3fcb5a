"""State that a namespace's entries add up to: budgets, jobs, end of the chain. Plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from dp_accounting.dp_event import ComposedDpEvent, DpEvent

from taciturn.accounting.events import dpsgd_event
from taciturn.accounting.filter import RenyiCost, RenyiFilter
from taciturn.accounting.privacy_loss import SampledGaussian

Status = Literal["open", "committed", "released", "expired"]


@dataclass(frozen=True, slots=True)
class Balance:
    """A budget and what it has gone to: the namespace's own, or a grant's.

    Attributes:
        charged: spent for good; it ran, or may have run.
        reserved: held by open jobs and not charged yet.
    """

    epsilon: float
    delta: float
    charged: RenyiCost = field(default_factory=RenyiCost.nothing)
    reserved: RenyiCost = field(default_factory=RenyiCost.nothing)

    @property
    def used(self) -> RenyiCost:
        """Cost that is no longer there for a new job."""
        return self.charged + self.reserved

    def has_room(self, cost: RenyiCost) -> bool:
        """True if a further `cost` is within the budget."""
        return _filter(self.epsilon, self.delta).admits(self.used + cost)

    def share(self, cost: RenyiCost) -> float:
        """Share of the budget that a cost is, as `RenyiFilter.share` counts it."""
        return _share(self.epsilon, self.delta, cost)

    def left_after(self, cost: RenyiCost) -> float:
        """Share that a further cost would leave, by the filter; below 0 where there is no room.

        Shares do not add up: together, jobs of unlike kinds take more than their shares by
        themselves, as no one order is the best for all of them.
        """
        return 1 - self.share(self.used + cost)

    @property
    def left(self) -> float:
        """Share that is neither spent nor held."""
        return 1 - self.share(self.used)

    def held_share(self, charged: RenyiCost, reserved: RenyiCost) -> float:
        """Share that `reserved` adds to `charged`: spent and held then come to both together."""
        return self.share(charged + reserved) - self.share(charged)

    def epsilon_of(self, cost: RenyiCost) -> float:
        """Epsilon that a cost comes to at the budget's delta, by `RenyiFilter.spent_epsilon`."""
        return _filter(self.epsilon, self.delta).spent_epsilon(cost)

    def hold(self, cost: RenyiCost) -> Balance:
        """Reserve."""
        return replace(self, reserved=self.reserved + cost)

    def charge(self, cost: RenyiCost) -> Balance:
        """Spend what was held."""
        return replace(self, reserved=self.reserved - cost, charged=self.charged + cost)

    def uncharge(self, cost: RenyiCost) -> Balance:
        """Undo `charge`: for balances that are shown, and never for those that are kept."""
        return replace(self, reserved=self.reserved + cost, charged=self.charged - cost)

    def free(self, cost: RenyiCost) -> Balance:
        """Give back what was held."""
        return replace(self, reserved=self.reserved - cost)


_filter = lru_cache(maxsize=1024)(RenyiFilter)


@lru_cache(maxsize=4096)
def _share(epsilon: float, delta: float, cost: RenyiCost) -> float:
    """Balances are looked at far more often than they change."""
    return _filter(epsilon, delta).share(cost)


@dataclass(frozen=True, slots=True)
class ReservedSteps:
    """One distinct step of a job: its price when it was reserved, how many are held and charged."""

    step: SampledGaussian
    unit: RenyiCost
    reserved: int
    charged: int = 0


@dataclass(frozen=True, slots=True)
class JobReservation:
    """A reservation and what became of it.

    Attributes:
        grants: sub-caps that it counts against, besides the namespace's budget.
        token: the fencing token that counts now; 0 until a worker takes the job.
        lease_until_ms: when the worker counts as gone; before that, how long the plan is held.
    """

    job: str
    grants: tuple[str, ...]
    parts: tuple[ReservedSteps, ...]
    lease_until_ms: int
    status: Status = "open"
    token: int = 0
    worker: str = ""

    @property
    def reserved(self) -> RenyiCost:
        """The cost of what was reserved and never charged."""
        return total((part.unit, part.reserved) for part in self.parts)

    @property
    def charged(self) -> RenyiCost:
        """The cost of what was charged."""
        return total((part.unit, part.charged) for part in self.parts)

    @property
    def charged_event(self) -> DpEvent:
        """All charged steps, composed: what the job is reported to have cost."""
        return composed((part.step, part.charged) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Account:
    """A namespace: its budget, and how many entries its chain has, ending in `head`.

    Attributes:
        ordinal: 1 for the first namespace of the ledger, and so on.
        exceptions: releases without guarantee, which the budget does not cover.
    """

    namespace: str
    ordinal: int
    balance: Balance
    exceptions: int
    entries: int
    head: str


@dataclass(frozen=True, slots=True)
class LedgerState:
    """A namespace, or as much of it as an operation needs.

    `account` is None before the first entry.
    """

    account: Account | None = None
    grants: Mapping[str, Balance] = field(default_factory=dict)
    jobs: Mapping[str, JobReservation] = field(default_factory=dict)

    def with_job(self, job: JobReservation) -> LedgerState:
        """The same, with this job as it is now."""
        return replace(self, jobs={**self.jobs, job.job: job})

    def with_grant(self, holder: str, balance: Balance) -> LedgerState:
        """The same, with this grant as it is now."""
        return replace(self, grants={**self.grants, holder: balance})

    def with_account(self, account: Account) -> LedgerState:
        """The same, with the account as it is now."""
        return replace(self, account=account)


def total(counted: Iterable[tuple[RenyiCost, int]]) -> RenyiCost:
    """The cost of steps, each so many times."""
    return sum((unit * count for unit, count in counted), RenyiCost.nothing())


def composed(counted: Iterable[tuple[SampledGaussian, int]]) -> DpEvent:
    """The event of steps, each so many times; those taken 0 times are left out."""
    return ComposedDpEvent(
        [
            dpsgd_event(
                sampling_probability=step.sampling_probability,
                noise_multiplier=step.noise_multiplier,
                steps=count,
            )
            for step, count in counted
            if count
        ]
    )

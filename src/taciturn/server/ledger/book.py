"""What a namespace's entries add up to: budgets, jobs, and where the chain ends. Plain values."""

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
class Purse:
    """A budget and what it has gone to: the namespace's own, or a grant's.

    Attributes:
        charged: spent for good; it ran, or may have run.
        held: reserved by open jobs and not charged yet.
    """

    epsilon: float
    delta: float
    charged: RenyiCost = field(default_factory=RenyiCost.nothing)
    held: RenyiCost = field(default_factory=RenyiCost.nothing)

    @property
    def taken(self) -> RenyiCost:
        """What is no longer there for a new job."""
        return self.charged + self.held

    def has_room(self, cost: RenyiCost) -> bool:
        """Whether a further `cost` is within the budget."""
        return _filter(self.epsilon, self.delta).admits(self.taken + cost)

    def share(self, cost: RenyiCost) -> float:
        """How much of the budget a cost is, as `RenyiFilter.share` counts it."""
        return _share(self.epsilon, self.delta, cost)

    def hold(self, cost: RenyiCost) -> Purse:
        """Reserve."""
        return replace(self, held=self.held + cost)

    def charge(self, cost: RenyiCost) -> Purse:
        """Spend what was held."""
        return replace(self, held=self.held - cost, charged=self.charged + cost)

    def uncharge(self, cost: RenyiCost) -> Purse:
        """What `charge` has done, undone: for balances that are shown, and never for the books."""
        return replace(self, held=self.held + cost, charged=self.charged - cost)

    def free(self, cost: RenyiCost) -> Purse:
        """Give back what was held."""
        return replace(self, held=self.held - cost)


_filter = lru_cache(maxsize=1024)(RenyiFilter)


@lru_cache(maxsize=4096)
def _share(epsilon: float, delta: float, cost: RenyiCost) -> float:
    """Balances are looked at far more often than they change."""
    return _filter(epsilon, delta).share(cost)


@dataclass(frozen=True, slots=True)
class Part:
    """One distinct step of a job: its price when it was reserved, how many are held and charged."""

    step: SampledGaussian
    unit: RenyiCost
    held: int
    charged: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A reservation and what became of it.

    Attributes:
        grants: sub-caps that it counts against, besides the namespace's budget.
        token: the fencing token that counts now; 0 until a worker takes the job.
        lease_until_ms: when the worker counts as gone; before that, how long the plan is held.
    """

    job: str
    grants: tuple[str, ...]
    parts: tuple[Part, ...]
    lease_until_ms: int
    status: Status = "open"
    token: int = 0
    worker: str = ""

    @property
    def held(self) -> RenyiCost:
        """The cost of what was reserved and never charged."""
        return total((part.unit, part.held) for part in self.parts)

    @property
    def charged(self) -> RenyiCost:
        """The cost of what was charged."""
        return total((part.unit, part.charged) for part in self.parts)

    @property
    def charged_event(self) -> DpEvent:
        """All charged steps, composed: what the job is reported to have cost."""
        return composed((part.step, part.charged) for part in self.parts)

    @property
    def held_event(self) -> DpEvent:
        """All steps that are held, composed."""
        return composed((part.step, part.held) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Account:
    """A namespace: its budget, and how many entries its chain has, ending in `head`.

    Attributes:
        ordinal: 1 for the first namespace of the ledger, and so on.
        exceptions: releases without guarantee, which the budget does not cover.
    """

    namespace: str
    ordinal: int
    purse: Purse
    exceptions: int
    entries: int
    head: str


@dataclass(frozen=True, slots=True)
class Book:
    """A namespace, or as much of it as an operation needs.

    `account` is None before the first entry.
    """

    account: Account | None = None
    grants: Mapping[str, Purse] = field(default_factory=dict)
    jobs: Mapping[str, Job] = field(default_factory=dict)

    def with_job(self, job: Job) -> Book:
        """The same, with this job as it is now."""
        return replace(self, jobs={**self.jobs, job.job: job})

    def with_grant(self, holder: str, purse: Purse) -> Book:
        """The same, with this grant as it is now."""
        return replace(self, grants={**self.grants, holder: purse})

    def with_account(self, account: Account) -> Book:
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

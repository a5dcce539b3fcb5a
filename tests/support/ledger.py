"""A ledger on a test's database, with a clock that the test moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dp_accounting.dp_event import DpEvent
from sqlalchemy import Engine, select

from support.clock import Clock
from taciturn.accounting.events import dpsgd_event
from taciturn.server.ledger import Ledger, NamespaceStatement, SealKey, job_statements, statement
from taciturn.server.ledger.tables import metadata

NAMESPACE = "patients"
KEY = SealKey(bytes(range(32)))


def steps(count: int, noise: float = 1.5) -> DpEvent:
    """So many steps of DP-SGD, of one kind for each noise."""
    return dpsgd_event(sampling_probability=0.05, noise_multiplier=noise, steps=count)


PLAN = steps(100)
"""7.9% of epsilon 8, 54% of epsilon 3."""


@dataclass
class LedgerWorld:
    """A ledger, and short words for what tests do with it."""

    engine: Engine
    clock: Clock = field(default_factory=Clock)
    key: SealKey = KEY
    kind: type[Ledger] = Ledger
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.ledger = self.kind(self.engine, self.key, clock=self.clock)

    def op(self) -> str:
        """A new operation id."""
        return f"op-{next(self.numbers)}"

    def open(self, epsilon: float = 8.0, namespace: str = NAMESPACE) -> None:
        self.ledger.open_account(self.op(), namespace, epsilon=epsilon, delta=1e-6)

    def grant(self, holder: str, epsilon: float = 3.0, namespace: str = NAMESPACE) -> None:
        self.ledger.set_grant(self.op(), namespace, holder, epsilon=epsilon, delta=1e-6)

    def reserve(
        self,
        job: str = "job",
        plan: DpEvent = PLAN,
        grants: Sequence[str] = (),
        namespace: str = NAMESPACE,
    ) -> None:
        self.ledger.reserve(
            self.op(), job, namespace=namespace, grants=grants, event=plan, hold_s=3600
        )

    def acquire(self, job: str = "job", worker: str = "worker", takeover: bool = False) -> int:
        lease = self.ledger.acquire(self.op(), job, worker=worker, lease_s=30, takeover=takeover)
        return lease.token

    def charge(self, count: int, token: int, job: str = "job", noise: float = 1.5) -> None:
        self.ledger.charge(self.op(), job, token, steps(count, noise))

    def started(self, job: str = "job", plan: DpEvent = PLAN, grants: Sequence[str] = ()) -> int:
        """A job with a worker; returns its token."""
        self.reserve(job, plan, grants)
        return self.acquire(job)

    def statement(self, namespace: str = NAMESPACE) -> NamespaceStatement:
        return statement(self.engine, self.key, namespace)

    def statuses(self, namespace: str = NAMESPACE) -> dict[str, str]:
        """Every job of a namespace, and what became of it."""
        return {job.job: job.status for job in job_statements(self.engine, self.key, namespace)}

    def rows(self) -> dict[str, list[Any]]:
        """Return all rows of all tables."""
        with self.engine.connect() as connection:
            return {
                table.name: sorted(map(repr, connection.execute(select(table))))
                for table in metadata.sorted_tables
            }

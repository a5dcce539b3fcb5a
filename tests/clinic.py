"""A gateway with a namespace, people around it, and jobs written straight into its tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, update

from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.secret import new_id
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.schema.tables import datasets, jobs, policies
from taciturn.server.settings import Settings
from taciturn.wire.identity import Role
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.values import PolicyLine
from taciturn.wire.worker import LEASE_HEADER

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NAMESPACE = "patients"


@dataclass
class Watch:
    """A clock that tests set."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


@dataclass
class Clinic:
    """`olga` owns the namespace; `paul` and `petra` are practitioners; `ann` audits; `adam`
    administers; `oscar` owns another namespace's data, not this one's."""

    gateway: Gateway
    watch: Watch
    users: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    @classmethod
    def on(cls, engine: Engine, folder: Path, **settings: Any) -> Clinic:
        """One on an empty, migrated database."""
        watch = Watch()
        key = SealKey.generate()
        gateway = Gateway(
            Settings(data_dir=folder, **settings),
            engine,
            key,
            Ledger(engine, key, clock=watch),
            watch,
        )
        clinic = cls(gateway, watch)
        for name, role in (
            ("olga", Role.OWNER),
            ("oscar", Role.OWNER),
            ("paul", Role.PRACTITIONER),
            ("petra", Role.PRACTITIONER),
            ("ann", Role.AUDITOR),
            ("adam", Role.ADMIN),
        ):
            clinic.add(name, role)
        clinic._namespace()
        return clinic

    def add(self, name: str, role: Role) -> None:
        """Let a person in."""
        directory = Directory(self.gateway)
        self.users[name] = directory.create_user(name, [role])
        made = directory.create_token(kind="api", name="test", user_id=self.users[name])
        self.tokens[name] = made.text

    def as_(self, name: str) -> dict[str, str]:
        """The headers of a person's request."""
        return {"Authorization": f"Bearer {self.tokens[name]}"}

    def job(
        self,
        kind: JobKind,
        *,
        state: JobState = JobState.RUNNING,
        requester: str = "paul",
        model: str | None = None,
        request: dict[str, Any] | None = None,
        policy: PolicyLine | None = None,
        plan: dict[str, Any] | None = None,
    ) -> str:
        """A job, as it would be after its submission."""
        job_id, now_ms = new_id("job"), self.gateway.now_ms()
        line = policy or PolicyLine(kind="DP", text="DP (epsilon=3, delta=1e-06, unit=id)")
        row = {
            "id": job_id,
            "kind": kind.value,
            "state": state.value,
            "requester_id": self.users[requester],
            "namespace": NAMESPACE,
            "dataset": "phee" if kind in (JobKind.FIT, JobKind.PROBE) else None,
            "model_id": model,
            "request": json.dumps(request or {"kind": kind.value}),
            "grants": "[]",
            "attempt": 1,
            "lease": 0,
            "plan": None if plan is None else json.dumps(plan),
            "cancel": False,
            "policy": line.model_dump_json(),
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
        }
        self.gateway.write(lambda connection: connection.execute(insert(jobs).values(row)))
        return job_id

    def set_state(self, job_id: str, state: JobState) -> None:
        """Move a job."""
        change = update(jobs).where(jobs.c.id == job_id).values(state=state.value)
        self.gateway.write(lambda connection: connection.execute(change))

    def worker(self, job_id: str, lease: int = 1) -> dict[str, str]:
        """The headers of the worker that has taken a job's lease."""
        made = Directory(self.gateway).create_worker_token(job_id, 1)
        held = {"worker_token": made.id, "lease": lease, "attempt": 1}
        change = update(jobs).where(jobs.c.id == job_id).values(**held)
        self.gateway.write(lambda connection: connection.execute(change))
        return {"Authorization": f"Bearer {made.text}", LEASE_HEADER: str(lease)}

    def _namespace(self) -> None:
        now_ms, owner = self.gateway.now_ms(), self.users["olga"]
        self.gateway.ledger.open_account(new_id("op"), NAMESPACE, epsilon=8, delta=1e-6)
        policy = {
            "namespace": NAMESPACE,
            "owner_id": owner,
            "terms": "{}",
            "version": 1,
            "settled_version": 1,
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
        }
        dataset = {
            "name": "phee",
            "namespace": NAMESPACE,
            "owner_id": owner,
            "source": "phee.parquet",
            "unit": "id",
            "units": 1100,
            "state": "probing",
            "mock": "[]",
            "split_key": "0" * 64,
            "created_at_ms": now_ms,
        }

        def work(connection: Any) -> None:
            connection.execute(insert(policies).values(policy))
            connection.execute(insert(datasets).values(dataset))

        self.gateway.write(work)

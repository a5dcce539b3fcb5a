"""A gateway's database after years: jobs and their events, datasets, models, records."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, insert

from support.gateway import (
    DATASET,
    DELTA,
    DP_LINE,
    MODEL,
    NAMESPACE,
    GatewayWorld,
    fit,
    plan_of,
)
from support.released_files import report
from taciturn.server.identity.secret import new_id
from taciturn.server.schema.tables import (
    approvals,
    artifacts,
    audit_log,
    datasets,
    grant_terms,
    job_events,
    jobs,
    memberships,
    models,
    policies,
    users,
)
from taciturn.wire.datasets import BudgetTerms, PolicyTerms
from taciturn.wire.events import JOB_EVENT, JobEvent, ProgressEvent, Stage, StageEvent, StateEvent
from taciturn.wire.jobs import JobKind, JobState

_AT_ONCE = 5_000
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class Amounts:
    """Numbers of what is there."""

    jobs: int = 10_000
    steps: int = 10_000
    datasets: int = 1_000
    namespaces: int = 250
    models: int = 1_000
    waiting: int = 100
    people: int = 300
    spenders: int = 100
    records: int = 100_000


def fill(world: GatewayWorld, amounts: Amounts) -> dict[str, str]:
    """Fill the tables; returns the long fit and a job that runs, as parameters of pages.

    What goes through the ledger goes through the ledger, so that its chains and seals are true.
    """
    filler = _Filler(world, amounts)
    filler.add_people()
    filler.add_datasets()
    things = filler.add_jobs()
    filler.add_records()
    for number in range(amounts.spenders):
        world.spend(filler.fits[number], ["user:paul"], steps=1)
    return things


class _Filler:
    """One filling."""

    def __init__(self, world: GatewayWorld, amounts: Amounts) -> None:
        self.world, self.amounts = world, amounts
        self.rng = random.Random(17)
        self.now_ms = world.gateway.now_ms()
        self.fits: list[str] = []
        self.jobs: list[str] = []

    def add_people(self) -> None:
        """Add people in groups."""
        rows = [
            {
                "id": new_id("usr"),
                "name": f"person-{number:04}",
                "display_name": f"Person {number}",
                "roles": json.dumps(["practitioner"]),
                "disabled": number % 20 == 0,
                "created_at_ms": self.now_ms - number * _MINUTE_MS,
            }
            for number in range(self.amounts.people)
        ]
        self._insert(users, rows)
        groups = [{"user_id": row["id"], "group_name": "team"} for row in rows]
        self._insert(memberships, groups)

    def add_datasets(self) -> None:
        """Add namespaces with their policies and grants, and datasets in them."""
        ledger, owner = self.world.gateway.ledger, self.world.users["olga"]
        names = [f"cohort-{number:04}" for number in range(self.amounts.namespaces)]
        for name in names:
            ledger.open_account(f"open-{name}", name, epsilon=8.0, delta=DELTA)
            ledger.set_grant(new_id("op"), name, "user:paul", epsilon=4.0, delta=DELTA)
        terms = PolicyTerms(
            budget=BudgetTerms(epsilon=8.0, delta=DELTA), approvers=("user:otto", "group:board")
        )
        times = {"created_at_ms": self.now_ms, "updated_at_ms": self.now_ms}
        policy = {"owner_id": owner, "terms": terms.model_dump_json(), "version": 1}
        settled = {"settled_version": 1}
        self._insert(policies, [{"namespace": n, **policy, **settled, **times} for n in names])
        grant = {"holder": "user:paul", "granted_by": owner, "epsilon": 4.0, "delta": DELTA}
        self._insert(
            grant_terms, [{"namespace": n, "version": 1, **grant, **settled} for n in names]
        )
        columns = [{"name": name, "type": "string"} for name in ("id", "patient_id", "context")]
        dataset = {
            "owner_id": owner,
            "unit": "patient_id",
            "units": 1100,
            "state": "ready",
            "columns": json.dumps(columns),
            "mock": json.dumps([{"id": "n1", "patient_id": "P1", "context": "Mr Mock coughs."}]),
            "split_key": "0" * 64,
            "description": "Notes of a ward, by patient.",
            "created_at_ms": self.now_ms,
        }
        places = zip(range(self.amounts.datasets), itertools.cycle(names), strict=False)
        self._insert(
            datasets,
            (
                {
                    "name": f"notes-{n:04}",
                    "source": f"/data/{n}.parquet",
                    "namespace": at,
                    **dataset,
                }
                for n, at in places
            ),
        )

    def add_jobs(self) -> dict[str, str]:
        """Add jobs of all kinds and states, what they said, what they made, what waits."""
        body = fit(purpose="compare two base models", name="notes of the ward")
        request, plan = json.dumps(body), json.dumps(plan_of(body))
        states = [*([JobState.SUCCEEDED] * 16), JobState.FAILED, JobState.CANCELLED]
        kinds = [JobKind.FIT, JobKind.FIT, JobKind.SAMPLE, JobKind.EVALUATE]
        rows, said = [], []
        for number in range(self.amounts.jobs):
            kind, state = self.rng.choice(kinds), self.rng.choice(states)
            if number < self.amounts.waiting:
                kind, state = JobKind.FIT, JobState.AWAITING_APPROVAL
            elif number < self.amounts.waiting + 20:
                kind, state = JobKind.FIT, JobState.RUNNING
            at_ms = self.now_ms - number * 30 * _MINUTE_MS - _MINUTE_MS
            row = {
                "id": new_id("job"),
                "kind": kind.value,
                "state": state.value,
                "requester_id": self.world.users[self.rng.choice(["paul", "paul", "petra"])],
                "namespace": NAMESPACE,
                "dataset": DATASET if kind.reads_rows else None,
                "request": request,
                "plan": plan,
                "grants": '["user:paul"]',
                "attempt": 1,
                "lease": 1,
                "lease_until_ms": self.now_ms + 10**9,
                "cancel": False,
                "failure": "time" if state is JobState.FAILED else None,
                "policy": DP_LINE.model_dump_json(),
                "started_at_ms": at_ms,
                "created_at_ms": at_ms,
                "updated_at_ms": at_ms,
            }
            rows.append(row)
            said.append(self._events(row["id"], at_ms, state, 3))
        self._insert(jobs, rows)
        over = [row for row in rows if row["state"] == "succeeded" and row["kind"] == "fit"]
        mine = [row for row in over if row["requester_id"] == self.world.users["paul"]]
        self.fits = [str(row["id"]) for row in mine]
        # What the newest fit has said is that of a long one.
        longest = mine[0]
        index = rows.index(longest)
        said[index] = self._events(
            longest["id"], longest["created_at_ms"] - 10**8, JobState.SUCCEEDED, self.amounts.steps
        )
        self._insert(job_events, itertools.chain.from_iterable(said))
        self._insert(artifacts, (row for job in rows for row in _files(job)))
        self.jobs = [str(row["id"]) for row in rows]
        self._add_models(over)
        self._add_approvals(rows[: self.amounts.waiting])
        running = rows[self.amounts.waiting]["id"]
        return {"jobs": str(longest["id"]), "running": str(running)}

    def _events(
        self, job: str, at_ms: int, state: JobState, steps: int
    ) -> Iterator[dict[str, Any]]:
        events: list[JobEvent] = [
            StateEvent(state=JobState.QUEUED),
            StageEvent(stage=Stage.READING, padded_s=60),
            StageEvent(stage=Stage.TRAINING),
        ]
        for step in range(1, steps + 1):
            spent = 3 * (step / steps) ** 0.5
            events.append(ProgressEvent(step=step, steps=steps, epsilon=spent))
        if state.over:
            events.append(StateEvent(state=state))
        for sequence, event in enumerate(events, start=1):
            yield {
                "job_id": job,
                "sequence": sequence,
                "data": JOB_EVENT.dump_json(event).decode(),
                "visible_at_ms": at_ms + sequence * 2_000,
            }

    def _add_models(self, fits: list[dict[str, Any]]) -> None:
        text = report().model_dump_json()
        self._insert(
            models,
            [
                {
                    "id": new_id("mdl"),
                    "job_id": row["id"],
                    "owner_id": row["requester_id"],
                    "namespace": NAMESPACE,
                    "base_model": MODEL,
                    "report": text,
                    "policy": DP_LINE.model_dump_json(),
                    "created_at_ms": row["created_at_ms"],
                }
                for row in fits[: self.amounts.models]
            ],
        )

    def _add_approvals(self, waiting: list[dict[str, Any]]) -> None:
        self._insert(
            approvals,
            [
                {
                    "id": new_id("apr"),
                    "job_id": row["id"],
                    "namespace": NAMESPACE,
                    "reason": "no_guarantee",
                    "request": "0" * 64,
                    "needed": 2,
                    "state": "open",
                    "expires_at_ms": self.now_ms + 10**9,
                    "created_at_ms": row["created_at_ms"],
                }
                for row in waiting
            ],
        )

    def add_records(self) -> None:
        """Add records of requests, half of them about jobs that there are."""
        actors = ["user:paul", "user:olga", "user:ann", "anonymous", "worker:job"]
        actions = ["jobs:read", "datasets:read", "jobs:create", "ledger:read", "audit-log:read"]
        self._insert(
            audit_log,
            (
                {
                    "at_ms": self.now_ms - (self.amounts.records - number) * 1000,
                    "actor": self.rng.choice(actors),
                    "action": self.rng.choice(actions),
                    "resource": self._path(number),
                    "status": 200 if number % 50 else 403,
                    "code": None if number % 50 else "forbidden",
                    "request_id": f"req_{number:020}",
                    "address": "10.0.0.7",
                }
                for number in range(self.amounts.records)
            ),
        )

    def _path(self, number: int) -> str:
        job = f"job_{number:020}" if number % 2 else self.rng.choice(self.jobs)
        return f"/v1/jobs/{job}"

    def _insert(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        rest = iter(rows)
        while batch := list(itertools.islice(rest, _AT_ONCE)):

            def work(connection: Connection, batch: list[dict[str, Any]] = batch) -> None:
                connection.execute(insert(table), batch)

            self.world.gateway.write(work)


def _files(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Files that a job has released."""
    names = {"fit": ("adapter.safetensors", "privacy_report.json"), "sample": ("samples.jsonl",)}
    if job["state"] != JobState.SUCCEEDED.value:
        return
    for name in names.get(job["kind"], ("evaluation.json",)):
        yield {
            "job_id": job["id"],
            "name": name,
            "size_bytes": 6000,
            "sha256": "0" * 64,
            "created_at_ms": job["updated_at_ms"],
        }

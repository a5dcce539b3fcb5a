"""A gateway with people in it, whose datasets, policies and budgets are what is tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dp_accounting.dp_event import (
    DpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import Connection, Engine, insert, update

from taciturn.server.app import create_app
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.context import Gateway
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.schema.tables import jobs, models
from taciturn.server.services import Services
from taciturn.server.settings import Settings
from taciturn.wire.datasets import ColumnView
from taciturn.wire.identity import Role
from taciturn.wire.values import PolicyLine

BUDGET = {"epsilon": 8.0, "delta": 1e-6}
COLUMNS = (ColumnView(name="id", type="string"), ColumnView(name="context", type="string"))
SOURCE = "s3://hospital/phee.parquet"
PREFIXES = ("/", "s3://", "https://", "postgresql+psycopg://")
DP_LINE = PolicyLine(kind="DP", text="DP (epsilon=1, delta=1e-06, unit=id)")


@dataclass
class Watch:
    """A clock that tests move."""

    now: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **span: float) -> None:
        """Let time pass."""
        self.now += timedelta(**span)


@dataclass
class ProbeDesk:
    """Queues probes as the real one does: a row in the caller's transaction."""

    fails: bool = False

    def probe(self, connection: Connection, dataset: str, namespace: str, owner_id: str) -> str:
        """See Desk."""
        if self.fails:
            raise ConnectionError("killed")
        return add_job(connection, "probe", owner_id, namespace, dataset)


@dataclass
class Shelf:
    """Released files, in memory."""

    files: dict[str, bytes] = field(default_factory=dict)

    def pieces(self, job_id: str, name: str) -> Iterator[bytes]:
        """See Files."""
        return iter([self.files[f"jobs/{job_id}/{name}"]])


class Hospital:
    """`olga` and `oscar` own data; `paul` and `petra` are practitioners, `petra` in the group
    `cardio`; `ann` audits; `adam` administers."""

    def __init__(self, engine: Engine, folder: Path, trials: SqlSandbox) -> None:
        self.watch, key = Watch(), SealKey.generate()
        ledger = Ledger(engine, key, clock=self.watch)
        settings = Settings(data_dir=folder, source_prefixes=PREFIXES)
        self.gateway = Gateway(settings, engine, key, ledger, self.watch)
        self.desk, self.shelf = ProbeDesk(), Shelf()
        app = create_app(self.gateway)
        self.services = Services.of(self.gateway, desk=self.desk, files=self.shelf, trials=trials)
        app.state.services = self.services
        self.web = TestClient(app, raise_server_exceptions=False)
        self.tokens: dict[str, str] = {}
        self.ids: dict[str, str] = {}
        for name, role in (
            ("olga", Role.OWNER),
            ("oscar", Role.OWNER),
            ("paul", Role.PRACTITIONER),
            ("petra", Role.PRACTITIONER),
            ("ann", Role.AUDITOR),
            ("adam", Role.ADMIN),
        ):
            self.add(name, role, groups=["cardio"] if name == "petra" else [])

    def add(self, name: str, *roles: Role, groups: list[str] | None = None) -> None:
        """Let a person in."""
        directory = self.services.directory
        self.ids[name] = directory.create_user(name, roles, groups=groups or [])
        made = directory.create_token(
            kind="api", name="test", user_id=self.ids[name], lifetime_ms=10**12
        )
        self.tokens[name] = made.text

    def ask(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> Response:
        """A request of a person."""
        sent = {"Authorization": f"Bearer {self.tokens[who]}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.web.request(method, f"/v1{path}", json=body, headers=sent)

    def principal(self, who: str) -> Principal:
        """A person, as services see them."""
        found = self.services.directory.authenticate(self.tokens[who])
        assert isinstance(found, Principal)
        return found

    def register(self, who: str = "olga", **changes: Any) -> Response:
        """Register `phee` in `patients`, or something else."""
        return self.ask(who, "POST", "/datasets", new_dataset(**changes))

    def ready(self, who: str = "olga", **changes: Any) -> None:
        """Register, let a probe find COLUMNS, and confirm them."""
        columns = changes.pop("columns", COLUMNS)
        answer = self.register(who, **changes)
        assert answer.status_code == 201, answer.text
        name = answer.json()["name"]
        self.probed(name, columns)
        answer = self.state(name, columns, who)
        assert answer.status_code == 200, answer.text

    def probed(self, name: str, columns: tuple[ColumnView, ...] | None) -> None:
        """A probe has ended; what it found is for the owner to confirm."""

        def work(connection: Connection) -> None:
            self.services.datasets.probed(connection, name, columns)
            mine = (jobs.c.dataset == name) & (jobs.c.kind == "probe")
            state = "failed" if columns is None else "succeeded"
            change = update(jobs).where(mine, jobs.c.state == "queued")
            connection.execute(change.values(state=state))

        self.gateway.write(work)

    def state(
        self, name: str, columns: tuple[ColumnView, ...] | None, who: str = "olga", **more: Any
    ) -> Response:
        """Say what the columns are."""
        stated = None if columns is None else [column.model_dump() for column in columns]
        return self.ask(who, "PUT", f"/datasets/{name}/columns", {"columns": stated, **more})

    def grant(self, holder: str = "user:paul", namespace: str = "patients", **terms: Any) -> None:
        """Give a grant."""
        path = f"/policies/{namespace}/grants/{holder}"
        body = {"epsilon": 2.0, "delta": 1e-6, **terms}
        answer = self.ask("olga", "PUT", path, body)
        assert answer.status_code == 200, answer.text

    def job(self, kind: str, dataset: str | None = "phee", **columns: Any) -> str:
        """A job in `patients`."""
        return self.gateway.write(
            lambda connection: add_job(
                connection, kind, self.ids["olga"], "patients", dataset, **columns
            )
        )

    def model(self, fit: str) -> str:
        """The model that a fit has made."""
        row = {
            "id": new_id("mdl"),
            "job_id": fit,
            "owner_id": self.ids["olga"],
            "namespace": "patients",
            "base_model": "taciturn/tiny-medical",
            "report": "{}",
            "policy": DP_LINE.model_dump_json(),
            "created_at_ms": 0,
        }
        self.gateway.write(lambda connection: connection.execute(insert(models).values(row)))
        return str(row["id"])

    def spend(self, job: str, grants: list[str], steps: int = 10) -> None:
        """A job in `patients` that ran to its end."""
        book, event = self.gateway.ledger, gaussian_steps(steps)
        book.reserve(f"{job}-r", job, namespace="patients", grants=grants, event=event, hold_s=60)
        lease = book.acquire(f"{job}-a", job, worker="w", lease_s=60)
        book.charge(f"{job}-c", job, lease.token, event)
        book.commit(f"{job}-e", job, lease.token)


def refused(answer: Response, status: int, code: str) -> str:
    """Check an error; returns its words."""
    found = answer.json()
    assert (answer.status_code, found["code"]) == (status, code), answer.text
    return str(found["detail"])


def gaussian_steps(steps: int) -> DpEvent:
    """Some steps of a mechanism."""
    return SelfComposedDpEvent(PoissonSampledDpEvent(0.1, GaussianDpEvent(2.0)), steps)


def new_dataset(**changes: Any) -> dict[str, Any]:
    """The body of a registration; a field that is changed to None is left out."""
    body = {
        "name": "phee",
        "source": SOURCE,
        "unit": "split_part(id, '_', 1)",
        "namespace": "patients",
        "units": 1100,
        "budget": BUDGET,
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


def add_job(
    connection: Connection,
    kind: str,
    owner_id: str,
    namespace: str,
    dataset: str | None,
    *,
    state: str = "queued",
    model: str | None = None,
    policy: PolicyLine = DP_LINE,
) -> str:
    """A row in the table of jobs."""
    row = {
        "id": new_id("job"),
        "kind": kind,
        "state": state,
        "requester_id": owner_id,
        "namespace": namespace,
        "dataset": dataset,
        "model_id": model,
        "request": json.dumps({"kind": kind}),
        "grants": "[]",
        "attempt": 1,
        "cancel": False,
        "policy": policy.model_dump_json(),
        "created_at_ms": 0,
        "updated_at_ms": 0,
    }
    connection.execute(insert(jobs).values(row))
    return str(row["id"])

"""Gateway of a test: its database, a clock that the test moves, people, data and jobs.

`olga` owns the namespace `patients`. `otto` is another owner, whom its policy names as an approver,
as it does the group `board` (`bea`). `paul` and `petra` are practitioners, of whom `paul` has a
grant. `ann` audits, `adam` administers, and `oscar` owns other data and has no part in this.
"""

from __future__ import annotations

import atexit
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from dp_accounting.dp_event import (
    DpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from fastapi import FastAPI
from httpx import Response
from sqlalchemy import Connection, Engine, func, insert, select, update

from support.client import Client
from support.clock import Clock
from support.launcher import FakeLauncher, FakeWorker
from taciturn.server.app import create_app
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.links import PasswordLinks
from taciturn.server.identity.logins import Logins
from taciturn.server.identity.passwords import Passwords
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.jobs.completion import NothingReleased
from taciturn.server.jobs.pricing import price
from taciturn.server.jobs.terms import DatasetFacts, Terms
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.ledger.tables import entries
from taciturn.server.schema.tables import (
    audit_log,
    base_models,
    datasets,
    grant_terms,
    jobs,
    models,
    policies,
    source_marks,
)
from taciturn.server.services import Services
from taciturn.server.settings import Settings
from taciturn.wire.datasets import BudgetTerms, ColumnView, PolicyTerms
from taciturn.wire.identity import Role
from taciturn.wire.jobs import RemoteFit
from taciturn.wire.values import PolicyLine
from taciturn.wire.worker import LEASE_HEADER, BaseModelFacts

NAMESPACE, DATASET, MODEL = "patients", "phee", "taciturn/tiny-medical"
EPSILON, DELTA, UNITS = 8.0, 1e-6, 1100
BUDGET = {"epsilon": EPSILON, "delta": DELTA}
COLUMNS = (ColumnView(name="id", type="string"), ColumnView(name="context", type="string"))
SOURCE = "s3://hospital/phee.parquet"
PREFIXES = ("/", "s3://", "https://", "postgresql+psycopg://")
DP_LINE = PolicyLine(kind="DP", text="DP (epsilon=1, delta=1e-06, unit=id)")
PASSWORD = "correct horse battery staple"
_QUICK = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
_MONTH, _FOR_EVER = 30, 10_000  # days

PEOPLE: Mapping[str, tuple[Role, tuple[str, ...]]] = {
    "olga": (Role.OWNER, ()),
    "otto": (Role.OWNER, ()),
    "bea": (Role.OWNER, ("board",)),
    "oscar": (Role.OWNER, ()),
    "paul": (Role.PRACTITIONER, ("team",)),
    "petra": (Role.PRACTITIONER, ("team", "cardio")),
    "ann": (Role.AUDITOR, ()),
    "adam": (Role.ADMIN, ()),
}


@dataclass
class FakeSubmitter:
    """Queue probes as the real one does: a row in the caller's transaction."""

    fails: bool = False

    def probe(self, connection: Connection, dataset: str, namespace: str, owner_id: str) -> str:
        """Insert the job, or fail as a killed process does."""
        if self.fails:
            raise ConnectionError("killed")
        return insert_job(connection, "probe", owner_id, namespace=namespace, dataset=dataset)


@dataclass
class FakeFiles:
    """Files of jobs, in memory."""

    contents: dict[str, bytes] = field(default_factory=dict)

    def pieces(self, job_id: str, name: str) -> Iterator[bytes]:
        """Return a file in one piece."""
        return iter([self.contents[f"jobs/{job_id}/{name}"]])


@dataclass
class GatewayWorld:
    """Gateway, and short words for what tests do with it; nobody is in it yet.

    Attributes:
        parts: arguments of `Services.of`, beside the launcher.
        users: ids of people by their names.
        tokens: texts of their tokens.
    """

    gateway: Gateway
    clock: Clock = field(default_factory=Clock)
    parts: dict[str, Any] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    launcher: FakeLauncher = field(default_factory=FakeLauncher)
    submitter: FakeSubmitter = field(default_factory=FakeSubmitter)
    files: FakeFiles = field(default_factory=FakeFiles)

    @classmethod
    def open(
        cls, engine: Engine, folder: Path, *, key: SealKey | None = None, **settings: Any
    ) -> GatewayWorld:
        """Return one on a migrated database, without people; its ledger's key is new by default."""
        clock, key = Clock(), key or SealKey.generate()
        options = Settings(data_dir=folder, **{"source_prefixes": PREFIXES, **settings})
        gateway = Gateway(options, engine, key, Ledger(engine, key, clock=clock), clock)
        return cls(gateway, clock)

    @classmethod
    def for_jobs(
        cls, engine: Engine, folder: Path, *, key: SealKey | None = None, **settings: Any
    ) -> GatewayWorld:
        """Return one whose people can ask for jobs on `phee`; jobs release no files."""
        defaults = {"max_workers": 4, "lease_s": 30, "source_prefixes": ("/",)}
        world = cls.open(engine, folder, key=key, **{**defaults, **settings})
        world.parts["released"] = NothingReleased()
        return world.populate()

    @classmethod
    def for_catalog(cls, engine: Engine, folder: Path, trials: Any) -> GatewayWorld:
        """Return one with people but no data, where probes and released files are the test's."""
        world = cls.open(engine, folder)
        world.parts |= {"desk": world.submitter, "files": world.files, "trials": trials}
        return world.add_people()

    @cached_property
    def app(self) -> FastAPI:
        """Application on services with the fake launcher, and passwords that are hashed quickly."""
        app = create_app(self.gateway, launcher=self.launcher, trials=_trials())
        app.state.services = self._changed(app.state.services)
        return app

    @property
    def services(self) -> Services:
        """Services of the application."""
        services: Services = self.app.state.services
        return services

    def _changed(self, services: Services) -> Services:
        if self.parts:
            parts = {"trials": _trials(), **self.parts}
            services = Services.of(self.gateway, launcher=self.launcher, **parts)
        logins = Logins(self.gateway, services.directory, _QUICK)
        links = PasswordLinks(self.gateway, services.directory, _QUICK, logins)
        return replace(services, logins=logins, links=links)

    @cached_property
    def client(self) -> Client:
        """Client of the application, with cookies."""
        return Client(self.app, base_url="https://testserver", raise_server_exceptions=False)

    def restart(self) -> None:
        """Replace the services by new ones, as a restart does."""
        self.app.state.services = self._changed(self.services)

    # People and their requests

    def add_people(self) -> GatewayWorld:
        """Add everybody in PEOPLE."""
        for name, (role, groups) in PEOPLE.items():
            self.person(name, role, groups=groups, days=_FOR_EVER)
        return self

    def person(
        self,
        name: str,
        *roles: Role,
        groups: Sequence[str] = (),
        password: str | None = None,
        days: float = _MONTH,
    ) -> dict[str, str]:
        """Add a person; returns the headers of their requests."""
        hashed = _QUICK.hash(password) if password else None
        self.users[name] = Directory(self.gateway).create_user(
            name, roles, groups=groups, password_hash=hashed
        )
        self.tokens[name] = self.token(self.users[name], days=days)
        return self.headers(name)

    def token(self, user_id: str, scopes: Sequence[str] = (), days: float = _MONTH) -> str:
        """Return the text of a new token."""
        lifetime_ms = round(days * 86_400_000)
        return (
            Directory(self.gateway)
            .create_token(
                kind="api", name="test", user_id=user_id, scopes=scopes, lifetime_ms=lifetime_ms
            )
            .text
        )

    def headers(self, name: str, key: str | None = None) -> dict[str, str]:
        """Return the headers of a person's request."""
        return bearer(self.tokens[name]) | ({} if key is None else {"Idempotency-Key": key})

    def principal(self, who: str) -> Principal:
        """Return a person as services see them."""
        principal = self.services.directory.authenticate(self.tokens[who])
        assert isinstance(principal, Principal)
        return principal

    def ask(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> Response:
        """Send a person's request."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(
            method, f"/v1{path}", json=body, headers=self.headers(who) | more
        )

    def get(self, path: str, who: str = "paul") -> Any:
        return self.client.get(f"/v1/{path}", headers=self.headers(who))

    def post(self, path: str, body: Any = None, who: str = "paul") -> Any:
        return self.client.post(f"/v1/{path}", json=body, headers=self.headers(who))

    # Jobs

    def submit(self, body: dict[str, Any], who: str = "paul", key: str | None = "key-00001") -> Any:
        """Ask for a job."""
        return self.client.post("/v1/jobs", json=body, headers=self.headers(who, key))

    def tick(self) -> None:
        """Let the dispatcher look once."""
        self.services.dispatcher.tick()

    def job_state(self, job: str) -> str:
        return str(self.get(f"jobs/{job}", "ann").json()["state"])

    def worker(self, job: str) -> FakeWorker:
        """Return the worker that was launched last for a job."""
        order = [order for order in self.launcher.orders if order.job_id == job][-1]
        return FakeWorker(self.client, job, order.environment["TACITURN_JOB_TOKEN"])

    def running(
        self, body: dict[str, Any], key: str = "key-00001", who: str = "paul"
    ) -> FakeWorker:
        """Ask for a job and launch it; returns its worker, which has taken the lease."""
        job = self.submit(body, who, key).json()["id"]
        self.tick()
        worker = self.worker(job)
        assert worker.take().status_code == 200
        return worker

    def add_job(
        self,
        kind: str,
        dataset: str | None = None,
        *,
        requester: str = "paul",
        state: str = "running",
        **columns: Any,
    ) -> str:
        """Write a job of the namespace straight into its table; a fit and a probe are of `phee`."""
        if dataset is None and kind in ("fit", "probe"):
            dataset = DATASET
        columns = {"created_at_ms": self.gateway.now_ms(), "dataset": dataset, **columns}
        owner_id = self.users[requester]
        return self.gateway.write(
            lambda connection: insert_job(connection, kind, owner_id, state=state, **columns)
        )

    def set_job_state(self, job: str, state: str) -> None:
        change = update(jobs).where(jobs.c.id == job).values(state=str(state))
        self.gateway.write(lambda connection: connection.execute(change))

    def worker_headers(self, job: str, lease: int = 1) -> dict[str, str]:
        """Give a job's lease to a new worker; returns the headers of its messages."""
        token = Directory(self.gateway).create_worker_token(job, 1)
        values = {"worker_token": token.id, "lease": lease, "attempt": 1}
        change = update(jobs).where(jobs.c.id == job).values(**values)
        self.gateway.write(lambda connection: connection.execute(change))
        return bearer(token.text) | {LEASE_HEADER: str(lease)}

    def add_model(self, fit: str, **columns: Any) -> str:
        """Write the model of a fit straight into its table."""
        row = {
            "id": new_id("mdl"),
            "job_id": fit,
            "owner_id": self.users["olga"],
            "namespace": NAMESPACE,
            "base_model": MODEL,
            "report": "{}",
            "policy": DP_LINE.model_dump_json(),
            "created_at_ms": 0,
            **columns,
        }
        self.gateway.write(lambda connection: connection.execute(insert(models).values(row)))
        return str(row["id"])

    # Data, policies and budgets

    def populate(self, *, epsilon: float = EPSILON, **dataset: Any) -> GatewayWorld:
        """Add everybody, a base model, and the namespace with `phee` and a grant of paul's.

        Args:
            dataset: columns of the dataset's row that differ.
        """
        self.add_people()
        facts = {"parameters": 4_737_280, "context_length": 512, "vocabulary": 6144}
        row = {"name": MODEL, "created_at_ms": self.gateway.now_ms(), **facts}
        self.gateway.write(lambda connection: connection.execute(insert(base_models).values(row)))
        self.open_namespace(NAMESPACE, DATASET, epsilon=epsilon, **dataset)
        self.set_grant("user:paul", epsilon=4.0)
        return self

    def open_namespace(
        self, namespace: str, dataset: str, *, epsilon: float = EPSILON, **columns: Any
    ) -> None:
        """Write a namespace with one dataset that is ready straight into the tables."""
        owner, now_ms = self.users["olga"], self.gateway.now_ms()
        self.gateway.ledger.open_account(
            f"open-{namespace}", namespace, epsilon=epsilon, delta=DELTA
        )
        policy = {
            "namespace": namespace,
            "owner_id": owner,
            "terms": _terms(epsilon).model_dump_json(),
            "version": 1,
            "settled_version": 1,
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
        }
        names = ("id", "patient_id", "context")
        data = {
            "name": dataset,
            "namespace": namespace,
            "owner_id": owner,
            "source": f"{dataset}.parquet",
            "unit": "patient_id",
            "units": UNITS,
            "state": "ready",
            "columns": json.dumps([{"name": name, "type": "string"} for name in names]),
            "mock": "[]",
            "split_key": "0" * 64,
            "created_at_ms": now_ms,
            **columns,
        }
        digest = hashlib.sha256(dataset.encode()).hexdigest()[:32]
        mark = {"dataset": dataset, "mark": digest, "lasting": False}

        def work(connection: Connection) -> None:
            connection.execute(insert(policies).values(policy))
            connection.execute(insert(datasets).values(data))
            connection.execute(insert(source_marks).values(mark))

        self.gateway.write(work)

    def set_terms(self, **changes: Any) -> None:
        """Write other terms of the policy, without the ledger: for what is no budget."""
        version = policies.c.version + 1
        values = {
            "terms": _terms(**changes).model_dump_json(),
            "version": version,
            "settled_version": version,
        }
        change = update(policies).where(policies.c.namespace == NAMESPACE).values(values)
        self.gateway.write(lambda connection: connection.execute(change))

    def set_grant(self, holder: str, *, epsilon: float, **columns: Any) -> None:
        """Write a grant straight into ledger and table."""
        self.gateway.ledger.set_grant(new_id("op"), NAMESPACE, holder, epsilon=epsilon, delta=DELTA)
        row = {
            "namespace": NAMESPACE,
            "holder": holder,
            "granted_by": self.users["olga"],
            "epsilon": epsilon,
            "delta": DELTA,
            "version": 1,
            "settled_version": 1,
            **columns,
        }
        self.gateway.write(lambda connection: connection.execute(insert(grant_terms).values(row)))

    def grant(self, holder: str = "user:paul", namespace: str = NAMESPACE, **terms: Any) -> None:
        """Have olga give a grant."""
        path = f"/policies/{namespace}/grants/{holder}"
        answer = self.ask("olga", "PUT", path, {"epsilon": 2.0, "delta": DELTA, **terms})
        assert answer.status_code == 200, answer.text

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
        answer = self.state_columns(name, columns, who)
        assert answer.status_code == 200, answer.text

    def probed(self, name: str, columns: tuple[ColumnView, ...] | None) -> None:
        """End a probe; what it found is for the owner to confirm."""
        state = "failed" if columns is None else "succeeded"
        own = (jobs.c.dataset == name) & (jobs.c.kind == "probe") & (jobs.c.state == "queued")

        def work(connection: Connection) -> None:
            self.services.datasets.probed(connection, name, columns)
            connection.execute(update(jobs).where(own).values(state=state))

        self.gateway.write(work)

    def state_columns(
        self, name: str, columns: tuple[ColumnView, ...] | None, who: str = "olga", **more: Any
    ) -> Response:
        """Have an owner say what the columns are."""
        body = None if columns is None else [column.model_dump() for column in columns]
        return self.ask(who, "PUT", f"/datasets/{name}/columns", {"columns": body, **more})

    def spend(self, job: str, grants: list[str], steps: int = 10) -> None:
        """Run a job of the namespace to its end in the ledger."""
        ledger, event = self.gateway.ledger, gaussian_steps(steps)
        ledger.reserve(f"{job}-r", job, namespace=NAMESPACE, grants=grants, event=event, hold_s=60)
        lease = ledger.acquire(f"{job}-a", job, worker="w", lease_s=60)
        ledger.charge(f"{job}-c", job, lease.token, event)
        ledger.commit(f"{job}-e", job, lease.token)

    # Records

    def entries(self) -> int:
        """Count the ledger's entries: what was refused has made none."""
        with self.gateway.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(entries)).scalar_one()

    def recorded(self) -> list[Any]:
        """Return the rows of the audit log."""
        query = select(audit_log).order_by(audit_log.c.id)
        return list(self.gateway.read(lambda connection: connection.execute(query).all()))


@cache
def _trials() -> SqlSandbox:
    """What tries selections, for all gateways of this process: to load DuckDB takes a second."""
    trials = SqlSandbox()
    atexit.register(trials.close)
    return trials


def bearer(token: str) -> dict[str, str]:
    """Return the header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


def refused(answer: Response, status: int, code: str) -> str:
    """Check a refusal; returns its text."""
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), answer.text
    return str(problem["detail"])


def gaussian_steps(steps: int) -> DpEvent:
    """Return some steps of a mechanism."""
    return SelfComposedDpEvent(PoissonSampledDpEvent(0.1, GaussianDpEvent(2.0)), steps)


def fit(**changes: Any) -> dict[str, Any]:
    """Return the body of a small fit."""
    return {
        "kind": "fit",
        "model": MODEL,
        "data": {"dataset": DATASET},
        "text_field": "context",
        "target_epsilon": 1.0,
        "batch_size": 64,
        "steps": 20,
        **changes,
    }


def plan_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of such a fit, as the gateway prices it."""
    terms = Terms(
        namespace=NAMESPACE,
        policy=PolicyTerms(budget=BudgetTerms(epsilon=EPSILON, delta=DELTA)),
        policy_version=1,
        holders=(),
        owned=True,
        dataset=DatasetFacts(DATASET, "patient_id", UNITS, ()),
        base=BaseModelFacts(name=MODEL, parameters=4_737_280, context_length=512, vocabulary=6144),
    )
    return price(RemoteFit(**body), terms).plan


def new_dataset(**changes: Any) -> dict[str, Any]:
    """Return the body of a registration; a field that is changed to None is left out."""
    body = {
        "name": DATASET,
        "source": SOURCE,
        "unit": "split_part(id, '_', 1)",
        "namespace": NAMESPACE,
        "units": UNITS,
        "budget": BUDGET,
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


def insert_job(
    connection: Connection,
    kind: str,
    requester_id: str,
    *,
    request: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    policy: PolicyLine = DP_LINE,
    **columns: Any,
) -> str:
    """Insert a row in the table of jobs, with these columns; returns its id."""
    row = {
        "id": new_id("job"),
        "kind": str(kind),
        "state": "queued",
        "requester_id": requester_id,
        "namespace": NAMESPACE,
        "request": json.dumps(request or {"kind": kind}),
        "plan": None if plan is None else json.dumps(plan),
        "grants": "[]",
        "attempt": 1,
        "lease": 0,
        "cancel": False,
        "policy": policy.model_dump_json(),
        "created_at_ms": 0,
        "updated_at_ms": 0,
        **{name: str(value) if name == "state" else value for name, value in columns.items()},
    }
    connection.execute(insert(jobs).values(row))
    return str(row["id"])


def _terms(epsilon: float = EPSILON, **changes: Any) -> PolicyTerms:
    budget = BudgetTerms(epsilon=epsilon, delta=DELTA)
    return PolicyTerms(**{"budget": budget, "approvers": ("user:otto", "group:board"), **changes})

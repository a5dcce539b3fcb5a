"""A namespace with a dataset, and people around it: what a gateway needs before a job can be asked.

`olga` owns the namespace `patients`, `otto` is another owner, whom its policy names as an approver,
as it does the group `board` (`bea`); `paul` and `petra` are practitioners, of whom `paul` has a
grant; `ann` audits; `adam` administers; `oscar` owns other data and has no part in this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, insert, update

from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.secret import new_id
from taciturn.server.jobs.pricing import price
from taciturn.server.jobs.terms import DatasetFacts, Terms
from taciturn.server.schema.tables import base_models, datasets, grant_terms, policies, source_marks
from taciturn.wire.datasets import BudgetTerms, PolicyTerms
from taciturn.wire.identity import Role
from taciturn.wire.jobs import RemoteFit
from taciturn.wire.worker import BaseModelFacts

NAMESPACE, DATASET, MODEL = "patients", "phee", "taciturn/tiny-medical"
EPSILON, DELTA, UNITS = 8.0, 1e-6, 1100

PEOPLE: Mapping[str, tuple[Role, tuple[str, ...]]] = {
    "olga": (Role.OWNER, ()),
    "otto": (Role.OWNER, ()),
    "bea": (Role.OWNER, ("board",)),
    "oscar": (Role.OWNER, ()),
    "paul": (Role.PRACTITIONER, ("team",)),
    "petra": (Role.PRACTITIONER, ("team",)),
    "ann": (Role.AUDITOR, ()),
    "adam": (Role.ADMIN, ()),
}
COLUMNS = [{"name": name, "type": "string"} for name in ("id", "patient_id", "context")]


@dataclass
class World:
    """The people's ids and tokens."""

    gateway: Gateway
    users: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    @classmethod
    def on(cls, gateway: Gateway, *, epsilon: float = EPSILON) -> World:
        """Made on an empty, migrated database."""
        world = cls(gateway)
        directory = Directory(gateway)
        for name, (role, groups) in PEOPLE.items():
            world.users[name] = directory.create_user(name, [role], groups=groups)
            made = directory.create_token(kind="api", name="test", user_id=world.users[name])
            world.tokens[name] = made.text
        gateway.write(world._base_model)
        world.open_namespace(NAMESPACE, DATASET, epsilon=epsilon)
        world.grant("user:paul", epsilon=4.0)
        return world

    def as_(self, name: str, key: str | None = None) -> dict[str, str]:
        """The headers of a person's request."""
        keyed = {} if key is None else {"Idempotency-Key": key}
        return {"Authorization": f"Bearer {self.tokens[name]}", **keyed}

    def open_namespace(self, namespace: str, dataset: str, *, epsilon: float = EPSILON) -> None:
        """A namespace with one dataset that is ready."""
        ledger, owner = self.gateway.ledger, self.users["olga"]
        ledger.open_account(f"open-{namespace}", namespace, epsilon=epsilon, delta=DELTA)
        terms = PolicyTerms(
            budget=BudgetTerms(epsilon=epsilon, delta=DELTA), approvers=("user:otto", "group:board")
        )
        now_ms = self.gateway.now_ms()
        policy = {
            "namespace": namespace,
            "owner_id": owner,
            "terms": terms.model_dump_json(),
            "version": 1,
            "settled_version": 1,
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
        }
        data = {
            "name": dataset,
            "namespace": namespace,
            "owner_id": owner,
            "source": f"{dataset}.parquet",
            "unit": "patient_id",
            "units": UNITS,
            "state": "ready",
            "columns": json.dumps(COLUMNS),
            "mock": "[]",
            "split_key": "0" * 64,
            "created_at_ms": now_ms,
        }

        mark = {
            "dataset": dataset,
            "mark": hashlib.sha256(dataset.encode()).hexdigest()[:32],
            "lasting": False,
        }

        def work(connection: Connection) -> None:
            _insert(connection, policies, policy)
            _insert(connection, datasets, data)
            _insert(connection, source_marks, mark)

        self.gateway.write(work)

    def set_terms(self, **changes: Any) -> None:
        """Other terms, without asking the ledger: for what does not concern budgets."""
        budget = BudgetTerms(epsilon=EPSILON, delta=DELTA)
        terms = PolicyTerms(
            **{"budget": budget, "approvers": ("user:otto", "group:board"), **changes}
        )
        change = update(policies).where(policies.c.namespace == NAMESPACE)
        version = policies.c.version + 1
        values = {
            "terms": terms.model_dump_json(),
            "version": version,
            "settled_version": version,
        }
        self.gateway.write(lambda connection: connection.execute(change.values(values)))

    def grant(self, holder: str, *, epsilon: float, **more: Any) -> None:
        """A grant in the namespace."""
        self.gateway.ledger.set_grant(new_id("op"), NAMESPACE, holder, epsilon=epsilon, delta=DELTA)
        values = {
            "namespace": NAMESPACE,
            "holder": holder,
            "granted_by": self.users["olga"],
            "epsilon": epsilon,
            "delta": DELTA,
            "version": 1,
            "settled_version": 1,
            **more,
        }
        self.gateway.write(lambda connection: _insert(connection, grant_terms, values))

    def _base_model(self, connection: Connection) -> None:
        facts = {"parameters": 4_737_280, "context_length": 512, "vocabulary": 6144}
        created = {"name": MODEL, "created_at_ms": self.gateway.now_ms()}
        _insert(connection, base_models, {**created, **facts})


def _insert(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    known = {name: value for name, value in values.items() if name in table.c}
    connection.execute(insert(table).values(known))


def fit(**changes: Any) -> dict[str, Any]:
    """The body of a small fit."""
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
    """The plan of such a fit, as the gateway prices it."""
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

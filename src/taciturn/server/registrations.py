"""Registering datasets, and changing what is registered. Only their owners do.

A registration opens its namespace first, where asked to, which is finished by a repeated request
after a crash (`policies.py`); the dataset and its probe's job are one transaction after that.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, func, insert, select, update

from taciturn.preparation import places
from taciturn.server.datasets import Dataset, Datasets
from taciturn.server.gateway import Gateway
from taciturn.server.identity.principal import Principal
from taciturn.server.invented import check_mock
from taciturn.server.policies import Policies, check_delta
from taciturn.server.problems import ProblemError
from taciturn.server.references import References, unidentified
from taciturn.server.tables import datasets, jobs
from taciturn.server.trials import Trials
from taciturn.server.visibility import no_namespace
from taciturn.wire.datasets import DatasetChange, DatasetState, DatasetView, NewDataset
from taciturn.wire.jobs import JobKind, JobState

_SPLIT_KEY_BYTES = 32
_OVER = [state.value for state in JobState if state.over]


class Desk(Protocol):
    """Where probes are asked for."""

    def probe(self, connection: Connection, dataset: str, namespace: str, owner_id: str) -> str:
        """Queue a look at a dataset, in the caller's transaction; returns the job's id."""


@dataclass(frozen=True, slots=True)
class Registrations:
    """Registers datasets for their owners, changes and removes them."""

    gateway: Gateway
    policies: Policies
    datasets: Datasets
    trials: Trials
    desk: Desk
    references: References

    def register(self, new: NewDataset, caller: Principal) -> DatasetView:
        """Register a reference, and have a worker look whether it can be read.

        Idempotent: the same request again is answered with the dataset that it made.

        Raises:
            SpecError: the source is none.
            ProblemError: `invalid`; `conflict` if name, namespace or source are in use; `not_found`
                or `forbidden` for a namespace or a source that is not the caller's.
        """
        new = new.model_copy(update={"source": places.canonical(new.source)})
        check_mock(new.mock)
        self.trials.check_unit(new.unit)
        if self.gateway.read(lambda connection: self._check(connection, new, caller)):
            return self.datasets.read(new.name, caller)
        if new.budget is not None:
            check_delta(new.budget, new.units)
            self.policies.open(new.namespace, new.budget, caller)
        split_key = secrets.token_bytes(_SPLIT_KEY_BYTES).hex()
        self.gateway.write(lambda connection: self._insert(connection, new, caller, split_key))
        return self.datasets.read(new.name, caller)

    def change(self, name: str, wanted: DatasetChange, caller: Principal) -> DatasetView:
        """Change description or mock rows."""
        values: dict[str, Any] = {}
        if wanted.mock is not None:
            check_mock(wanted.mock)
            values["mock"] = json.dumps(wanted.mock)
        if wanted.description is not None:
            values["description"] = wanted.description

        def work(connection: Connection) -> None:
            self.datasets.owned(connection, name, caller)
            if values:
                connection.execute(update(datasets).where(datasets.c.name == name).values(**values))

        self.gateway.write(work)
        return self.datasets.read(name, caller)

    def remove(self, name: str, caller: Principal) -> None:
        """Let no new job use it, and nobody find it. What was spent stays spent, fitted models stay
        what they are, and the name is never given to another dataset.

        Raises ProblemError `conflict` while jobs of it are not over.
        """

        def work(connection: Connection) -> None:
            self.datasets.owned(connection, name, caller)
            open_jobs = _open_jobs(connection, name, jobs.c.kind != JobKind.PROBE.value)
            if open_jobs:
                raise ProblemError(
                    "conflict",
                    f"{open_jobs} job(s) of {name!r} are not over; cancel them, or wait",
                )
            now_ms = self.gateway.now_ms()
            change = update(datasets).where(datasets.c.name == name)
            connection.execute(change.values(removed_at_ms=now_ms))

        self.gateway.write(work)

    def probe(self, name: str, caller: Principal) -> DatasetView:
        """Have a worker look again; nothing happens while one is at it."""

        def work(connection: Connection) -> None:
            found = self.datasets.owned(connection, name, caller)
            if _open_jobs(connection, name, jobs.c.kind == JobKind.PROBE.value):
                return
            change = update(datasets).where(datasets.c.name == name)
            connection.execute(change.values(state=DatasetState.PROBING.value))
            self.desk.probe(connection, name, found.namespace, caller.user_id)

        self.gateway.write(work)
        return self.datasets.read(name, caller)

    def resume(self) -> None:
        """Have workers look at what no worker has compared with the other datasets yet: it was
        registered before they did, or its probe was lost."""

        def work(connection: Connection) -> None:
            for each in unidentified(connection):
                self.desk.probe(connection, each.name, each.namespace, each.owner_id)

        self.gateway.write(work)

    def _check(self, connection: Connection, new: NewDataset, caller: Principal) -> bool:
        """Raises ProblemError unless this may be registered; True if it has been already."""
        self.references.check(connection, new.source, caller.user_id)
        found = self.datasets.find(connection, new.name)
        if found is not None:
            if _removed(connection, new.name) or not _same(found, new, caller):
                raise ProblemError(
                    "conflict", f"the name {new.name!r} is or was in use; take another one"
                )
            return True
        policy = self.policies.find(connection, new.namespace)
        if policy is not None:
            self._check_owner(connection, new, caller)
            check_delta(policy.terms.budget, new.units)
        elif new.budget is None:
            raise ProblemError(
                "not_found",
                f"there is no namespace {new.namespace!r} of yours; give a budget (epsilon, delta) "
                "to open one",
            )
        self.references.check_elsewhere(connection, new.source, new.namespace)
        return False

    def _check_owner(self, connection: Connection, new: NewDataset, caller: Principal) -> None:
        try:
            self.policies.owned(connection, new.namespace, caller)
        except ProblemError as error:
            if error.code == "not_found" and new.budget is not None:
                raise ProblemError(
                    "conflict", f"the namespace {new.namespace!r} is in use; take another name"
                ) from None
            raise no_namespace(new.namespace) if error.code == "not_found" else error from None

    def _insert(
        self, connection: Connection, new: NewDataset, caller: Principal, split_key: str
    ) -> None:
        if self._check(connection, new, caller):
            return
        connection.execute(
            insert(datasets).values(
                name=new.name,
                namespace=new.namespace,
                owner_id=caller.user_id,
                source=new.source,
                unit=new.unit,
                units=new.units,
                state=DatasetState.PROBING.value,
                mock=json.dumps(new.mock),
                split_key=split_key,
                description=new.description,
                created_at_ms=self.gateway.now_ms(),
            )
        )
        self.desk.probe(connection, new.name, new.namespace, caller.user_id)


def _same(found: Dataset, new: NewDataset, caller: Principal) -> bool:
    """Whether a dataset is what an earlier, equal request has made."""
    return (
        found.owner_id == caller.user_id
        and (found.namespace, places.spelled([found.source])) == (new.namespace, (new.source,))
        and (found.unit, found.units) == (new.unit, new.units)
        and json.dumps(found.mock) == json.dumps(new.mock)
        and found.description == new.description
    )


def _removed(connection: Connection, name: str) -> bool:
    query = select(datasets.c.removed_at_ms).where(datasets.c.name == name)
    return connection.execute(query).scalar() is not None


def _open_jobs(connection: Connection, name: str, kind: Any) -> int:
    query = select(func.count()).select_from(jobs)
    found = connection.execute(
        query.where(jobs.c.dataset == name, kind, jobs.c.state.not_in(_OVER))
    )
    return int(found.scalar_one())

"""Registration of datasets, and changes of what is registered. Only their owners do that.

A registration opens its namespace first, where asked to, which is finished by a repeated request
after a crash (`policies.py`); the dataset and its probe's job are one transaction after that.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, func, insert, select, update

from taciturn.data import places
from taciturn.server.catalog.columns import agree, check_header, check_stated, disagreement
from taciturn.server.catalog.datasets import Dataset, Datasets, columns_text, ready_with
from taciturn.server.catalog.mock_rows import check_mock
from taciturn.server.catalog.policies import Policies, check_delta
from taciturn.server.catalog.public_datasets import declared_of
from taciturn.server.catalog.references import References, unidentified
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.context import Gateway
from taciturn.server.identity.holders import check_access_is_settled
from taciturn.server.identity.namespace_access import no_namespace
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import datasets, jobs
from taciturn.wire.datasets import (
    ColumnView,
    DatasetChange,
    DatasetState,
    DatasetView,
    NewDataset,
    StatedColumn,
    StatedColumns,
)
from taciturn.wire.jobs import JobKind, JobState

_SPLIT_KEY_BYTES = 32
_OVER = [state.value for state in JobState if state.over]


class JobSubmitter(Protocol):
    """Submits probes."""

    def probe(self, connection: Connection, dataset: str, namespace: str, owner_id: str) -> str:
        """Queue a look at a dataset, in the caller's transaction; returns the job's id."""


@dataclass(frozen=True, slots=True)
class Registrations:
    """Registers datasets for their owners, changes and removes them."""

    gateway: Gateway
    policies: Policies
    datasets: Datasets
    sandbox: SqlSandbox
    submitter: JobSubmitter
    references: References

    def register(
        self, new: NewDataset, caller: Principal, types: Sequence[StatedColumn] | None = None
    ) -> DatasetView:
        """Register a reference, and have a worker look whether it can be read.

        Idempotent: the same request again is answered with the dataset that it made.

        Args:
            types: the columns with their types, where these hold names; default: as `new` has them.

        Raises:
            SpecError: the source is none.
            ProblemError: `invalid`; `conflict` if name, namespace or source are in use; `not_found`
                or `forbidden` for a namespace or a source that is not the caller's.
        """
        new = new.model_copy(update={"source": places.canonical(new.source)})
        check_header(new.source, new.header)
        check_stated(new.columns or ())
        check_mock(new.mock)
        self.sandbox.check_unit(new.unit)
        if self.gateway.read(lambda connection: self._check(connection, new, caller)):
            return self.datasets.read(new.name, caller)
        if new.budget is not None:
            check_delta(new.budget, new.units)
            self.policies.open(new.namespace, new.budget, caller)
        split_key = secrets.token_bytes(_SPLIT_KEY_BYTES).hex()
        names = _stated_text(new, types)
        self.gateway.write(
            lambda connection: self._insert(connection, new, caller, split_key, names)
        )
        return self.datasets.read(new.name, caller)

    def prefixes(self, caller: Principal) -> tuple[str, ...]:
        """Places where the caller may register data: the gateway's for all, and their own."""
        return self.gateway.read(
            lambda connection: self.references.prefixes(connection, caller.user_id)
        )

    def mock(self, name: str, caller: Principal) -> tuple[dict[str, Any], ...]:
        """The rows that its owner invented, to be changed; empty if there are none."""
        return self.gateway.read(
            lambda connection: self.datasets.owned(connection, name, caller).mock
        )

    def change(self, name: str, change_request: DatasetChange, caller: Principal) -> DatasetView:
        """Change description or mock rows."""
        values: dict[str, Any] = {}
        if change_request.mock is not None:
            check_mock(change_request.mock)
            values["mock"] = json.dumps(change_request.mock)
        if change_request.description is not None:
            values["description"] = change_request.description

        def work(connection: Connection) -> None:
            self.datasets.owned(connection, name, caller)
            if values:
                connection.execute(update(datasets).where(datasets.c.name == name).values(**values))

        self.gateway.write(work)
        return self.datasets.read(name, caller)

    def state_columns(self, name: str, request: StatedColumns, caller: Principal) -> DatasetView:
        """Take what the owner says the columns are: as they were found, and then they are public;
        or that text files have no header line, and then a worker looks again. Once public they
        stay; the same said again is no change.

        Raises ProblemError: `conflict` if they are not what was found, or were confirmed already;
        `not_ready` while a worker looks; `invalid`.
        """
        columns = request.columns
        check_stated([column.name for column in columns or ()])

        def work(connection: Connection) -> None:
            dataset = self.datasets.owned(connection, name, caller)
            check_header(dataset.source, request.header)
            if _is_stated(dataset, request):
                return
            if _open_jobs(connection, name, jobs.c.kind == JobKind.PROBE.value):
                raise ProblemError("not_ready", f"a worker is looking at {name!r}; wait until then")
            change = update(datasets).where(datasets.c.name == name)
            values: dict[str, Any] = {
                "header": request.header,
                "stated": None if columns is None else columns_text(columns),
            }
            if request.header and dataset.header:
                values |= ready_with(_confirmed(dataset, columns))
            else:
                # Columns that another reading gave are none of this one.
                values |= {"state": DatasetState.PROBING.value, "found": None, "columns": None}
                self.submitter.probe(connection, name, dataset.namespace, caller.user_id)
            connection.execute(change.values(values))

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
            dataset = self.datasets.owned(connection, name, caller)
            if _open_jobs(connection, name, jobs.c.kind == JobKind.PROBE.value):
                return
            change = update(datasets).where(datasets.c.name == name)
            connection.execute(change.values(state=DatasetState.PROBING.value))
            self.submitter.probe(connection, name, dataset.namespace, caller.user_id)

        self.gateway.write(work)
        return self.datasets.read(name, caller)

    def resume(self) -> None:
        """Have workers look at what no worker has compared with the other datasets yet: it was
        registered before they did, or its probe was lost."""

        def work(connection: Connection) -> None:
            for row in unidentified(connection):
                self.submitter.probe(connection, row.name, row.namespace, row.owner_id)

        self.gateway.write(work)

    def _check(self, connection: Connection, new: NewDataset, caller: Principal) -> bool:
        """Raises ProblemError unless this may be registered; True if it has been already."""
        self.references.check(connection, new.source, caller.user_id)
        dataset = self.datasets.find(connection, new.name)
        if dataset is not None:
            if _removed(connection, new.name) or not _same(dataset, new, caller):
                raise ProblemError(
                    "conflict", f"the name {new.name!r} is or was in use; take another one"
                )
            return True
        if declared_of(connection, new.name) is not None:
            raise ProblemError(
                "conflict", f"the name {new.name!r} is or was in use; take another one"
            )
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
        check_access_is_settled(connection, caller, None, self.gateway.now_ms())
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
        self,
        connection: Connection,
        new: NewDataset,
        caller: Principal,
        split_key: str,
        names: str | None,
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
                header=new.header,
                stated=names,
                mock=json.dumps(new.mock),
                split_key=split_key,
                description=new.description,
                created_at_ms=self.gateway.now_ms(),
            )
        )
        self.submitter.probe(connection, new.name, new.namespace, caller.user_id)


def _same(dataset: Dataset, new: NewDataset, caller: Principal) -> bool:
    """True if an earlier, equal request has made this dataset."""
    return (
        dataset.owner_id == caller.user_id
        and (dataset.namespace, places.spelled([dataset.source])) == (new.namespace, (new.source,))
        and (dataset.unit, dataset.units) == (new.unit, new.units)
        and _same_columns(dataset, new)
        and json.dumps(dataset.mock) == json.dumps(new.mock)
        and dataset.description == new.description
    )


def _same_columns(dataset: Dataset, new: NewDataset) -> bool:
    """True if it says of columns the same as at first, or nothing: more may be known by now."""
    if new.columns is None and new.header:
        return True
    known_columns = dataset.stated_columns or dataset.columns or ()
    names = tuple(column.name for column in known_columns)
    return dataset.header == new.header and new.columns in (None, names)


def _stated_text(new: NewDataset, types: Sequence[StatedColumn] | None) -> str | None:
    if types is not None:
        return columns_text(types)
    if new.columns is None:
        return None
    return columns_text([StatedColumn(name=name) for name in new.columns])


def _is_stated(dataset: Dataset, request: StatedColumns) -> bool:
    """True if the columns are stated already: a request may come twice. Raises ProblemError
    `conflict` if something else is public."""
    same = dataset.header == request.header and dataset.stated_columns == request.columns
    if dataset.state is not DatasetState.READY or dataset.columns is None:
        return same and dataset.state is DatasetState.PROBING
    if same or (dataset.header == request.header and agree(request.columns or (), dataset.columns)):
        return True
    raise ProblemError(
        "conflict",
        f"the columns of {dataset.name!r} are public, and stay what they are; remove it, and "
        "register the rows under another name",
    )


def _confirmed(
    dataset: Dataset, stated_columns: Sequence[StatedColumn] | None
) -> tuple[ColumnView, ...]:
    """Return the probed columns, if they are the ones that the owner states."""
    if dataset.probed_columns is None:
        raise ProblemError(
            "conflict",
            f"no worker has found columns of {dataset.name!r} to be confirmed; have one look "
            "again, or say that there is no header line",
        )
    if stated_columns is None:
        raise ProblemError("invalid", "columns: name them all, as `found` has them")
    if not agree(stated_columns, dataset.probed_columns):
        raise disagreement(stated_columns, dataset.probed_columns)
    return dataset.probed_columns


def _removed(connection: Connection, name: str) -> bool:
    query = select(datasets.c.removed_at_ms).where(datasets.c.name == name)
    return connection.execute(query).scalar() is not None


def _open_jobs(connection: Connection, name: str, kind: Any) -> int:
    query = select(func.count()).select_from(jobs)
    count = connection.execute(
        query.where(jobs.c.dataset == name, kind, jobs.c.state.not_in(_OVER))
    )
    return int(count.scalar_one())

"""Datasets: references to private rows, found by those who may use them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, select, true, update

from taciturn.server.catalog.columns import agree, columns_to_confirm
from taciturn.server.catalog.policies import Policies
from taciturn.server.context import Gateway
from taciturn.server.identity.namespace_access import no_dataset, owns, sees, sees_all
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import datasets, policies, users
from taciturn.server.timestamps import moment
from taciturn.wire.datasets import (
    ColumnView,
    DatasetState,
    DatasetView,
    PolicyTerms,
    StatedColumn,
)
from taciturn.wire.values import PolicyLine

_SHOWN_UNIT = 120


@dataclass(frozen=True, slots=True)
class Dataset:
    """A registered dataset.

    Attributes:
        steward_id: who owns its namespace.
        columns: stated or confirmed by the owner, and found by a probe; None before.
        header: whether text files begin with a line of names.
        stated_columns: stated by the owner; None if nothing was.
        probed_columns: found by the last probe and still to be confirmed, by the owner alone.
        split_key: hexadecimal; keys the split by unit, and is for workers only.
        synthetic: rows of the paid-for preview; None where there is none.
    """

    name: str
    namespace: str
    owner_id: str
    steward_id: str
    owner: str
    source: str
    unit: str
    units: int
    state: DatasetState
    columns: tuple[ColumnView, ...] | None
    header: bool
    stated_columns: tuple[StatedColumn, ...] | None
    probed_columns: tuple[ColumnView, ...] | None
    mock: tuple[dict[str, Any], ...]
    synthetic_job: str | None
    synthetic: dict[str, Any] | None
    description: str | None
    created_at: datetime
    terms: PolicyTerms
    split_key: str = field(repr=False)

    @property
    def preview(self) -> Literal["mock", "schema", "synthetic"]:
        """Kind of the rows that stand for the real ones."""
        if self.synthetic is not None:
            return "synthetic"
        return "mock" if self.mock else "schema"

    def view(self, *, with_source: bool, with_probed: bool) -> DatasetView:
        """View of the dataset, with or without its reference and the columns to be confirmed."""
        budget = self.terms.budget
        unit = self.unit if len(self.unit) <= _SHOWN_UNIT else self.unit[:_SHOWN_UNIT] + "..."
        line = f"DP (budget epsilon={budget.epsilon:g}, delta={budget.delta:g}, unit={unit})"
        return DatasetView(
            name=self.name,
            namespace=self.namespace,
            state=self.state,
            unit=self.unit,
            units=self.units,
            columns=self.columns,
            owner=self.owner,
            description=self.description,
            policy=PolicyLine(kind="DP", text=line),
            preview=self.preview,
            source=self.source if with_source else None,
            header=self.header,
            found=columns_to_confirm(self.probed_columns, self.source)
            if with_probed and self.probed_columns
            else None,
            created_at=self.created_at,
        )


@dataclass(frozen=True, slots=True)
class Datasets:
    """Finds datasets, and takes what probes have found."""

    gateway: Gateway
    policies: Policies

    def visible(self, connection: Connection, name: str, caller: Principal) -> Dataset:
        """The dataset, if the caller may know of it; else ProblemError `not_found`."""
        return _the_one(connection.execute(self._visible(name, caller)).all(), name)

    def owned(self, connection: Connection, name: str, caller: Principal) -> Dataset:
        """The dataset, if the caller owns it; `not_found` to those who may not know of it,
        `forbidden` to those who may."""
        dataset = self.visible(connection, name, caller)
        self.policies.owned(connection, dataset.namespace, caller)
        return dataset

    def find(self, connection: Connection, name: str) -> Dataset | None:
        """The dataset, whoever asks, and though it was removed: jobs of it may still run."""
        row = connection.execute(_all().where(datasets.c.name == name)).first()
        return None if row is None else _dataset(row)

    def page(
        self, caller: Principal, after: str, fetch: int, search: str = ""
    ) -> Sequence[DatasetView]:
        """Datasets that the caller may know of, by name; those with `search` in it, if given."""
        is_visible = sees(caller, self.gateway.now_ms())
        matches = datasets.c.name.icontains(search, autoescape=True) if search else true()
        query = (
            _query()
            .where(is_visible, matches, datasets.c.name > after)
            .order_by(datasets.c.name)
            .limit(fetch)
        )
        return [self.view(_dataset(row), caller) for row in self.gateway.rows(query)]

    def read(self, name: str, caller: Principal) -> DatasetView:
        """A dataset as the caller may see it."""
        return self.view(_the_one(self.gateway.rows(self._visible(name, caller)), name), caller)

    def view(self, dataset: Dataset, caller: Principal) -> DatasetView:
        """The view of a dataset that the caller may know of; its reference is for owner and
        auditors, and what nobody has confirmed for the owner alone."""
        return dataset.view(
            with_source=sees_all(caller, dataset.steward_id),
            with_probed=owns(caller, dataset.steward_id),
        )

    def _visible(self, name: str, caller: Principal) -> Any:
        is_visible = sees(caller, self.gateway.now_ms())
        return _query().where(datasets.c.name == name, is_visible)

    def probed(
        self, connection: Connection, name: str, columns: Sequence[ColumnView] | None
    ) -> None:
        """A probe has ended: with the schema, or None if it cannot be used as it is.

        Ready is what has the columns that its owner stated or confirmed, or none whose name comes
        from the data. All else waits for the owner.
        """
        row = self.find(connection, name)
        if row is None or row.state is not DatasetState.PROBING:
            return
        change = update(datasets).where(datasets.c.name == name)
        if columns is None:
            connection.execute(change.values(state=DatasetState.REFUSED.value, found=None))
        elif _is_public(row, columns):
            connection.execute(change.values(ready_with(columns)))
        else:
            state, text = DatasetState.UNCONFIRMED.value, columns_text(columns)
            connection.execute(change.values(state=state, found=text))


WHY_NOT_READY = {
    DatasetState.PROBING: "a worker has yet to look whether it can be read",
    DatasetState.UNCONFIRMED: "its owner has yet to confirm its columns",
    DatasetState.REFUSED: "a worker could not read it, or could not name the unit of each row",
}


def _is_public(dataset: Dataset, columns: Sequence[ColumnView]) -> bool:
    """True if all that a schema says was stated, or seen and confirmed, by the owner."""
    if dataset.columns is not None and set(dataset.columns) == set(columns):
        return True
    if dataset.stated_columns is None:
        return not dataset.header  # then names are column_1, column_2, ...
    return agree(dataset.stated_columns, columns)


def ready_with(columns: Sequence[ColumnView]) -> dict[str, Any]:
    """The values of a dataset whose columns are these from now on, for all to see."""
    text = columns_text(columns)
    return {"state": DatasetState.READY.value, "columns": text, "found": None}


def columns_text(columns: Sequence[ColumnView] | Sequence[StatedColumn]) -> str:
    """Columns as JSON, for the table."""
    return json.dumps([column.model_dump() for column in columns])


def columns_of(dataset: Dataset) -> tuple[ColumnView, ...]:
    """The schema; raises ProblemError `not_ready` before a probe has found it."""
    if dataset.columns is None:
        why = WHY_NOT_READY[dataset.state]
        raise ProblemError(
            "not_ready",
            f"the columns of {dataset.name!r} are not known: it is {dataset.state.value}; {why}",
        )
    return dataset.columns


def _all() -> Any:
    return (
        select(
            datasets,
            policies.c.terms,
            policies.c.owner_id.label("steward_id"),
            users.c.name.label("owner"),
        )
        .join(policies, policies.c.namespace == datasets.c.namespace)
        .join(users, users.c.id == policies.c.owner_id)
    )


def _query() -> Any:
    return _all().where(datasets.c.removed_at_ms.is_(None))


def _the_one(rows: Sequence[Row[Any]], name: str) -> Dataset:
    if not rows:
        raise no_dataset(name)
    return _dataset(rows[0])


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(
        name=row.name,
        namespace=row.namespace,
        owner_id=row.owner_id,
        steward_id=row.steward_id,
        owner=row.owner,
        source=row.source,
        unit=row.unit,
        units=row.units,
        state=DatasetState(row.state),
        columns=None if row.columns is None else _columns(row.columns),
        header=row.header,
        stated_columns=None if row.stated is None else _stated_columns(row.stated),
        probed_columns=None if row.found is None else _columns(row.found),
        mock=tuple(json.loads(row.mock)),
        synthetic_job=row.synthetic_job,
        synthetic=None if row.synthetic is None else json.loads(row.synthetic),
        description=row.description,
        created_at=moment(row.created_at_ms),
        terms=PolicyTerms.model_validate_json(row.terms),
        split_key=row.split_key,
    )


def _columns(text: str) -> tuple[ColumnView, ...]:
    return tuple(ColumnView(**column) for column in json.loads(text))


def _stated_columns(text: str) -> tuple[StatedColumn, ...]:
    return tuple(StatedColumn(**column) for column in json.loads(text))

"""Public data sets: text that an owner or an administrator declares public, for everybody here.

They are of no namespace, so they have no unit, no budget and no entry in the ledger. Everybody who
is signed in may know of them; the place of the text is shown to whoever declared it, to
administrators and auditors. Name and place are those of no private data set: what is private can
never be named as public, and what is public can not be fitted as if it were protected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select, update

from taciturn.data import places
from taciturn.server.catalog.references import References
from taciturn.server.context import Gateway
from taciturn.server.identity.holders import check_access_is_settled
from taciturn.server.identity.namespace_access import sees
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import datasets, jobs, policies, public_datasets, users
from taciturn.server.timestamps import moment
from taciturn.wire.identity import Role
from taciturn.wire.jobs import JobState
from taciturn.wire.public_datasets import NewPublicDataset, PublicDatasetView
from taciturn.wire.values import Page

_OVER = [state.value for state in JobState if state.over]


@dataclass(frozen=True, slots=True)
class PublicDatasets:
    """Keeps what is declared public."""

    gateway: Gateway
    references: References

    def register(self, new: NewPublicDataset, caller: Principal) -> PublicDatasetView:
        """Declare text public. The same request again is answered with what it made.

        Raises:
            SpecError: the source is none.
            ProblemError: `forbidden` where the caller may register nothing; `conflict` if the name
                is or was in use, or private data are registered at the place.
        """
        new = new.model_copy(update={"source": places.canonical(new.source)})

        def work(connection: Connection) -> None:
            self.references.check(connection, new.source, caller.user_id)
            row = connection.execute(_all().where(public_datasets.c.name == new.name)).first()
            if row is not None and _is_same(row, new, caller):
                return
            private = select(datasets.c.name).where(datasets.c.name == new.name)
            if row is not None or connection.execute(private).first() is not None:
                raise ProblemError(
                    "conflict", f"the name {new.name!r} is or was in use; take another one"
                )
            check_access_is_settled(connection, caller, None, self.gateway.now_ms())
            self.references.check_not_private(connection, new.source)
            values = {
                **new.model_dump(),
                "declared_by": caller.user_id,
                "created_at_ms": self.gateway.now_ms(),
            }
            connection.execute(insert(public_datasets).values(values))

        self.gateway.write(work)
        return self.read(new.name, caller)

    def page(self, caller: Principal, paging: Paging) -> Page[PublicDatasetView]:
        """Public data sets that jobs may name, by name."""
        query = (
            _standing()
            .where(public_datasets.c.name > paging.name())
            .order_by(public_datasets.c.name)
            .limit(paging.fetch)
        )
        rows = self.gateway.rows(query)
        return paging.page(rows, lambda row: _view(row, caller), lambda row: row.name)

    def read(self, name: str, caller: Principal) -> PublicDatasetView:
        """Return one of them, also if it was removed: jobs have used it; raises ProblemError
        `not_found`."""
        rows = self.gateway.rows(_all().where(public_datasets.c.name == name))
        if not rows:
            raise no_public_dataset(name)
        return _view(rows[0], caller)

    def remove(self, name: str, caller: Principal) -> None:
        """Let no new job use it; its name is never given to other text.

        Raises ProblemError: `not_found`; `forbidden` to whoever has not declared it and is no
        administrator; `conflict` while jobs that name it are not over.
        """

        def work(connection: Connection) -> None:
            row = connection.execute(_standing().where(public_datasets.c.name == name)).first()
            if row is None:
                raise no_public_dataset(name)
            if not (caller.has(Role.ADMIN) or row.declared_by == caller.user_id):
                raise ProblemError(
                    "forbidden",
                    f"{row.declarer} has declared {name!r} public; they or an administrator "
                    "remove it",
                )
            count = select(func.count()).select_from(jobs)
            open_jobs = connection.execute(
                count.where(jobs.c.public_data == name, jobs.c.state.not_in(_OVER))
            ).scalar_one()
            if open_jobs:
                raise ProblemError(
                    "conflict",
                    f"{open_jobs} job(s) that learn from {name!r} are not over; cancel them, or "
                    "wait",
                )
            change = update(public_datasets).where(public_datasets.c.name == name)
            connection.execute(change.values(removed_at_ms=self.gateway.now_ms()))

        self.gateway.write(work)


def usable_public_dataset(
    connection: Connection, caller: Principal, name: str, now_ms: int
) -> PublicDatasetView:
    """Return the public data set that a job names; raises ProblemError `not_found`, or `invalid`
    for private data that the caller may know of."""
    row = connection.execute(_standing().where(public_datasets.c.name == name)).first()
    if row is not None:
        return declared(row)
    private = (
        select(datasets.c.name)
        .join(policies, policies.c.namespace == datasets.c.namespace)
        .where(datasets.c.name == name, sees(caller, now_ms))
    )
    if connection.execute(private).first() is not None:
        raise ProblemError(
            "invalid",
            f"public_data: {name!r} is a private data set, and what is learned from public data is "
            "learned without any privacy; name a public one (GET /v1/public-datasets), or leave it "
            "out",
        )
    raise no_public_dataset(name)


def check_is_private(connection: Connection, name: str) -> None:
    """Raise ProblemError `invalid` where a job names public text as the data to be protected."""
    query = select(public_datasets.c.name).where(public_datasets.c.name == name)
    if connection.execute(query).first() is not None:
        raise ProblemError(
            "invalid",
            f"data: {name!r} is a public data set, without a privacy unit and a budget, so nothing "
            "in it can be protected; name it as public_data beside a private data set, or fit it "
            "on your own machine",
        )


def declared_of(connection: Connection, name: str) -> PublicDatasetView | None:
    """Return what was declared of a job's public data; None if it is none of this gateway."""
    row = connection.execute(_all().where(public_datasets.c.name == name)).first()
    return None if row is None else declared(row)


def standing_row(connection: Connection, name: str) -> Row[Any] | None:
    """Return the row of a public data set that was not removed."""
    return connection.execute(_standing().where(public_datasets.c.name == name)).first()


def declared(row: Row[Any]) -> PublicDatasetView:
    """Return what everybody is shown."""
    return PublicDatasetView(
        name=row.name,
        licence=row.licence,
        origin=row.origin,
        text_field=row.text_field,
        description=row.description,
        declared_by=row.declarer,
        removed=row.removed_at_ms is not None,
        created_at=moment(row.created_at_ms),
    )


def declaration(view: PublicDatasetView) -> str:
    """Return who says that the text is public, as reports and certificates have it."""
    return (
        f"{view.declared_by} has registered it at a gateway as the public data set {view.name}, "
        f"licence {view.licence}: {view.origin}."
    )


def no_public_dataset(name: str) -> ProblemError:
    """Problem for a public data set that is not there."""
    return ProblemError(
        "not_found",
        f"there is no public data set {name!r} here; GET /v1/public-datasets lists what there is, "
        "an owner or an administrator registers others",
    )


def _all() -> Select[Any]:
    return select(public_datasets, users.c.name.label("declarer")).join(
        users, users.c.id == public_datasets.c.declared_by
    )


def _standing() -> Select[Any]:
    return _all().where(public_datasets.c.removed_at_ms.is_(None))


def _is_same(row: Row[Any], new: NewPublicDataset, caller: Principal) -> bool:
    values = {name: getattr(row, name) for name in NewPublicDataset.model_fields}
    return (
        row.removed_at_ms is None
        and row.declared_by == caller.user_id
        and values == new.model_dump()
    )


def _view(row: Row[Any], caller: Principal) -> PublicDatasetView:
    view = declared(row)
    sees_place = row.declared_by == caller.user_id or any(
        map(caller.has, (Role.ADMIN, Role.AUDITOR))
    )
    return view.model_copy(update={"source": row.source}) if sees_place else view

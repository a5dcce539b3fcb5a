"""References to private rows: where an owner's may be, and that no two budgets have the same rows.

What is asked here are texts and marks. The rows themselves are looked at by workers alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    delete,
    exists,
    insert,
    make_url,
    or_,
    select,
)

from taciturn.data import places
from taciturn.server.context import Gateway
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import datasets, jobs, public_datasets, source_marks, users
from taciturn.server.settings import Settings
from taciturn.wire.datasets import DatasetState
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.worker import PublicSourceRef, SourceMarks, SourceRef

log = logging.getLogger("taciturn.server.catalog.references")


@dataclass(frozen=True, slots=True)
class References:
    """Says which sources may be registered, and by whom."""

    gateway: Gateway

    def check(self, connection: Connection, place: str, owner_id: str) -> None:
        """Raise ProblemError `forbidden` where this owner may register nothing there, `invalid` if
        it is the gateway's own."""
        if not places.is_allowed(place, self.prefixes(connection, owner_id)):
            raise ProblemError(
                "forbidden",
                "source: you may register no data there; an administrator says where you may: "
                "taciturn user change NAME --source FOLDER-OR-URL",
            )
        own = places.spelled(own_places(self.gateway))
        if any(
            places.inside(place, own_place) or places.meet(place, own_place) for own_place in own
        ):
            raise ProblemError(
                "invalid",
                "source: what the gateway and its workers keep is there; name the folder of the "
                "data alone",
            )

    def check_elsewhere(self, connection: Connection, place: str, namespace: str) -> None:
        """Raise ProblemError `conflict` where the place is known under another budget already: the
        same rows under two would make both promises untrue. A source that was removed before any
        job used it may go elsewhere."""
        query = select(datasets.c.source).where(datasets.c.namespace != namespace, _standing())
        if self._meets(connection, place, query):
            raise ProblemError(
                "conflict",
                "source: it belongs to another namespace, whose budget protects the same rows; "
                "register it there, or ask an administrator",
            )
        if self._meets(connection, place, select(public_datasets.c.source).where(_still_public())):
            raise ProblemError(
                "conflict",
                "source: it was declared public, so that jobs may learn from it without any "
                "privacy; whoever declared it can remove it, unless a job has used it already",
            )

    def check_not_private(self, connection: Connection, place: str) -> None:
        """Raise ProblemError `conflict` where private data are registered at the place."""
        if self._meets(connection, place, select(datasets.c.source).where(_standing())):
            raise ProblemError(
                "conflict",
                "source: private data are registered there, which a budget protects; name text "
                "that anybody may read",
            )

    @staticmethod
    def _meets(connection: Connection, place: str, query: Select[Any]) -> bool:
        sources = places.spelled(connection.execute(query).scalars())
        return any(places.meet(place, source) for source in sources)

    def of(self, connection: Connection, dataset: Row[Any]) -> SourceRef:
        """Reference to a dataset, for a worker."""
        return SourceRef(
            source=dataset.source,
            unit=dataset.unit,
            units=dataset.units,
            split_key=dataset.split_key,
            names=None if dataset.header else _names(dataset.stated or dataset.columns or "[]"),
            **self._access(connection, dataset.owner_id),
        )

    def of_public(self, connection: Connection, row: Row[Any], declaration: str) -> PublicSourceRef:
        """Reference to a public data set, for a worker."""
        return PublicSourceRef(
            name=row.name,
            source=row.source,
            text_field=row.text_field,
            declaration=declaration,
            **self._access(connection, row.declared_by),
        )

    def _access(self, connection: Connection, owner_id: str) -> dict[str, Any]:
        return {
            "prefixes": self.prefixes(connection, owner_id),
            "networks": tuple(map(str, self.gateway.settings.source_networks)),
            "own": own_places(self.gateway),
            "mark_key": self._mark_key,
        }

    def is_public(self, connection: Connection, source: SourceMarks) -> bool:
        """Return False where what a worker is about to learn from as public was found to be
        somebody's private rows; nothing is kept of it."""
        marks = (*source.places, *source.contents)
        private = (
            select(source_marks.c.dataset)
            .join(datasets, datasets.c.name == source_marks.c.dataset)
            .where(source_marks.c.mark.in_(marks), _standing())
        )
        dataset = connection.execute(private.limit(1)).scalar()
        if dataset is not None:
            log.error("private rows declared public", extra={"dataset": dataset})
        return dataset is None

    def identify(self, connection: Connection, dataset: str, source: SourceMarks) -> bool:
        """Keep what a worker has found a dataset's source to be; False, and nothing is kept, where
        one of another namespace was found to be the same.

        Of places, the newest are kept, for something else may come to where a file was. Of
        contents all that a job may have used.
        """
        row = connection.execute(select(datasets).where(datasets.c.name == dataset)).one()
        marks = (*source.places, *source.contents)
        other = (
            select(source_marks.c.dataset)
            .join(datasets, datasets.c.name == source_marks.c.dataset)
            .where(
                source_marks.c.mark.in_(marks),
                datasets.c.namespace != row.namespace,
                _standing(),
            )
        )
        other_dataset = connection.execute(other.limit(1)).scalar()
        if other_dataset is not None:
            log.error(
                "the same rows under two budgets",
                extra={"dataset": dataset, "other": other_dataset},
            )
            return False
        if source.first:
            used = connection.execute(select(_used(dataset))).scalar()
            old = delete(source_marks).where(source_marks.c.dataset == dataset)
            connection.execute(old.where(source_marks.c.lasting.is_(False)) if used else old)
        own_marks = select(source_marks.c.mark).where(
            source_marks.c.dataset == dataset, source_marks.c.mark.in_(marks)
        )
        known_marks = set(connection.execute(own_marks).scalars())
        new = [
            {"dataset": dataset, "mark": mark, "lasting": lasting}
            for lasting, kind in ((False, source.places), (True, source.contents))
            for mark in dict.fromkeys(kind)
            if mark not in known_marks
        ]
        if new:
            connection.execute(insert(source_marks), new)
        return True

    @property
    def _mark_key(self) -> str:
        """Keys the digests by which sources are compared: without the key, one tells nothing of a
        file to somebody who has a copy of the database and guesses what is in it."""
        text = b"taciturn marks of sources 1"
        return hmac.new(self.gateway.seal_key.secret, text, hashlib.sha256).hexdigest()

    def prefixes(self, connection: Connection, owner_id: str) -> tuple[str, ...]:
        """Places where an owner may register data."""
        own = connection.execute(select(users.c.sources).where(users.c.id == owner_id)).scalar_one()
        return (*self.gateway.settings.source_prefixes, *json.loads(own))


def unidentified(connection: Connection) -> Sequence[Row[Any]]:
    """Datasets in use that no worker has compared with the others yet, and none is about to."""
    marked = exists().where(source_marks.c.dataset == datasets.c.name)
    is_probed = exists().where(
        jobs.c.dataset == datasets.c.name,
        jobs.c.kind == JobKind.PROBE.value,
        jobs.c.state.not_in([state.value for state in JobState if state.over]),
    )
    ready = datasets.c.removed_at_ms.is_(None) & (datasets.c.state == DatasetState.READY.value)
    query = select(datasets).where(ready, ~marked, ~is_probed)
    return connection.execute(query.order_by(datasets.c.created_at_ms, datasets.c.name)).all()


def own_places(gateway: Gateway) -> tuple[str, ...]:
    """Places of the files and tables of the gateway and its workers."""
    settings = gateway.settings
    folders = {os.path.abspath(settings.data_dir), os.path.realpath(settings.data_dir)}
    prefixes = [f"{folder}/" for folder in sorted(folders)]
    if settings.storage_url is not None:
        prefixes.append(settings.storage_url.rstrip("/") + "/")
    return (*prefixes, *_database(settings))


def _database(settings: Settings) -> tuple[str, ...]:
    if settings.database_url is None:
        return ()
    url = make_url(settings.database_url.get_secret_value())
    if url.host is None or url.database is None:
        return ()
    port = "" if url.port is None else f":{url.port}"
    return (f"{places.TABLES}://{url.host}{port}/{url.database}",)


def _standing() -> ColumnElement[bool]:
    """Datasets whose rows are under their namespace's budget, or were when a job used them."""
    return or_(datasets.c.removed_at_ms.is_(None), _used(datasets.c.name))


def _still_public() -> ColumnElement[bool]:
    """Public data sets that may be learned from, or were."""
    used = exists().where(jobs.c.public_data == public_datasets.c.name)
    return or_(public_datasets.c.removed_at_ms.is_(None), used)


def _used(dataset: Any) -> ColumnElement[bool]:
    return exists().where(jobs.c.dataset == dataset, jobs.c.kind != JobKind.PROBE.value)


def _names(columns: str) -> tuple[str, ...]:
    return tuple(column["name"] for column in json.loads(columns))

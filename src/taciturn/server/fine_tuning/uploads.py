"""Uploads: a file of an owner's goes into the owner's own store, and is registered as a dataset.

The store is a place that an administrator has given this owner (`taciturn user change NAME
--source FOLDER-OR-URL`), where workers read rows of theirs anyway. The gateway keeps no copy. A
file is in the store whole or not at all, and what is not registered is removed from it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlalchemy import select

from taciturn.data import places
from taciturn.data.suffixes import suffix_of
from taciturn.server.catalog.registration import Registrations
from taciturn.server.context import Gateway
from taciturn.server.fine_tuning.records import RecordForm, Records
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.models.storage import DiskStore, FileStore, FileTooLargeError, ObjectStore
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import users
from taciturn.spec import ONE_RECORD
from taciturn.wire.datasets import BudgetTerms, DatasetView, NewDataset, StatedColumn
from taciturn.wire.fine_tuning import NewUpload

_FOLDER = "taciturn_uploads"
_STORES = ("s3://", "gs://", "abfs://")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_log = logging.getLogger("taciturn.server.fine_tuning.uploads")


@dataclass(frozen=True, slots=True)
class Uploads:
    """Takes files of owners, and removes them."""

    gateway: Gateway
    registrations: Registrations

    def store_of(self, caller: Principal) -> str:
        """Return the folder or bucket that uploads of this owner go to: the first of their own.

        Raises ProblemError `forbidden` where they have none.
        """
        query = select(users.c.sources).where(users.c.id == caller.user_id)
        own = json.loads(self.gateway.rows(query)[0].sources)
        for place in own:
            if _is_store(place):
                return str(place).rstrip("/")
        raise ProblemError(
            "forbidden",
            "you have no store of your own that a file could be kept in; an administrator gives "
            "you a folder or a bucket: taciturn user change NAME --source FOLDER-OR-URL",
        )

    def keep(self, caller: Principal, new: NewUpload, file: IO[bytes]) -> DatasetView:
        """Write a file's records to the owner's store and register them.

        Raises:
            ProblemError: `invalid`, `too_large`, `unavailable`; else as registering does. Nothing
                is kept then.
        """
        budget = _budget(new)
        folder, name = self.store_of(caller), new_id("file")
        key = _key(name)
        source = places.canonical(f"{folder}/{key}")
        references = self.registrations.references
        self.gateway.read(lambda connection: references.check(connection, source, caller.user_id))
        extra_columns, unit = _other_columns(new)
        records, store = Records(file, extra_columns, unit), _open(folder)
        self._write(store, key, records)
        assert records.form is not None
        try:
            dataset = _dataset(new, name, source, budget, records.form, extra_columns)
            types = _types(records.form, extra_columns)
            return self.registrations.register(dataset, caller, types)
        except BaseException:
            store.delete(key)
            raise

    def _write(self, store: FileStore, key: str, records: Iterable[bytes]) -> None:
        limit_bytes = 2 * self.gateway.settings.upload_limit_bytes  # spelled in another way
        try:
            store.write(key, records, limit_bytes)
        except FileTooLargeError:
            raise ProblemError(
                "too_large", "the file is too large; split it, or have the limit raised"
            ) from None
        except OSError as error:
            _log.error("an upload cannot be written", extra={"error": type(error).__name__})
            raise ProblemError(
                "unavailable",
                "your store cannot be written by the gateway; its operator sees to it that it can, "
                "or register rows where they are with POST /v1/datasets",
            ) from None

    def remove(self, caller: Principal, name: str) -> None:
        """Remove a dataset, and the file if it was uploaded; raises ProblemError as removing does.

        Rows that were registered where they are stay there.
        """
        datasets = self.registrations.datasets
        dataset = self.gateway.read(lambda connection: datasets.owned(connection, name, caller))
        self.registrations.remove(name, caller)
        folder = dataset.source.removesuffix(f"/{_key(name)}")
        if folder == dataset.source:
            return
        try:
            _open(folder).delete(_key(name))
        except OSError as error:
            _log.error("an upload cannot be removed", extra={"error": type(error).__name__})
            raise ProblemError(
                "unavailable",
                "nobody can use the file any more, but its rows are still in your store; remove "
                f"{_key(name)!r} there",
            ) from None


def _is_store(place: str) -> bool:
    """Return True if files can be written below a place: a folder, or a bucket."""
    if places.is_local(place):
        return place != "/" and not suffix_of(place) and not os.path.isfile(place)
    return any(place.startswith(store) and place != store for store in _STORES)


def _open(folder: str) -> FileStore:
    return DiskStore(Path(folder)) if places.is_local(folder) else ObjectStore(folder)


def _key(name: str) -> str:
    return f"{_FOLDER}/{name}.jsonl"


def _budget(new: NewUpload) -> BudgetTerms | None:
    if new.epsilon is None and new.delta is None:
        return None
    if new.epsilon is None or new.delta is None:
        raise ProblemError(
            "invalid", "epsilon and delta open a budget together; give both", param="epsilon"
        )
    return BudgetTerms(epsilon=new.epsilon, delta=new.delta)


def _other_columns(new: NewUpload) -> tuple[tuple[str, ...], str | None]:
    """Return the columns beside those of the form, and the one that names the unit, if one does."""
    if new.privacy_unit == ONE_RECORD or not _COLUMN.fullmatch(new.privacy_unit):
        return new.columns, None
    return tuple(dict.fromkeys((*new.columns, new.privacy_unit))), new.privacy_unit


def _types(form: RecordForm, extra_columns: Iterable[str]) -> tuple[StatedColumn, ...]:
    plain = [name for name in extra_columns if name not in form.columns]
    return (
        *(StatedColumn(name=name) for name in plain),
        *(StatedColumn(name=name, type=kind) for name, kind in form.columns.items()),
    )


def _dataset(
    new: NewUpload,
    name: str,
    source: str,
    budget: BudgetTerms | None,
    form: RecordForm,
    extra_columns: Iterable[str],
) -> NewDataset:
    return NewDataset(
        name=name,
        source=source,
        unit=form.record if new.privacy_unit == ONE_RECORD else new.privacy_unit,
        namespace=new.namespace,
        units=new.units,
        columns=tuple(column.name for column in _types(form, extra_columns)),
        budget=budget,
        description=new.description,
    )

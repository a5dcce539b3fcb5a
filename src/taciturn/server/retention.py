"""Retention of logs of failures, which may quote rows, and of old rows of the audit log.

Rows of the audit log are written to a file in the gateway's storage before they are removed, and a
row stays of each file: which entries it holds, its digest, and the digest of all exports up to it,
sealed with the ledger's key. So a file that was changed, or an export that was taken out, is found.
Nobody says what is removed but the settings, which are the operator's: an administrator can only
ask for it to happen now, and that is on record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select

from taciturn.server.audit_log import Record, entry_of
from taciturn.server.context import Gateway
from taciturn.server.identity.secret import new_id
from taciturn.server.ledger import SealKey
from taciturn.server.models.storage import FileStore
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import audit_log, audit_log_exports, dataset_reads, incidents
from taciturn.server.timestamps import moment
from taciturn.wire.identity import AuditLogExport, Pruned, Retention
from taciturn.wire.values import Page

_DAY_MS = 86_400_000
_FIRST = "0" * 64
_ENTRIES = 20_000
"""In one file, which is made in memory."""
_LIMIT_BYTES = 64 * 2**20
_SEALED = tuple(column.name for column in audit_log_exports.c if column.name != "seal")


@dataclass(frozen=True, slots=True)
class RetentionService:
    """Removes what is over, and shows what was removed."""

    gateway: Gateway
    store: FileStore

    def view(self) -> Retention:
        """Times for which things are kept, and how many of them there are."""

        def work(connection: Connection) -> Retention:
            return Retention(
                audit_log_days=self.gateway.settings.audit_log_days,
                incident_days=self.gateway.settings.incident_days,
                audit_log_entries=_count(connection, audit_log.c.id),
                incidents=_count(connection, incidents.c.id),
            )

        return self.gateway.read(work)

    def prune(self, actor: str = "gateway") -> Pruned:
        """Remove what the settings say is over. A crash leaves nothing half done: what was removed
        is in a file before it is removed.

        Raises ProblemError `conflict` where another gateway is at it.
        """
        exports = []
        while (export := self._export(actor)) is not None:
            exports.append(export)
        return Pruned(exports=tuple(exports), incidents=self._remove_incidents(actor))

    def exports(self, paging: Paging) -> Page[AuditLogExport]:
        """Exports, oldest first; raises LedgerTamperedError for one that is not as sealed."""
        query = select(audit_log_exports).where(audit_log_exports.c.id > paging.number())
        query = query.order_by(audit_log_exports.c.id).limit(paging.fetch)
        return paging.page(self.gateway.rows(query), self._view, lambda row: row.id)

    def content(self, export_id: int) -> Iterator[bytes]:
        """The file of an export; raises ProblemError `not_found`."""
        query = select(audit_log_exports).where(audit_log_exports.c.id == export_id)
        rows = self.gateway.rows(query)
        if not rows:
            raise ProblemError("not_found", f"there is no export {export_id} of the audit log")
        self._view(rows[0])
        try:
            return self.store.get(rows[0].file)
        except KeyError:
            raise ProblemError(
                "not_found",
                f"the file {rows[0].file!r} of export {export_id} is not in the gateway's storage "
                "any more: somebody has removed it; ask the gateway's operator for a copy",
            ) from None

    def _export(self, actor: str) -> AuditLogExport | None:
        """Write the oldest rows that are over to a file, and remove them; None if there is none."""
        days = self.gateway.settings.audit_log_days
        if days is None:
            return None
        before_ms = self.gateway.now_ms() - days * _DAY_MS
        rows = self.gateway.read(lambda connection: _oldest(connection, before_ms))
        if not rows:
            return None
        last = self.gateway.read(_last)
        text = b"".join(entry_of(row).model_dump_json().encode() + b"\n" for row in rows)
        export = AuditLogExport(
            id=last.id + 1 if last else 1,
            first_entry=rows[0].id,
            last_entry=rows[-1].id,
            entries=len(rows),
            first_at=moment(rows[0].at_ms),
            last_at=moment(rows[-1].at_ms),
            sha256=hashlib.sha256(text).hexdigest(),
            previous=last.digest if last else _FIRST,
            digest=_FIRST,
            created_at=moment(self.gateway.now_ms()),
        )
        export = export.model_copy(update={"digest": export.chained()})
        file = f"audit_log/{export.first_entry}-{export.last_entry}-{export.sha256[:16]}.jsonl"
        self.store.write(file, [text], _LIMIT_BYTES)
        values = export.model_dump() | {
            "file": file,
            "first_at_ms": rows[0].at_ms,
            "last_at_ms": rows[-1].at_ms,
            "created_at_ms": self.gateway.now_ms(),
        }
        del values["first_at"], values["last_at"], values["created_at"]
        self.gateway.write(lambda connection: self._replace(connection, values, actor))
        return export

    def _replace(self, connection: Connection, values: dict[str, Any], actor: str) -> None:
        """The export's row instead of the rows in its file, all of them or none."""
        last = _last(connection)
        if (last.digest if last else _FIRST) != values["previous"]:
            raise _at_once()
        seal = _seal(self.gateway.seal_key, values)
        connection.execute(insert(audit_log_exports).values(**values, seal=seal))
        # Before the others go: SQLite would give the last one's number again.
        resource = f"audit_log/{values['first_entry']}-{values['last_entry']}"
        connection.execute(insert(audit_log).values(self._record(actor, resource)))
        through = dataset_reads.c.entry <= values["last_entry"]
        connection.execute(delete(dataset_reads).where(through))
        removal = connection.execute(
            delete(audit_log).where(
                audit_log.c.id >= values["first_entry"], audit_log.c.id <= values["last_entry"]
            )
        )
        if removal.rowcount != values["entries"]:
            raise _at_once()

    def _remove_incidents(self, actor: str) -> int:
        before_ms = self.gateway.now_ms() - self.gateway.settings.incident_days * _DAY_MS

        def work(connection: Connection) -> int:
            over = incidents.c.created_at_ms < before_ms
            number = _count(connection, incidents.c.id, over)
            if number:
                if connection.dialect.name == "sqlite":
                    # Else what may quote rows would stay in pages of the file that are free.
                    connection.exec_driver_sql("PRAGMA secure_delete = ON")
                connection.execute(delete(incidents).where(over))
                record = self._record(actor, f"incidents/{number}")
                connection.execute(insert(audit_log).values(record))
            return number

        return self.gateway.write(work)

    def _record(self, actor: str, resource: str) -> dict[str, Any]:
        return Record(
            at_ms=self.gateway.now_ms(),
            actor=actor,
            action="retention:prune",
            resource=resource,
            status=200,
            code=None,
            request_id=new_id("req"),
            address=None,
            token_id=None,
        ).values()

    def _view(self, row: Row[Any]) -> AuditLogExport:
        fields = row._asdict()
        self.gateway.seal_key.check(
            "audit_log_exports", [fields[name] for name in _SEALED], row.seal
        )
        values = {name: fields[name] for name in AuditLogExport.model_fields if name in fields}
        return AuditLogExport(
            **values,
            first_at=moment(row.first_at_ms),
            last_at=moment(row.last_at_ms),
            created_at=moment(row.created_at_ms),
        )


def _oldest(connection: Connection, before_ms: int) -> Sequence[Row[Any]]:
    """The first rows, up to one that is not over: a row's number says its place, and clocks can go
    back."""
    first_kept = connection.scalar(
        select(func.min(audit_log.c.id)).where(audit_log.c.at_ms >= before_ms)
    )
    query = select(audit_log).order_by(audit_log.c.id).limit(_ENTRIES)
    if first_kept is not None:
        query = query.where(audit_log.c.id < first_kept)
    return connection.execute(query).all()


def _last(connection: Connection) -> Row[Any] | None:
    query = select(audit_log_exports).order_by(audit_log_exports.c.id.desc()).limit(1)
    return connection.execute(query).first()


def _seal(key: SealKey, values: dict[str, Any]) -> str:
    return key.seal("audit_log_exports", [values[name] for name in _SEALED])


def _count(connection: Connection, column: Any, *where: Any) -> int:
    return int(connection.scalar(select(func.count(column)).where(*where)) or 0)


def _at_once() -> ProblemError:
    return ProblemError(
        "conflict", "another gateway on this database prunes the audit log right now; try again"
    )

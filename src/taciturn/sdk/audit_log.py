"""Auditing: who did what, and what the ledger says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import RootModel

from taciturn.errors import DataError
from taciturn.sdk.requests import body_of
from taciturn.sdk.transport import Transport, new_key
from taciturn.wire.identity import AuditLogExport
from taciturn.wire.ledger import AnchorView, NewVerification

_PAGE = 200


class Row(RootModel[dict[str, Any]]):
    """A line of a log or a ledger, as the gateway gives it."""


@dataclass(frozen=True, slots=True)
class Auditing:
    """Requests of auditors, `client.auditor`. Lists are long: they come as they are read.

    Attributes:
        transport: connection to the gateway.

    Raises:
        GatewayError: any request can raise it, as of `taciturn.Client`.

    Examples:
        >>> next(client.auditor.audit_log())["action"]
        'jobs:create'
    """

    transport: Transport

    def audit_log(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        resource: str | None = None,
        refusal: bool | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Every read and every decision, newest first.

        Args:
            actor: as the log has them, for example `user:ada`.
            resource: beginning of the path that was asked for.
            refusal: True for answers that refused, or failed; False for the others.
            since, until: from this moment on, and before that one; in UTC if they name no zone.
            action: such as `jobs:create`.

        Examples:
            >>> sum(1 for row in client.auditor.audit_log(actor="user:ada"))
            3
        """
        query = {
            "actor": actor,
            "action": action,
            "resource": resource,
            "refusal": refusal,
            "since": since and since.isoformat(),
            "until": until and until.isoformat(),
            "limit": _PAGE,
        }
        for row in self.transport.pages("audit-log", Row, query):
            yield row.root

    def exports(self) -> Iterator[AuditLogExport]:
        """Yield what of the audit log was written to files and removed, oldest first.

        Raises:
            DataError: one is not chained to the one before. It was changed, or another was taken
                out.

        Examples:
            >>> [export.entries for export in client.auditor.exports()]
            [1]
        """
        before: AuditLogExport | None = None
        for export in self.transport.pages("retention/exports", AuditLogExport):
            follows = export.id == 1 if before is None else export.previous == before.digest
            if not follows or export.digest != export.chained():
                raise DataError(
                    f"export {export.id} of the audit log is not chained to the one before it; it "
                    "was changed, or one was taken out"
                )
            yield export
            before = export

    def download_export(self, export: AuditLogExport, path: str | Path) -> Path:
        """Write the rows of an export, one JSON object a line, after a check of their digest.

        Args:
            export: as `exports` yields it.
            path: file to write.

        Raises:
            DataError: the rows are not those that were removed. Nothing is written then.

        Examples:
            >>> export = next(client.auditor.exports())
            >>> path = client.auditor.download_export(export, "audit-log.jsonl")
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.unchecked")
        try:
            self.transport.download(f"retention/exports/{export.id}", partial)
            if hashlib.sha256(partial.read_bytes()).hexdigest() != export.sha256:
                raise DataError(f"the file of export {export.id} is not the one that was written")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def ledger_entries(self, namespace: str) -> Iterator[dict[str, Any]]:
        """All entries of a namespace, in their order, with their hashes.

        Args:
            namespace: of the data.

        Raises:
            NotThereError: there is no such namespace, or none that the caller may know of.

        Examples:
            >>> entries = list(client.auditor.ledger_entries("patients"))
        """
        for row in self.transport.pages(f"ledger/{namespace}/entries", Row):
            yield row.root

    def verify_ledger(
        self, anchors: Sequence[AnchorView] = (), *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Check that every row is as it was written, that every balance follows from them, and that
        the chains still hold what they ended in when the anchors were kept.

        Args:
            namespace: whose chain alone is derived again.
            anchors: heads of chains that were kept outside; see `taciturn ledger verify`.

        Returns:
            `ok`; the numbers of entries and anchors that were checked; `problems` in words; the
            anchors of today.

        Examples:
            >>> client.auditor.verify_ledger()["ok"]
            True
        """
        body = body_of(NewVerification(anchors=tuple(anchors), namespace=namespace))
        response = self.transport.send("POST", "ledger/verifications", body=body, key=new_key())
        return self.transport.read(Row, response).root

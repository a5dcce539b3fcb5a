"""For auditors: who did what, and what the ledger says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import RootModel

from taciturn.sdk.transport import Transport, new_key
from taciturn.wire.ledger import AnchorView, NewVerification

_PAGE = 200


class Row(RootModel[dict[str, Any]]):
    """A line of a log or a ledger, as the gateway gives it."""


@dataclass(frozen=True, slots=True)
class Auditing:
    """What `client.auditor` does. Lists are long: they come as they are read."""

    transport: Transport

    def audit_log(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Every read and every decision, newest first.

        Args:
            actor: as the log has them, for example `user:ada`.
            since, until: from this moment on, and before that one; without a zone of UTC.
        """
        wanted = {
            "actor": actor,
            "action": action,
            "since": since and since.isoformat(),
            "until": until and until.isoformat(),
            "limit": _PAGE,
        }
        for row in self.transport.pages("audit-log", Row, wanted):
            yield row.root

    def ledger_entries(self, namespace: str) -> Iterator[dict[str, Any]]:
        """All entries of a namespace, in their order, with their hashes."""
        for row in self.transport.pages(f"ledger/{namespace}/entries", Row):
            yield row.root

    def verify_ledger(self, anchors: Sequence[AnchorView] = ()) -> dict[str, Any]:
        """Whether every row is as it was written, and every balance follows from them; and whether
        the chains still hold what they ended in when the anchors were kept."""
        body = NewVerification(anchors=tuple(anchors))
        response = self.transport.send("POST", "ledger/verifications", body=body, key=new_key())
        return self.transport.read(Row, response).root

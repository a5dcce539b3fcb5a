"""For auditors: who did what, and what the ledger says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import RootModel

from taciturn.sdk.transport import Transport, new_key


class Row(RootModel[dict[str, Any]]):
    """A line of a log or a ledger, as the gateway gives it."""


@dataclass(frozen=True, slots=True)
class Auditing:
    """What `client.auditor` does. Lists are long: they come as they are read."""

    transport: Transport

    def audit_log(
        self, *, actor: str | None = None, action: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every read and every decision, newest first."""
        for row in self.transport.pages("audit-log", Row, {"actor": actor, "action": action}):
            yield row.root

    def ledger_entries(self, namespace: str) -> Iterator[dict[str, Any]]:
        """All entries of a namespace, in their order, with their hashes."""
        for row in self.transport.pages(f"ledger/{namespace}/entries", Row):
            yield row.root

    def verify_ledger(self) -> dict[str, Any]:
        """Whether every row is as it was written, and every balance follows from them."""
        response = self.transport.send(
            "POST", "ledger/verifications", body={"anchors": []}, key=new_key()
        )
        return self.transport.read(Row, response).root

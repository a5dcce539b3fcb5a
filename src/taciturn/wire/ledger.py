"""The ledger, for those who check it: entries, jobs, verdicts, anchors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from taciturn.wire.values import Moment, Name, WireValue

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class LedgerEntryView(WireValue):
    """One line of a namespace's chain, as it was written."""

    namespace: Name
    sequence: Annotated[int, Field(ge=1)]
    operation_id: str
    recorded_at: Moment
    details: Annotated[dict[str, Any], Field(description="`kind` says what happened.")]
    previous: Digest
    digest: Digest


class LedgerJobView(WireValue):
    """Shares of its namespace's budget that a job took, as if it were the only one: together,
    unlike jobs take more than the sum."""

    job: str
    namespace: Name
    status: str
    grants: tuple[str, ...]
    charged: float
    held: float


class LedgerJobReport(LedgerJobView):
    """And what its charged steps cost by themselves, by privacy loss distributions."""

    epsilon: float
    delta: float
    accountant: str
    event: dict[str, Any]


class AnchorView(WireValue):
    """End of a chain at some time. Keep it where the database's owner cannot write: a later
    verification against it finds a database that was put back."""

    namespace: Name
    entries: Annotated[int, Field(ge=1)]
    head: Digest


class NewVerification(WireValue):
    """A verification, against anchors that were kept elsewhere."""

    anchors: Annotated[tuple[AnchorView, ...], Field(max_length=10_000)] = ()
    namespace: Annotated[
        Name | None, Field(description="Whose chain alone is derived again; null: all.")
    ] = None


class LedgerProblem(WireValue):
    """A row that is not as the ledger wrote it."""

    namespace: str
    sequence: int | None
    text: str


class VerificationView(WireValue):
    """Result of a verification: what was derived again from the entries, and what was wrong.

    An owner is told of their own namespaces and of the ledger as a whole.
    """

    ok: bool
    namespaces: int
    entries: int
    seals_checked: bool
    anchors_checked: int
    problems: tuple[LedgerProblem, ...]
    anchors: tuple[AnchorView, ...]

"""The ledger: balances, entries in words, the check of the chains, certificates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError

from taciturn.server.console.rendering import PageRoute, holder, page, rounded_down
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import MAX_LIMIT, PageQuery, Paging
from taciturn.server.problems import ProblemError
from taciturn.wire.ledger import AnchorView, LedgerEntryView

router = APIRouter(route_class=PageRoute)
LedgerReader = Annotated[Principal, Depends(Requires(Action.LEDGER_READ))]
ModelReader = Annotated[Principal, Depends(Requires(Action.MODELS_READ))]
_LENGTH = 50
_CERTIFICATES = 25
_ANCHORS: TypeAdapter[tuple[AnchorView, ...]] = TypeAdapter(tuple[AnchorView, ...])
_CLOSED = {
    "committed": "is over; what it held and never spent is free again",
    "released": "was ended; what it held and never spent is free again",
    "expired": "ran out of time; what it held and never spent is free again",
}


@dataclass(frozen=True, slots=True)
class Line:
    """An entry in words.

    Attributes:
        job: job that it is about, if it is about one.
        text: sentence, without the job's id at its beginning.
    """

    sequence: int
    at: datetime
    kind: str
    job: str | None
    text: str
    digest: str
    previous: str


@router.get("/ledger")
def read_ledger(
    request: Request, caller: LedgerReader, services: Svc, paging: PageQuery
) -> Response:
    """Show the balances, and a way to check the chains behind them."""
    checked_at = services.ledger_view.checked_at() if Action.AUDIT_LOG_READ in caller.actions else 0
    return page(
        request,
        "ledger.html",
        caller,
        items=services.budgets.page(caller, paging),
        first=paging.after is None,
        checked_at=checked_at,
    )


@router.post("/ledger/verifications")
def verify_ledger(
    request: Request,
    caller: LedgerReader,
    services: Svc,
    anchors: Annotated[str, Form(max_length=2 * 2**20)] = "",
    namespace: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Derive every balance again, or that of one budget, and show whether the chains are in
    order."""
    try:
        known_anchors = _ANCHORS.validate_json(anchors) if anchors.strip() else ()
    except ValidationError:
        raise ProblemError(
            "invalid",
            "anchors: give the whole content of a file that was downloaded here as anchors, a JSON "
            "list of namespace, entries and head, or leave the field empty",
        ) from None
    verdict = services.ledger_view.verify(known_anchors, caller, namespace or None)
    return page(request, "verdict.html", caller, verdict=verdict, namespace=namespace or None)


@router.get("/ledger/{namespace}")
def read_chain(
    request: Request,
    caller: LedgerReader,
    services: Svc,
    namespace: str,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> Response:
    """Show one budget and its entries, the newest first."""
    budget = services.budgets.read(namespace, caller)
    length = services.ledger_view.length(namespace, caller)
    end = length if before is None else min(before - 1, length)
    start = max(0, end - _LENGTH)
    entries = services.ledger_view.entries(namespace, caller, start, end - start) if end else ()
    return page(
        request,
        "chain.html",
        caller,
        budget=budget,
        length=length,
        lines=[in_words(entry) for entry in reversed(entries)],
        older=start + 1 if start else None,
        newer=None if end >= length else min(end + _LENGTH, length) + 1,
    )


@router.get("/certificates")
def read_certificates(
    request: Request, caller: ModelReader, services: Svc, paging: PageQuery
) -> Response:
    """Show the models that have a signed statement of what they cost."""
    paging = Paging(min(paging.limit, _CERTIFICATES, MAX_LIMIT), paging.after)
    items = services.models.certified(caller, paging)
    return page(request, "certificates.html", caller, items=items)


def in_words(entry: LedgerEntryView) -> Line:
    """Return what an entry says, as a sentence."""
    details = entry.details
    return Line(
        sequence=entry.sequence,
        at=entry.recorded_at,
        kind=str(details["kind"]),
        job=details.get("job"),
        text=_sentence(details),
        digest=entry.digest,
        previous=entry.previous,
    )


def _sentence(details: Mapping[str, Any]) -> str:
    match details["kind"]:
        case "opened":
            return f"The budget was opened with {_budget(details)}."
        case "capped":
            return f"From here on the budget is {_budget(details)}."
        case "granted":
            return f"{holder(details['holder'])} may spend up to {_budget(details)} of it."
        case "reserved":
            holders = ", ".join(holder(name) for name in details["grants"])
            source = f", and in the grant of {holders}" if holders else ""
            return f"holds its whole plan of {_steps(details)} in the budget{source}."
        case "extended":
            return f"holds {_steps(details)} more, which run again after a worker was lost."
        case "acquired":
            return "has a worker, which alone may spend from here on."
        case "charged":
            return "spent a block of steps, before the first of them ran."
        case "closed":
            return f"{_CLOSED[details['reason']]}."
        case "excepted":
            approvers = ", ".join(details["approvals"])
            return f"released without any guarantee, which no budget covers; approved: {approvers}."
    return "An entry of a kind that this page does not know."


def _budget(details: Mapping[str, Any]) -> str:
    return f"epsilon {rounded_down(details['epsilon'])} at delta {details['delta']:g}"


def _steps(details: Mapping[str, Any]) -> str:
    count = sum(price["count"] for price in details["prices"])
    return f"{count:,} step{'' if count == 1 else 's'}"

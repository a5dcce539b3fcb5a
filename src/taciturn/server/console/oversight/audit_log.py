"""The audit log: every request and its answer, by filters, and as a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse

from taciturn.server.audit_log import AuditFilter
from taciturn.server.console.rendering import PageRoute, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.problems import ProblemError
from taciturn.wire.identity import AuditEntry

router = APIRouter(prefix="/audit-log", route_class=PageRoute)
LogReader = Annotated[Principal, Depends(Requires(Action.AUDIT_LOG_READ))]

_NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
_Text = Annotated[str, Query(max_length=200, pattern=_NO_CONTROL)]
_COLUMNS = tuple(AuditEntry.model_fields)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Filters:
    """Filters of the log, as the form's fields spell them; all empty: everything."""

    actor: str = ""
    action: str = ""
    resource: str = ""
    answer: str = ""
    since: str = ""
    until: str = ""

    def query(self) -> str:
        """Return those that are set, for an address."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return urlencode({name: value for name, value in values.items() if value})

    def condition(self) -> AuditFilter:
        """Return them as the service takes them; raises ProblemError for a time that is none."""
        actor = self.actor
        if actor and ":" not in actor and actor not in ("anonymous", "gateway"):
            actor = f"user:{actor}"
        return AuditFilter(
            actor=actor or None,
            action=self.action or None,
            resource=self.resource or None,
            refusal={"refused": True, "granted": False}.get(self.answer),
            since=_time("from", self.since),
            until=_time("to", self.until),
        )


def filters(
    actor: _Text = "",
    action: _Text = "",
    resource: _Text = "",
    answer: Annotated[Literal["", "granted", "refused"], Query()] = "",
    since: _Text = "",
    until: _Text = "",
) -> Filters:
    """Return the filters of a request."""
    return Filters(actor.strip(), action.strip(), resource.strip(), answer, since, until)


FilterQuery = Annotated[Filters, Depends(filters)]


@router.get("")
def read_audit_log(
    request: Request, caller: LogReader, services: Svc, paging: PageQuery, fields: FilterQuery
) -> Response:
    """Show requests and their answers, newest first."""
    items = services.audit_log.page(paging, fields.condition())
    return page(
        request,
        "audit_log.html",
        caller,
        items=items,
        fields=fields,
        first=paging.after is None,
        actions=sorted(Action),
    )


@router.get("/export")
def export_audit_log(
    caller: LogReader,
    services: Svc,
    fields: FilterQuery,
    format: Annotated[Literal["jsonl", "csv"], Query()] = "jsonl",
) -> StreamingResponse:
    """Send what the filters leave as a file, newest first, piece by piece."""
    entries = services.audit_log.entries(fields.condition())
    content = _csv(entries) if format == "csv" else _jsonl(entries)
    day = services.gateway.clock().astimezone(UTC).strftime("%Y-%m-%d")
    headers = {
        "Content-Disposition": f'attachment; filename="taciturn-audit-log-{day}.{format}"',
        "Cache-Control": "no-store",
    }
    media_type = "text/csv; charset=utf-8" if format == "csv" else "application/jsonl"
    return StreamingResponse(content, media_type=media_type, headers=headers)


def _jsonl(entries: Iterator[AuditEntry]) -> Iterator[str]:
    for entry in entries:
        yield entry.model_dump_json() + "\n"


def _csv(entries: Iterator[AuditEntry]) -> Iterator[str]:
    yield _row(_COLUMNS)
    for entry in entries:
        yield _row(tuple(entry.model_dump(mode="json").values()))


def _row(values: tuple[object, ...]) -> str:
    """Return a line of CSV. A spreadsheet would run a cell that begins like a formula, and people
    choose what they ask for."""
    texts = ["" if value is None else str(value) for value in values]
    file = io.StringIO()
    csv.writer(file).writerow([f"'{text}" if text.startswith(_FORMULA) else text for text in texts])
    return file.getvalue()


def _time(name: str, text: str) -> datetime | None:
    """Return a time of the form, which is in UTC unless it says otherwise."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ProblemError(
            "invalid", f"{name}: {text!r} is no time; write it as 2026-03-01T00:00"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

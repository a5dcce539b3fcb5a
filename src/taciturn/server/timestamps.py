"""Times as the tables keep them, milliseconds since 1970, and as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

from taciturn.server.problems import ProblemError

_LATEST_YEAR = 9000  # what every clock, database and JSON reader can still hold


def moment(at_ms: int) -> datetime:
    """The time, in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def in_utc(at: datetime) -> datetime:
    """The same time in UTC; without a zone it is taken for UTC."""
    if not 1970 < at.year < _LATEST_YEAR:
        raise ProblemError("invalid", f"the year {at.year} is not one between 1971 and 8999")
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def milliseconds(at: datetime) -> int:
    """Milliseconds since 1970; raises ProblemError for a year that nothing here can hold."""
    return round(in_utc(at).timestamp() * 1000)

"""Values of forms, read into the types that the REST API takes: the same things are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from taciturn.server.problems import ProblemError

V = TypeVar("V", bound=BaseModel)


def checked(kind: type[V], **fields: Any) -> V:
    """Return the value that these fields make; raises ProblemError `invalid`, without the fields'
    values, which may be secrets."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ProblemError("invalid", f"{name or 'the form'}: {message}") from None


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text, between commas, blanks or ends of lines."""
    return tuple(text.replace(",", " ").split())


def built(kind: type[V], **values: Any) -> V:
    """Return a value of the API as `checked` does, of the fields that were not left empty: the
    others have their defaults."""
    filled = {name: value for name, value in values.items() if value not in (None, "")}
    return checked(kind, **filled)


def lines(text: str) -> tuple[str, ...]:
    """Return the lines of a text, without those that are empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def rows(text: str) -> tuple[dict[str, Any], ...]:
    """Return JSON lines as rows; raises ProblemError `invalid`, which names the line."""
    return tuple(
        _row(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()
    )


def _row(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ProblemError(
            "invalid",
            f'mock: line {number} is no JSON object; write one such as {{"text": "Mr X coughs."}} '
            "on each line",
        )
    return row


def json_lines(items: tuple[Mapping[str, Any], ...]) -> str:
    """Return rows as JSON lines."""
    return "\n".join(json.dumps(item, ensure_ascii=False) for item in items)


def moment_of(text: str, before: datetime | None = None) -> datetime | None:
    """Return a time in UTC that a form says, None if it says none; raises ProblemError `invalid`.

    Args:
        before: the time that the form showed: it stays to the second where nobody changed it.
    """
    if not text:
        return None
    if before is not None and text == moment_text(before):
        return before
    try:
        return datetime.strptime(text[:16], "%Y-%m-%dT%H:%M").replace(tzinfo=UTC)
    except ValueError:
        raise ProblemError(
            "invalid", f"{text[:40]!r} is no time; write it as 2027-01-31T12:00, in UTC"
        ) from None


def moment_text(value: datetime | None) -> str:
    """Return a time as such a field shows it."""
    return "" if value is None else value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M")

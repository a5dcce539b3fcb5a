"""Text of the command line that stands for one of a few things, or for a moment."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from taciturn.errors import SpecError

E = TypeVar("E", bound=StrEnum)

_AGO = re.compile(r"([0-9]{1,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def choice(kind: type[E], text: str | None) -> E | None:
    """The member of that value; raises SpecError with all of them."""
    if text is None:
        return None
    if text not in set(kind):
        raise SpecError(f"{text!r} is none of {', '.join(kind)}")
    return kind(text)


def moment_of(name: str, text: str | None) -> datetime | None:
    """A date, a time (of UTC, unless it has a zone), or so many minutes, hours or days ago.

    Raises:
        SpecError: it is none of these.
    """
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SpecError(
            f"{name}={text!r} is no moment; write 2026-03-01, 2026-03-01T12:30Z, or 90m, 12h, 7d "
            "for so long ago"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

"""Moments as certificates and trust stores write them: UTC, whole seconds, 2026-01-31T12:00:00Z."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_FORM = "%Y-%m-%dT%H:%M:%SZ"


def now() -> datetime:
    """The present, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def next_minute() -> datetime:
    """The end of this minute: what is issued now says so. When a fit was done to the second would
    say how long its steps took, and so how many units they drew."""
    moment = now()
    return moment + timedelta(seconds=-moment.second % 60)


def time_text(moment: datetime) -> str:
    """`moment` in the one form that is read back."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}".rjust(20, "0")


def parse_time(text: str) -> datetime:
    """Raises ValueError unless `text` is as `time_text` writes it."""
    moment = datetime.strptime(text, _FORM).replace(tzinfo=UTC)
    if time_text(moment) != text:
        raise ValueError(f"time {text!r} must be written as 2026-01-31T12:00:00Z")
    return moment

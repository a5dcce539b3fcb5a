"""Clock that stands still until a test moves it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass
class Clock:
    """Return `now` when called, as every clock of the gateway does."""

    now: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float = 0.0, **span: float) -> None:
        """Let time pass: seconds, or another span of `timedelta`."""
        self.now += timedelta(seconds=seconds, **span)

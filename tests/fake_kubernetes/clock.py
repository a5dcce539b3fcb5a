"""The cluster's time: faster than the wall's, and written as Kubernetes writes it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta


class Clock:
    """Starts at the wall's time and runs `speed` times as fast."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._began, self._wall = datetime.now(UTC), time.monotonic()

    def now(self) -> datetime:
        """The cluster's time."""
        return self._began + timedelta(seconds=(time.monotonic() - self._wall) * self.speed)

    __call__ = now

    def stamp(self) -> str:
        """Now, as `metadata.creationTimestamp` has it."""
        return stamp(self.now())


def stamp(moment: datetime) -> str:
    """RFC 3339 in whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """Parse the text of `stamp`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))

"""Deferrals: work that is left alone for a while because it cannot be done now, and since when.

In memory: a gateway that restarts begins to wait anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

_FIRST_MS, _LONGEST_MS = 1000, 60_000
LAPSE_MS = 3 * _LONGEST_MS
"""Who only hears of failures, and hears of none for so long, may take it that there are none."""


@dataclass(frozen=True, slots=True)
class _Rest:
    since_ms: int
    wait_ms: int
    until_ms: int


@dataclass(slots=True)
class Deferrals:
    """Things that failed, each to be tried again after a rest: twice as long each time, a minute at
    most.

    Attributes:
        now_ms: the time.
    """

    now_ms: Callable[[], int]
    _rests: dict[str, _Rest] = field(default_factory=dict)

    def failed(self, what: str) -> bool:
        """Note that it failed, and let it rest; True if it had not failed before."""
        now_ms, last = self.now_ms(), self._rests.get(what)
        wait_ms = _FIRST_MS if last is None else min(2 * last.wait_ms, _LONGEST_MS)
        since_ms = now_ms if last is None else last.since_ms
        self._rests[what] = _Rest(since_ms, wait_ms, now_ms + wait_ms)
        return last is None

    def succeeded(self, what: str) -> bool:
        """Forget that it failed; True if it had failed before."""
        return self._rests.pop(what, None) is not None

    def rests(self, what: str) -> bool:
        """True if it is too early to try it again."""
        last = self._rests.get(what)
        return last is not None and self.now_ms() < last.until_ms

    def since_ms(self, what: str) -> int | None:
        """Time at which it failed first, in milliseconds since 1970; None while it works."""
        last = self._rests.get(what)
        return None if last is None else last.since_ms

    def lasts_s(self, what: str) -> float:
        """Seconds for which it has not worked."""
        since_ms = self.since_ms(what)
        return 0.0 if since_ms is None else (self.now_ms() - since_ms) / 1000


@dataclass(slots=True)
class Outage:
    """State of the launcher, as far as this process knows: whether it answers.

    Attributes:
        tell: passes on to the gateway's other processes whether it is away.
    """

    now_ms: Callable[[], int]
    tell: Callable[[bool], None] = lambda away: None
    _since_ms: int | None = None
    _heard_ms: int = 0

    @property
    def since_ms(self) -> int | None:
        """Time since which it has not answered, in milliseconds since 1970; None while it does."""
        lapsed = self.now_ms() > self._heard_ms + LAPSE_MS
        return None if lapsed else self._since_ms

    def hear(self, away: bool) -> None:
        """Take note of what was found out."""
        self._heard_ms = self.now_ms()
        self._since_ms = (self.since_ms or self._heard_ms) if away else None

    def say(self, away: bool) -> None:
        """Take note of what was found out here, and pass it on."""
        self.hear(away)
        self.tell(away)

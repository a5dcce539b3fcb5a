"""Ends a text before the first of several stops, also where it comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop, and whether there was one."""
    positions = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(positions)], True) if positions else (text, False)


class Stopper:
    """Passes pieces on, and holds back what could be the beginning of a stop."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Return the text that can be shown now."""
        if self.stopped:
            return ""
        text, self.stopped = cut(self._held + piece, self._stops)
        keep = 0 if self.stopped else _beginning(text, self._stops)
        visible, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return visible

    def end(self) -> str:
        """Return the text that was held back: it was no stop."""
        visible, self._held = self._held, ""
        return "" if self.stopped else visible


def _beginning(text: str, stops: Sequence[str]) -> int:
    """Return the number of characters at the end that could become a stop."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0

"""Authentications of the last second, so that not every request asks the database who it is.

What changes people or tokens in this process calls `forget`, which holds from that moment. Other
processes and replicas are notified; one that is not reached notices within `KEPT_S`. Only digests
of tokens are kept here too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT_S = 1.0
_MOST = 10_000


class Remembered(Generic[T]):
    """Values by key, for a short while."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[], object] = lambda: None,
    ) -> None:
        self._clock, self._tell = clock, tell
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[float, T]] = {}
        self._generation = 0

    @property
    def generation(self) -> int:
        """Changes with every `forget`; taken before a value is read, and given to `keep`."""
        return self._generation

    def get(self, key: str) -> T | None:
        """The value, if it is fresh."""
        entry = self._entries.get(key)
        if entry is None or self._clock() - entry[0] > KEPT_S:
            return None
        return entry[1]

    def keep(self, key: str, value: T, generation: int) -> None:
        """Remember a value, unless something was changed since `generation`: it may be stale."""
        with self._lock:
            if generation != self._generation:
                return
            if len(self._entries) >= _MOST:
                self._entries.clear()
            self._entries[key] = (self._clock(), value)

    def forget(self) -> None:
        """Forget all answers, here and in the other processes: a change was made here."""
        self.lapse()
        self._tell()

    def lapse(self) -> None:
        """Forget all answers: a change was made elsewhere."""
        with self._lock:
            self._generation += 1
            self._entries.clear()

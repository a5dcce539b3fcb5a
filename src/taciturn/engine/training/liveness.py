"""Signs of life between a job's processes: nobody waits for one that is gone.

A process may have to wait for hours, while rank 0 reads a large data set, so no time limit on a
message can tell a slow peer from a dead one. A thread of each process can: it says every few
moments that the process lives, whatever the process is doing, in the store in which torchrun's
processes find each other. Rank 0 listens to all, and all listen to rank 0. Whoever is silent for
`limit_s` counts as lost: killed, stopped, or out of reach.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from taciturn.engine.training.processes import meet

_START = 5  # limits: before its first sign, a process may still be importing torch
_BEATS = 10  # signs within a limit
_SLOWEST_S = 2.0
_OVER, _LOST = "over:", "taciturn/lost"


@dataclass(slots=True)
class Liveness:
    """This process among those that torchrun started.

    Attributes:
        limit_s: how long another one may be silent.
        when_lost: called by a thread, with the rank of one that was lost; ends this process.
    """

    rank: int
    size: int
    limit_s: float
    when_lost: Callable[[int], None]
    _store: Any = None
    _silent_s: dict[int, float] = field(default_factory=dict)
    _last_message: dict[int, str] = field(default_factory=dict)
    _word: str | None = None
    _heeded: threading.Event = field(default_factory=threading.Event)
    _stopped: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def begin(cls, when_lost: Callable[[int], None], limit_s: float) -> Liveness:
        """Find the others, and begin to speak and to listen. Needs torchrun's variables."""
        rank, size = meet()
        presence = cls(rank, size, limit_s, when_lost)
        # A connection of its own: in the other one another thread may wait for as long as it takes.
        presence._store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=limit_s),
        )
        watched_ranks = range(1, size) if rank == 0 else (0,)
        presence._silent_s = dict.fromkeys(watched_ranks, (1 - _START) * limit_s)
        for name, work in (("speaks", presence._speak), ("listens", presence._listen)):
            thread = threading.Thread(target=work, name=f"taciturn-{name}", daemon=True)
            thread.start()
        return presence

    def end(self, word: str) -> None:
        """The last sign: this process has done its part, and says how. Rank 0 may be where the
        store is, so it stays until the others have heard it; never for longer than the limit."""
        self._word = word
        self._heeded.wait(self.limit_s)
        self._stopped.set()

    def last_word(self, rank: int, within_s: float | None = None) -> str | None:
        """Wait until a process that is listened to has done its part; what it said then.

        Returns:
            None if it did not within `within_s`. One that is lost meanwhile ends this process.
        """
        end = None if within_s is None else time.monotonic() + within_s
        while end is None or time.monotonic() < end:
            message = self._last_message.get(rank, "")
            if message.startswith(_OVER):
                return message.removeprefix(_OVER)
            time.sleep(self._pause_s / 2)
        return None

    def say(self, key: str, text: str) -> None:
        """Leave a text for the others; private, as all that goes between processes."""
        self._store.set(f"taciturn/said/{key}", text)

    def word_of(self, key: str) -> str | None:
        """A text that another process has left; None if it has not yet."""
        name = f"taciturn/said/{key}"
        return self._store.get(name).decode() if self._store.check([name]) else None

    @property
    def _pause_s(self) -> float:
        return min(_SLOWEST_S, self.limit_s / _BEATS)

    def _speak(self) -> None:
        """Say and hear, by way of the store; it may block, and then nothing is heard."""
        number = 0
        while not self._stopped.is_set():
            number += 1
            try:
                word = self._word
                message = str(number) if word is None else _OVER + word
                self._store.set(self._key(self.rank), message)
                for rank in self._silent_s:
                    self._hear(rank)
                if word is not None and (self.rank != 0 or all(map(self._is_over, self._silent_s))):
                    self._heeded.set()
                if self.rank != 0 and self._store.check([_LOST]):
                    self.when_lost(int(self._store.get(_LOST)))
                    return
            except (RuntimeError, OSError):
                pass  # the store is out of reach, and then so are the others
            self._stopped.wait(self._pause_s)

    def _hear(self, rank: int) -> None:
        key = self._key(rank)
        if not self._store.check([key]):
            return
        message = self._store.get(key).decode()
        if message != self._last_message.get(rank):
            self._last_message[rank] = message
            self._silent_s[rank] = 0.0

    def _listen(self) -> None:
        """Count silence. Of the time in which this process itself stood still, next to nothing
        counts: the others may have spoken."""
        last = time.monotonic()
        while not self._stopped.wait(self._pause_s):
            now = time.monotonic()
            passed_s, last = min(now - last, 2 * self._pause_s), now
            for rank, heard_s in self._silent_s.items():
                if self._is_over(rank):
                    continue
                self._silent_s[rank] = heard_s + passed_s
                if self._silent_s[rank] > self.limit_s:
                    self._declare_lost(rank)
                    return

    def _is_over(self, rank: int) -> bool:
        return self._last_message.get(rank, "").startswith(_OVER)

    def _declare_lost(self, rank: int) -> None:
        if self.rank == 0:
            announcement = threading.Thread(target=self._tell_lost, args=(rank,), daemon=True)
            announcement.start()
            announcement.join(min(1.0, self.limit_s))  # the store may be what is out of reach
        self.when_lost(rank)

    def _tell_lost(self, rank: int) -> None:
        self._store.set(_LOST, str(rank))

    @staticmethod
    def _key(rank: int) -> str:
        return f"taciturn/lives/{rank}"

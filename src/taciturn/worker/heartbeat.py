"""Signs of life, by a thread of its own: they keep the lease, bring orders, and carry events."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Self

from taciturn.errors import FencedError, TaciturnError
from taciturn.worker.client import GatewayClient
from taciturn.worker.egress import Egress

_SLOWEST_S = 5.0


class CancelledError(TaciturnError):
    """The gateway has ordered the job to stop."""


def give_up_nothing() -> None:
    """Do nothing when the lease is lost; a worker in a process of its own ends itself instead."""


@dataclass(slots=True)
class Heartbeat:
    """Beats while a job runs.

    Attributes:
        lease_s: the lease's length; it is renewed several times in that time.
        tick_s: events leave no more often than this. How far a job is at two moments says how long
            its steps took, and so how many units they drew; nobody may see that at a finer time
            than the gateway's ticks.
        when_fenced: called by the thread when another worker has the job, before anything else.
    """

    client: GatewayClient
    egress: Egress
    lease_s: float
    tick_s: float
    when_fenced: Callable[[], None] = give_up_nothing
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _fenced: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def check(self) -> None:
        """Raise FencedError or CancelledError if the work must stop; called before each step."""
        if self._fenced.is_set():
            raise FencedError("another worker has the job; this one stops")
        if self._cancelled.is_set():
            raise CancelledError("the job was cancelled")

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="taciturn-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        sent_s = -math.inf
        while not self._over.wait(min(_SLOWEST_S, self.lease_s / 4)):
            try:
                if self.client.heartbeat().cancel:
                    self._cancelled.set()
                if monotonic() - sent_s >= self.tick_s:
                    sent_s = monotonic()  # before it is known to arrive: it may, unanswered
                    self.egress.flush()
            except FencedError:
                self._fenced.set()
                self.when_fenced()
                return
            except TaciturnError:
                continue  # the work goes on: it may not run a step that the gateway has not charged

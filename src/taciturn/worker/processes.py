"""The processes of one worker, where torchrun has started several.

Rank 0 is the worker: it alone has the lease, speaks to the gateway, charges, releases, and tells
the others what is to be fitted. They take part in the fit, and end as rank 0 ends. A worker of one
process has no peers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from taciturn.engine.training.liveness import Liveness
from taciturn.engine.training.processes import started_together
from taciturn.wire.exits import WorkerExit
from taciturn.wire.worker import Assignment

_WORK = "work"
_POLL_S = 0.1


@dataclass(slots=True)
class Peers:
    """This process among its peers; ALONE has none, and then nothing here does anything."""

    presence: Liveness | None = None
    _called: bool = False

    @classmethod
    def found(cls, limit_s: float, end: Callable[[WorkerExit], None]) -> Peers:
        """The processes that torchrun started, if it has.

        Args:
            limit_s: how long one may give no sign of life.
            end: ends this process at once, whatever it is doing; called if another was lost.
        """
        if not started_together():
            return cls()

        def when_lost(rank: int) -> None:
            print(
                f"process {rank} of this worker gave no sign of life for {limit_s:g} s; this one "
                "ends, and the next worker goes on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            end(WorkerExit.INTERRUPTED)

        return cls(Liveness.begin(when_lost, limit_s))

    @property
    def rank(self) -> int:
        """Of this process."""
        return 0 if self.presence is None else self.presence.rank

    @property
    def first(self) -> bool:
        """Whether this process is the worker."""
        return self.rank == 0

    def call(self, assignment: Assignment) -> None:
        """Rank 0: have the others take part in a fit."""
        self._say(assignment.model_dump_json())

    def dismiss(self) -> None:
        """Rank 0: nothing is to be done together, unless they were called before."""
        self._say("")

    def wait_for_call(self) -> Assignment | None:
        """Others: what rank 0 calls for; None if it has nothing for them, or has ended."""
        if self.presence is None:
            return None
        while (said := self._heard()) is None:
            if self.presence.last_word(0, within_s=_POLL_S) is not None:
                return None
            time.sleep(_POLL_S)
        return Assignment.model_validate_json(said) if said else None

    def end(self, code: WorkerExit) -> None:
        """The last word of this process."""
        if self.presence is not None:
            self.presence.end(str(int(code)))

    def wait_for_end(self, within_s: float | None = None) -> WorkerExit:
        """Others: how rank 0 has ended; INTERRUPTED if it has not `within_s`."""
        said = None if self.presence is None else self.presence.last_word(0, within_s)
        return WorkerExit.INTERRUPTED if said is None else WorkerExit(int(said))

    def _say(self, text: str) -> None:
        if self.presence is not None and not self._called:
            self._called = True
            self.presence.say(_WORK, text)

    def _heard(self) -> str | None:
        assert self.presence is not None
        with suppress(RuntimeError, OSError):  # out of reach: silence is counted elsewhere
            return self.presence.word_of(_WORK)
        return None

"""The processes of one worker, where torchrun has started several.

Rank 0 is the worker: it alone has the lease, speaks to the gateway, charges, releases, and tells
the others what is to be fitted. They take part in the fit, and end as rank 0 ends. A worker of one
process has no others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taciturn.engine.training.torchrun import started_together
from taciturn.wire.exits import WorkerExit
from taciturn.wire.worker import Assignment

if TYPE_CHECKING:
    from taciturn.engine.training.liveness import Liveness

_WORK = "work"
_POLL_S = 0.1


@dataclass(slots=True)
class WorkerProcesses:
    """Processes of this worker; where it has no others, nothing here does anything."""

    presence: Liveness | None = None
    _called: bool = False

    @classmethod
    def of_torchrun(cls, limit_s: float, end: Callable[[WorkerExit], None]) -> WorkerProcesses:
        """The processes that torchrun started, if it has.

        Args:
            limit_s: how long one may give no sign of life.
            end: ends this process at once, whatever it is doing; called if another was lost.
        """
        if not started_together():
            return cls()
        from taciturn.engine.training.liveness import Liveness

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
        """Rank of this process."""
        return 0 if self.presence is None else self.presence.rank

    @property
    def first(self) -> bool:
        """True if this process is the worker."""
        return self.rank == 0

    def call(self, assignment: Assignment) -> None:
        """Rank 0: have the others take part in a fit."""
        self._say(assignment.model_dump_json())

    def dismiss(self) -> None:
        """Rank 0: dismiss the others, unless they were called before."""
        self._say("")

    def wait_for_call(self) -> Assignment | None:
        """Wait, as another process, for rank 0's assignment; None if it has none, or has ended."""
        if self.presence is None:
            return None
        while (message := self._message()) is None:
            if self.presence.last_word(0, within_s=_POLL_S) is not None:
                return None
            time.sleep(_POLL_S)
        return Assignment.model_validate_json(message) if message else None

    def end(self, code: WorkerExit) -> None:
        """Report this process's exit code to the others."""
        if self.presence is not None:
            self.presence.end(str(int(code)))

    def wait_for_end(self, within_s: float | None = None) -> WorkerExit:
        """Wait, as another process, for rank 0's exit code; INTERRUPTED if none `within_s`."""
        word = None if self.presence is None else self.presence.last_word(0, within_s)
        return WorkerExit.INTERRUPTED if word is None else WorkerExit(int(word))

    def _say(self, text: str) -> None:
        if self.presence is not None and not self._called:
            self._called = True
            self.presence.say(_WORK, text)

    def _message(self) -> str | None:
        assert self.presence is not None
        with suppress(RuntimeError, OSError):  # out of reach: silence is counted elsewhere
            return self.presence.word_of(_WORK)
        return None

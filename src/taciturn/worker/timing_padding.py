"""A stage that reads rows ends at public times only.

How long rows take to be read, selected and tokenised depends on them: a `select` can be written to
be slow, or to fail, on the rows of one person. So what follows such a stage waits for a boundary
that does not depend on rows: `bucket_s`, twice, four times ... as long after the stage began.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_S = 600.0
"""The longest that anything waits: above it, boundaries are that far apart."""

_LOOK_S = 1.0


def boundary_s(elapsed_s: float, bucket_s: float) -> float:
    """The first boundary that is not before `elapsed_s`, both in seconds since the stage began."""
    end_s = bucket_s
    while 0 < end_s < elapsed_s:
        end_s += min(end_s, MOST_S)
    return max(end_s, elapsed_s)


@dataclass(slots=True)
class TimingPadding:
    """Makes one stage of a job last until a boundary.

    Attributes:
        bucket_s: the first boundary; 0 waits for nothing, which is for tests.
    """

    bucket_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _began_s: float | None = field(default=None)

    def begin(self) -> None:
        """Rows are read from now on."""
        self._began_s = self.clock()

    def end(self, check: Callable[[], None] = lambda: None) -> None:
        """Return at the next boundary; at once where no stage is going on.

        Args:
            check: called once a second; what it raises ends the waiting.
        """
        if self._began_s is None:
            return
        end_s = self._began_s + boundary_s(self.clock() - self._began_s, self.bucket_s)
        while (left_s := end_s - self.clock()) > 0:
            check()
            self.sleep(min(left_s, _LOOK_S))
        self._began_s = None

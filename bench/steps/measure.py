"""Interleaved timing: one block of batches for each variant in turn, round after round.

Where other processes compute meanwhile, threads that wait for each other take several times as
long. So a variant waits for a quiet moment, and what was disturbed is done again; of several tries
the quietest counts, however long it took.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from steps.variants import Variant
from steps.workload import Batch

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError)
"""What a library raises where it cannot do a model; NotImplementedError is a RuntimeError."""


# Of one core, while it is quiet; a few ticks of the clock that counts it.
_QUIET = 0.05
_MOMENT_S = 0.2
_PATIENCE = 100
_STAT = Path("/proc/stat")


Clock = Callable[[], float]
"""Seconds since some moment."""

CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}
"""With one thread, processor time is what an idle machine takes, while others compute, too."""


class Stopwatch:
    """A gauge of time."""

    seconds: float = 0.0

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock

    def __enter__(self) -> Stopwatch:
        self._start = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = self._clock() - self._start


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of one number over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass
class Timings:
    """Seconds of each variant in each round, and how those that failed did.

    Attributes:
        seconds: variant -> one entry per round that counts.
        failures: variant -> what went wrong; such a variant has no seconds.
        others: how much of one core other processes took, at worst in what counts.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    others: float = 0.0

    def spread(self, name: str) -> Spread:
        """Seconds of one variant."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, to: str) -> Spread:
        """Of two variants' seconds, round by round: what slows a whole round cancels."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return Spread.of([mine / theirs for mine, theirs in pairs])


def interleave(
    variants: Mapping[str, Variant],
    blocks: Sequence[Sequence[Batch]],
    warmup: int,
    tries: int = 1,
    clock: Clock = time.perf_counter,
) -> Timings:
    """Run every block through every variant before the next block; the first `warmup` don't count.

    The order rotates from round to round, so that nobody always follows the same neighbour. Garbage
    is collected outside of the clock.

    Args:
        tries: of a variant with one block, while other processes disturb it.
        clock: what is measured.
    """
    timings = Timings({name: [] for name in variants})
    gc.collect()
    gc.freeze()
    for number, block in enumerate(blocks):
        for name in _rotated(list(variants), number):
            if name in timings.failures:
                continue
            found = _quietest(name, variants[name], block, timings, tries, clock)
            if found is not None and number >= warmup:
                timings.seconds[name].append(found.seconds)
                timings.others = max(timings.others, found.others)
    gc.unfreeze()
    return timings


@dataclass(frozen=True, slots=True)
class _Try:
    """Seconds of one variant with one block, and the share of a core that others took."""

    seconds: float
    others: float


def _quietest(
    name: str,
    variant: Variant,
    block: Sequence[Batch],
    timings: Timings,
    tries: int,
    clock: Clock,
) -> _Try | None:
    found: list[_Try] = []
    for _ in range(tries):
        if tries > 1:
            _await_quiet()
        start, before = time.perf_counter(), _seconds_of_others()
        seconds = _timed(name, variant, block, timings, clock)
        if seconds is None:
            return None
        others = max(0.0, _seconds_of_others() - before) / (time.perf_counter() - start)
        found.append(_Try(seconds, others))
        if others <= _QUIET:
            break
    return min(found, key=lambda each: each.others)


def _await_quiet() -> None:
    """Return once others computed next to nothing for a moment, or do not stop to."""
    for _ in range(_PATIENCE):
        before = _seconds_of_others()
        time.sleep(_MOMENT_S)
        if _seconds_of_others() - before <= _QUIET * _MOMENT_S:
            return


def _seconds_of_others() -> float:
    """Processor time of all processes but this one, since some moment; 0 where nobody says."""
    if not _STAT.exists():
        return 0.0
    user, nice, system = (int(each) for each in _STAT.read_text().split()[1:4])
    own = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def failure_of(error: Exception) -> str:
    """One line of an exception, for the table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".rstrip(": ")


def _timed(
    name: str, variant: Variant, block: Sequence[Batch], timings: Timings, clock: Clock
) -> float | None:
    gc.collect()
    watch = Stopwatch(clock)
    try:
        variant.run(block, watch)
    except FAILURES as error:
        timings.failures[name] = failure_of(error)
        timings.seconds.pop(name)
        return None
    return watch.seconds


def _rotated(names: list[str], number: int) -> list[str]:
    shift = number % len(names)
    return names[shift:] + names[:shift]

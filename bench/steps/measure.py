"""Interleaved timing: one block of batches for each variant in turn, round after round.

Where other processes compute meanwhile, threads that wait for each other take several times as
long. So rounds are made until enough were quiet, and the quietest count; nothing else decides.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from steps.variants import Variant
from steps.workload import Batch

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError)
"""What a library raises where it cannot do a model; NotImplementedError is a RuntimeError."""


# Of one core, in a quiet round.
_QUIET = 0.03
_STAT = Path("/proc/stat")


class Stopwatch:
    """A gauge of wall time."""

    seconds: float = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start


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
        others: how much of one core other processes took, in the worst round that counts.
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


@dataclass(frozen=True, slots=True)
class _Round:
    """One block, once through all variants."""

    seconds: Mapping[str, float]
    others: float


def interleave(
    variants: Mapping[str, Variant],
    blocks: Sequence[Sequence[Batch]],
    warmup: int,
    wanted: int | None = None,
) -> Timings:
    """Run every block through every variant before the next block; the first `warmup` don't count.

    The order rotates from round to round, so that nobody always follows the same neighbour. Garbage
    is collected outside of the clock.

    Args:
        wanted: rounds that count; with more blocks than that, those in which other processes
            computed least, and no more rounds once so many were quiet. All, if not given.
    """
    timings, rounds = Timings({name: [] for name in variants}), []
    gc.collect()
    gc.freeze()
    for number, block in enumerate(blocks):
        found = _round(variants, block, number, timings)
        rounds += [found] * (number >= warmup)
        if wanted is not None and sum(each.others <= _QUIET for each in rounds) >= wanted:
            break
    gc.unfreeze()
    chosen = sorted(rounds, key=lambda each: each.others)[:wanted]
    for name in timings.seconds:
        timings.seconds[name] = [each.seconds[name] for each in rounds if each in chosen]
    timings.others = max((each.others for each in chosen), default=0.0)
    return timings


def _round(
    variants: Mapping[str, Variant], block: Sequence[Batch], number: int, timings: Timings
) -> _Round:
    seconds = {}
    with Stopwatch() as watch:
        before = _seconds_of_others()
        for name in _rotated(list(variants), number):
            if name not in timings.failures:
                found = _timed(name, variants[name], block, timings)
                seconds.update({} if found is None else {name: found})
        others = _seconds_of_others() - before
    return _Round(seconds, max(0.0, others) / max(watch.seconds, 1e-9))


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


def _timed(name: str, variant: Variant, block: Sequence[Batch], timings: Timings) -> float | None:
    gc.collect()
    watch = Stopwatch()
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

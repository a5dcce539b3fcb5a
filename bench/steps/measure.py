"""Interleaved timing: one block of batches for each variant in turn, round after round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from steps.variants import Variant
from steps.workload import Batch

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError)
"""What a library raises where it cannot do a model; NotImplementedError is a RuntimeError."""


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
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def spread(self, name: str) -> Spread:
        """Seconds of one variant."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, to: str) -> Spread:
        """Of two variants' seconds, round by round: what slows a whole round cancels."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return Spread.of([mine / theirs for mine, theirs in pairs])


def interleave(
    variants: Mapping[str, Variant], blocks: Sequence[Sequence[Batch]], warmup: int
) -> Timings:
    """Run every block through every variant before the next block; the first `warmup` don't count.

    The order rotates from round to round, so that nobody always follows the same neighbour. Garbage
    is collected outside of the clock.
    """
    timings = Timings({name: [] for name in variants})
    gc.collect()
    gc.freeze()
    for number, block in enumerate(blocks):
        for name in _rotated(list(variants), number):
            if name in timings.failures:
                continue
            seconds = _timed(name, variants[name], block, timings)
            if seconds is not None and number >= warmup:
                timings.seconds[name].append(seconds)
    gc.unfreeze()
    return timings


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

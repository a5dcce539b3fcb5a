"""Axes: from a value to a place between 0 and 1, and the ticks to write beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from taciturn.reports.html.numbers import superscript

_MOST_TICKS = 6


@dataclass(frozen=True)
class AxisScale:
    """Maps [low, high] to [0, 1]; on a logarithmic scale, values are given as logarithms."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Place of `value` between low and high, kept within [0, 1]."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def log10_scale(log10_values: Sequence[float]) -> AxisScale:
    """Scale of log10 of probabilities: from a power of ten below the least of them up to 1."""
    lowest = math.floor(min(log10_values)) - 1
    step = max(1, math.ceil(-lowest / (_MOST_TICKS - 1)))
    powers = range(0, lowest - 1, -step)
    ticks = tuple((float(power), superscript(power) if power else "1") for power in powers)
    return AxisScale(float(lowest), 0.0, ticks[::-1])


def linear_scale(values: Sequence[float]) -> AxisScale:
    """Scale from 0 to just above the largest value, with ticks at round numbers."""
    step = _round_step(max(values) / (_MOST_TICKS - 1))
    count = math.ceil(max(values) / step)
    return AxisScale(
        0.0, step * count, tuple((step * n, f"{step * n:g}") for n in range(count + 1))
    )


def span_scale(low: float, high: float) -> AxisScale:
    """Scale from `low` to `high` as they are, with ticks at round numbers between them."""
    step = _round_step((high - low) / (_MOST_TICKS - 1))
    first, last = math.ceil(low / step), math.floor(high / step)
    ticks = tuple((step * n, f"{step * n:.12g}") for n in range(first, last + 1))
    return AxisScale(low, high, ticks)


def share_scale() -> AxisScale:
    """Shares from 0% to 100%."""
    return AxisScale(0.0, 1.0, tuple((n / 5, f"{20 * n}%") for n in range(6)))


def log10_share_scale(lowest: int) -> AxisScale:
    """Log10 of shares, from 10^lowest to 100%."""
    ticks = tuple((float(power), f"{100 * 10.0**power:g}%") for power in range(lowest, 1))
    return AxisScale(float(lowest), 0.0, ticks)


def _round_step(raw: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is at least `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9))

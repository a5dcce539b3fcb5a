"""Exponential tilts: what part of a composed loss an FFT must hold to keep a small delta exact.

Under a tilt of `order` a mass becomes mass * exp(order * loss - K(order)). That commutes with
composition and is undone after it, and it moves the tail that decides epsilon towards the bulk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from taciturn.accounting import renyi
from taciturn.accounting.gaussian import Floats

_LOG_BELOW = math.log(1e-12)  # tilted mass that may lie below the extent, or wrap around onto it
_LOG_ABOVE = math.log(1e-7)  # mass that may lie above it, as a share of delta
_DEVIATIONS = 16.0  # the highest Chernoff order tried, over the deviation
_LEAST_SHARE = math.log(1e-4)

SHARE_ABOVE = math.exp(_LOG_ABOVE)
"""What lies above an extent, at most, as a share of delta."""


@dataclass(frozen=True)
class Tilted:
    """One step's masses under a tilt: they sum to 1, and `cumulant` is what was divided out."""

    masses_L: Floats
    log_masses_L: Floats
    centred_L: Floats
    mean: float
    cumulant: float
    count: int

    @classmethod
    def of(cls, losses_L: Floats, log_masses_L: Floats, order: float, count: int) -> Tilted:
        """Tilt masses at losses; the step is taken `count` times."""
        log_masses_L = log_masses_L + order * losses_L
        cumulant = _log_sum(log_masses_L)
        log_masses_L -= cumulant
        # What is far below rounding would only slow an FFT down as denormal numbers.
        masses_L: Floats = np.exp(np.where(log_masses_L > -200, log_masses_L, -np.inf))
        mean = float(masses_L @ losses_L)
        return cls(masses_L, log_masses_L, losses_L - mean, mean, cumulant, count)

    def variance(self) -> float:
        """Variance of the loss of all its steps together."""
        return self.count * float(self.masses_L @ self.centred_L**2)

    def centred_cumulant(self, order: float) -> float:
        """log E[exp(order * (loss - mean))] of all its steps together."""
        return self.count * _log_sum(self.log_masses_L + order * self.centred_L)


class Extent(NamedTuple):
    """The composed losses that decide epsilon: from mean - below to mean + above.

    A cyclic FFT must reach over `length`, so that what wraps around from above lands where it does
    no harm.
    """

    mean: float
    below: float
    above: float
    length: float


def extent(parts: Sequence[Tilted], order: float, delta: float, interval: float) -> Extent:
    """Chernoff bounds on where composed, tilted mass lies.

    Below the extent lies 1e-12 of the tilted mass. Above it lies SHARE_ABOVE delta of the mass:
    P(loss > t) <= exp(K(order + s) - (order + s) t) for every s >= 0, where the tilt gives
    K(order + s) = cumulant + s mean + centred cumulant(s).

    Args:
        parts: the steps, all tilted by `order`.
        order: the tilt.
        delta: probability left out of the promise.
        interval: resolution of the losses; a deviation below it counts as this much.
    """
    mean = sum(part.count * part.mean for part in parts)
    cumulant = sum(part.count * part.cumulant for part in parts)
    deviation = max(math.sqrt(sum(part.variance() for part in parts)), interval)
    log_share = cumulant - order * mean - math.log(delta) - _LOG_ABOVE

    def centred(s: float) -> float:
        return sum(part.centred_cumulant(s) for part in parts)

    start = _DEVIATIONS / deviation
    below = _tightest(lambda s: (centred(-s) - _LOG_BELOW) / s, start)
    wrapped = _tightest(lambda s: (centred(s) - _LOG_BELOW) / s, start)
    above = _tightest(lambda s: (log_share + centred(s)) / (order + s), start)
    return Extent(mean, below, above, max(below + above, wrapped + deviation))


def choose_tilt(samples: renyi.Counted, epsilon: float, delta: float, order: float) -> float:
    """A tilt under which little has to be held to find an epsilon near this.

    That is `order`, its saddle point, unless steps that are rarely sampled make a long tail that
    the tilt would lift: then a weaker one, as long as it leaves 1e-4 of its mass to what decides
    epsilon.
    """
    length = _length(samples, order, delta)
    while True:
        weaker = order / 4
        share = math.log(delta) + weaker * epsilon - renyi.total_cumulant(samples, weaker)
        if share < _LEAST_SHARE:
            return order
        shorter = _length(samples, weaker, delta)
        if shorter > length / 1.5:
            return order
        order, length = weaker, shorter


def _length(samples: renyi.Counted, order: float, delta: float) -> float:
    parts = [Tilted.of(sample.losses_X, sample.log_masses_X, order, n) for sample, n in samples]
    return extent(parts, order, delta, 1e-12).length


def _tightest(bound: Callable[[float], float], start: float) -> float:
    """Smallest of a family of bounds that first falls, then rises, as the order is halved."""
    best, worse = bound(start), 0
    while worse < 2:
        start /= 2
        value = bound(start)
        worse = worse + 1 if value >= best else 0
        best = min(best, value)
    return best


def _log_sum(exponents: Floats) -> float:
    """log of the sum of exp(exponents)."""
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top).sum()))

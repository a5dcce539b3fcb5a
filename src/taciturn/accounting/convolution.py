"""Composition of loss grids by FFT under an exponential tilt.

delta = 1e-12 after 100,000 steps lies below what rounding leaves of a plain FFT of probabilities.
So each grid is tilted first, mass * exp(order * loss - K), which moves the tail that decides
epsilon into the bulk (the saddle point of the composition); there a relative precision of 1e-10 is
kept. Tilting commutes with convolution and is undone after it.

Every approximation errs upwards. The FFT is cyclic on a window: what lies outside wraps into it
and is counted on top; what lies above is bounded by Chernoff and counted as infinite loss as well;
what the FFT can have lost to rounding is added to every mass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from taciturn.accounting.gaussian import Floats
from taciturn.accounting.privacy_loss import LossGrid

Counted = Sequence[tuple[LossGrid, int]]
"""Loss grids of distinct steps, all of one interval, each with how often the step is taken."""

_LOG_BELOW = math.log(1e-12)  # tilted mass that may lie below the window
_LOG_ABOVE = math.log(1e-7)  # mass that may lie above it, as a share of delta
_DEVIATIONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # Chernoff orders tried, over the deviation
_EPS = 1e-15  # rounding of a mass, relative to the largest, for each factor of its spectrum
_MAX_LENGTH = 2**19  # of an FFT: what is longer wraps around, upwards
_ATTEMPTS = 12


def composed_epsilon(grids: Counted, order: float, delta: float) -> float:
    """Upper bound on epsilon of the composition at `delta`, sharp if `order` is near its saddle.

    Args:
        grids: what is composed.
        order: tilt; any positive number gives an upper bound, a poor one costs another attempt.
        delta: probability left out of the promise.

    Returns:
        Epsilon, at least 0; infinite where more than delta has an infinite loss.
    """
    for _ in range(_ATTEMPTS):
        tail = _compose(grids, order, delta)
        epsilon = tail.epsilon(delta)
        if epsilon > tail.lowest or tail.complete:
            return max(epsilon, 0.0)
        if tail.lowest <= 0:
            return 0.0
        order /= 4  # epsilon lies below the window: look lower
    return tail.lowest


@dataclass(frozen=True)
class _Tail:
    """Composed losses from the lowest that is known, ascending, and their masses, tilt undone."""

    losses_L: Floats
    masses_L: Floats
    infinity_mass: float
    complete: bool
    """No mass lies below the window."""

    @property
    def lowest(self) -> float:
        return float(self.losses_L[0])

    def epsilon(self, delta: float) -> float:
        """Where delta(eps) = infinity_mass + sum over losses above eps of (1 - e^(eps-loss)) mass.

        Between two losses that sum is a - e^(eps - loss) s, with `loss` the next one up, a the mass
        from there on and s the same mass discounted by e^(loss - its own loss): solved for eps.
        Below `lowest` the answer holds only if the window is complete.
        """
        if self.infinity_mass >= delta:
            return math.inf
        interval = float(self.losses_L[1] - self.losses_L[0])
        downward = self.masses_L[::-1]
        mass_L = np.cumsum(downward)[::-1]
        discounted_L = signal.lfilter([1.0], [1.0, -math.exp(-interval)], downward)[::-1]
        deltas_L = self.infinity_mass + mass_L - discounted_L
        above = int(np.argmax(deltas_L <= delta))  # the last one is infinity_mass, below delta
        share = (self.infinity_mass + float(mass_L[above]) - delta) / float(discounted_L[above])
        if share <= 0:
            return -math.inf
        rounding = 1e-9 * interval
        return float(self.losses_L[above]) + min(math.log(share), 0.0) + rounding


@dataclass(frozen=True)
class _Tilted:
    """One step's masses under the tilt: they sum to 1, and `cumulant` is what was divided out."""

    masses_L: Floats
    log_masses_L: Floats
    centred_L: Floats
    mean: float
    cumulant: float
    count: int

    @classmethod
    def of(cls, grid: LossGrid, order: float, count: int) -> _Tilted:
        losses_L = grid.losses()
        with np.errstate(divide="ignore"):
            log_masses_L = np.log(grid.masses_L) + order * losses_L
        cumulant = _log_sum(log_masses_L)
        log_masses_L -= cumulant
        # What is far below rounding would only slow the FFT down as denormal numbers.
        masses_L: Floats = np.exp(np.where(log_masses_L > -200, log_masses_L, -np.inf))
        mean = float(masses_L @ losses_L)
        return cls(masses_L, log_masses_L, losses_L - mean, mean, cumulant, count)

    def variance(self) -> float:
        """Of the loss of all its steps together."""
        return self.count * float(self.masses_L @ self.centred_L**2)

    def centred_cumulant(self, order: float) -> float:
        """log E[exp(order * (loss - mean))] of all its steps together."""
        return self.count * _log_sum(self.log_masses_L + order * self.centred_L)


@dataclass(frozen=True)
class _Window:
    """Indices of composed losses: which ones are needed, and how many a cyclic FFT must hold."""

    lowest: int
    highest: int
    length: int


def _compose(grids: Counted, order: float, delta: float) -> _Tail:
    """The part of the composed loss that decides epsilon, if `order` is right."""
    parts = [_Tilted.of(grid, order, count) for grid, count in grids]
    cumulant = sum(part.count * part.cumulant for part in parts)
    window = _window(grids, parts, order, cumulant - math.log(delta) - _LOG_ABOVE)
    masses_L = _convolve(grids, parts, window)
    indices_L = window.lowest + np.arange(len(masses_L), dtype=np.float64)
    losses_L = indices_L * grids[0][0].interval
    # Capped at e^600, so far below epsilon that it does not matter.
    masses_L *= np.exp(np.minimum(cumulant - order * losses_L, 600.0))
    infinity_mass = sum(count * grid.infinity_mass for grid, count in grids)
    bottom, top = _support(grids)
    if window.highest < top:
        infinity_mass += math.exp(_LOG_ABOVE) * delta
    return _Tail(losses_L, masses_L, infinity_mass, complete=window.lowest == bottom)


def _window(grids: Counted, parts: Sequence[_Tilted], order: float, log_share: float) -> _Window:
    """The losses that decide epsilon, which lies near the tilted mean.

    Below the window lies 1e-12 of the tilted mass. Above it lies exp(_LOG_ABOVE) delta of the mass:
    P(loss > t) <= exp(K(order + s) - (order + s) t) for every s >= 0, where the tilt gives
    K(order + s) = cumulant + s mean + centred cumulant(s). The FFT is long enough that what wraps
    around from above lands below epsilon, where it does no harm.
    """
    interval = grids[0][0].interval
    mean = sum(part.count * part.mean for part in parts)
    deviation = max(math.sqrt(sum(part.variance() for part in parts)), interval)
    orders = [multiple / deviation for multiple in _DEVIATIONS]
    rising = [sum(part.centred_cumulant(s) for part in parts) for s in orders]
    falling = [sum(part.centred_cumulant(-s) for part in parts) for s in orders]
    below = min((c - _LOG_BELOW) / s for c, s in zip(falling, orders, strict=True))
    wrapped = min((c - _LOG_BELOW) / s for c, s in zip(rising, orders, strict=True))
    above = (log_share + order * -mean) / order
    for c, s in zip(rising, orders, strict=True):
        above = min(above, (log_share - order * mean + c) / (order + s))
    bottom, top = _support(grids)
    highest = max(min(math.ceil((mean + above) / interval), top), bottom + 1)
    lowest = max(math.floor((mean - below) / interval), bottom, highest + 1 - _MAX_LENGTH)
    lowest = min(lowest, highest - 1)
    length = min(math.ceil((wrapped + deviation) / interval), top - bottom + 1, _MAX_LENGTH)
    return _Window(lowest, highest, max(length, highest - lowest + 1))


def _support(grids: Counted) -> tuple[int, int]:
    """Lowest and highest index that the composition can reach."""
    bottom = sum(count * grid.first for grid, count in grids)
    return bottom, bottom + sum(count * (len(grid.masses_L) - 1) for grid, count in grids)


def _convolve(grids: Counted, parts: Sequence[_Tilted], window: _Window) -> Floats:
    """Tilted masses of the composition on the window, or at most a little above it."""
    length = fft.next_fast_len(window.length, real=True)
    spectrum: complex | NDArray[np.complex128] = 1.0
    rounding = 20.0
    for part in parts:
        rounding += part.count
        step = fft.rfft(_folded(part.masses_L, length), length)
        spectrum = spectrum * _power(step, part.count)
    bottom, _ = _support(grids)
    rolled = np.roll(fft.irfft(spectrum, length), (bottom - window.lowest) % length)
    masses_L: Floats = np.maximum(rolled[: window.highest - window.lowest + 1], 0.0)
    return masses_L + _EPS * rounding * float(rolled.max())


def _power(spectrum: NDArray[np.complex128], count: int) -> NDArray[np.complex128]:
    """spectrum ** count where that is above 1e-35, 0 elsewhere: most of it is 0."""
    audible = spectrum.real**2 + spectrum.imag**2 > math.exp(-160 / count)
    power = np.zeros_like(spectrum)
    power[audible] = spectrum[audible] ** count
    return power


def _folded(masses_L: Floats, length: int) -> Floats:
    """Masses modulo `length`: what a cyclic convolution of that length sees of them."""
    if len(masses_L) <= length:
        return masses_L
    padded = np.pad(masses_L, (0, -len(masses_L) % length))
    folded: Floats = padded.reshape(-1, length).sum(axis=0)
    return folded


def _log_sum(exponents: Floats) -> float:
    """log of the sum of exp(exponents)."""
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top).sum()))

"""Composition of loss grids by FFT, under an exponential tilt.

delta = 1e-12 after 100,000 steps lies below what rounding leaves of a plain FFT of probabilities.
Under a tilt (see `tilting`) the tail that decides epsilon is in the bulk, and ten digits are kept.

Every approximation errs upwards. The FFT is cyclic on a window: what lies outside wraps into it
and is counted on top; what lies above is bounded by Chernoff and counted as infinite loss as well;
what the FFT can have lost to rounding is added to every mass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from taciturn.accounting.gaussian import Floats
from taciturn.accounting.privacy_loss import LossGrid
from taciturn.accounting.tilting import SHARE_ABOVE, Tilted, extent

Counted = Sequence[tuple[LossGrid, int]]
"""Loss grids of distinct steps, all of one interval, each with how often the step is taken."""

_EPS = 1e-15  # rounding of a mass, relative to the largest, for each factor of its spectrum
_MAX_LENGTH = 2**22  # of an FFT: what is longer wraps around, upwards
_ATTEMPTS = 12


class Answer(NamedTuple):
    """Epsilon at some delta, and how fast log(delta) falls there as epsilon grows."""

    epsilon: float
    slope: float


def composed_epsilon(grids: Counted, order: float, delta: float) -> Answer:
    """Upper bound on epsilon of the composition at `delta`, sharp if `order` is near its saddle.

    Args:
        grids: what is composed.
        order: tilt; any positive number gives an upper bound, a poor one costs another attempt.
        delta: probability left out of the promise.

    Returns:
        Epsilon, at least 0; infinite where more than delta has an infinite loss.
    """
    for _ in range(_ATTEMPTS):
        tail = composed_tail(grids, order, delta)
        answer = tail.answer(delta)
        if answer.epsilon > tail.lowest or tail.complete:
            return answer if answer.epsilon > 0 else Answer(0.0, answer.slope)
        if tail.lowest <= 0:
            return Answer(0.0, answer.slope)
        order /= 4  # epsilon lies below the window: look lower
    return Answer(tail.lowest, answer.slope)


@dataclass(frozen=True)
class Tail:
    """Losses of the composition from the lowest that is known, ascending, and their masses, tilt
    undone."""

    losses_L: Floats
    masses_L: Floats
    infinity_mass: float
    complete: bool
    """No mass lies below the window."""

    @property
    def lowest(self) -> float:
        return float(self.losses_L[0])

    def answer(self, delta: float) -> Answer:
        """Solve delta(eps) = infinity_mass + sum over losses above eps of (1 - e^(eps-loss)) mass.

        Between two losses that sum is a - e^(eps - loss) s, with `loss` the next one up, a the mass
        from there on and s the same mass discounted by e^(loss - its own loss): solved for eps.
        Below `lowest` the answer holds only if the window is complete.
        """
        if self.infinity_mass >= delta:
            return Answer(math.inf, 0.0)
        interval = float(self.losses_L[1] - self.losses_L[0])
        downward = self.masses_L[::-1]
        mass_L = np.cumsum(downward)[::-1]
        discounted_L = signal.lfilter([1.0], [1.0, -math.exp(-interval)], downward)[::-1]
        deltas_L = self.infinity_mass + mass_L - discounted_L
        above = int(np.argmax(deltas_L <= delta))  # the last one is infinity_mass, below delta
        discounted = float(discounted_L[above])
        share = (self.infinity_mass + float(mass_L[above]) - delta) / discounted
        if share <= 0:
            return Answer(-math.inf, discounted / delta)
        step = min(math.log(share), 0.0)
        rounding = 1e-9 * interval
        epsilon = float(self.losses_L[above]) + step + rounding
        return Answer(epsilon, math.exp(step) * discounted / delta)


def composed_tail(grids: Counted, order: float, delta: float) -> Tail:
    """The part of the composed loss that decides epsilon at `delta`, if `order` is right.

    Under no tilt, order 0, that is all but 1e-12 of the mass. At every epsilon from `lowest` on,
    the divergence of these losses is an upper bound on that of the composition.
    """
    with np.errstate(divide="ignore"):
        parts = [
            Tilted.of(grid.losses(), np.log(grid.masses_L), order, count) for grid, count in grids
        ]
    interval = grids[0][0].interval
    mean, below, above, length = extent(parts, order, delta, interval)
    bottom, top = _support(grids)
    highest = max(min(math.ceil((mean + above) / interval), top), bottom + 1)
    lowest = max(math.floor((mean - below) / interval), bottom, highest + 1 - _MAX_LENGTH)
    lowest = min(lowest, highest - 1)
    size = min(math.ceil(length / interval), top - bottom + 1, _MAX_LENGTH)
    masses_L = _convolve(grids, parts, lowest, max(size, highest - lowest + 1))
    masses_L = masses_L[: highest - lowest + 1]
    losses_L = (lowest + np.arange(len(masses_L), dtype=np.float64)) * interval
    cumulant = sum(part.count * part.cumulant for part in parts)
    # Capped at e^600, so far below epsilon that it does not matter.
    masses_L *= np.exp(np.minimum(cumulant - order * losses_L, 600.0))
    infinity_mass = sum(count * grid.infinity_mass for grid, count in grids)
    if highest < top:
        infinity_mass += SHARE_ABOVE * delta
    return Tail(losses_L, masses_L, infinity_mass, complete=lowest == bottom)


def _support(grids: Counted) -> tuple[int, int]:
    """Lowest and highest index that the composition can reach."""
    bottom = sum(count * grid.first for grid, count in grids)
    return bottom, bottom + sum(count * (len(grid.masses_L) - 1) for grid, count in grids)


def _convolve(grids: Counted, parts: Sequence[Tilted], lowest: int, size: int) -> Floats:
    """Masses of the composition, tilted, from index `lowest` on, modulo at least `size`."""
    length = fft.next_fast_len(size, real=True)
    spectrum: complex | NDArray[np.complex128] = 1.0
    rounding = 20.0
    for part in parts:
        rounding += part.count
        step = fft.rfft(_folded(part.masses_L, length), length)
        spectrum = spectrum * _power(step, part.count)
    bottom, _ = _support(grids)
    rolled = np.roll(fft.irfft(spectrum, length), (bottom - lowest) % length)
    masses_L: Floats = np.maximum(rolled, 0.0)
    masses_L += _EPS * rounding * float(rolled.max())
    return masses_L


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

"""Privacy loss of one step: how far adding or removing one unit can move what is released.

One step of DP-SGD is dominated by a pair of distributions on the line (Koskela et al. 2020; Zhu et
al. 2022, theorem 11): Q = N(0, s^2) without the unit and P = (1-q) N(0, s^2) + q N(-1, s^2) with
it, q the sampling probability and s the noise multiplier. The privacy loss at x is
log P(x)/Q(x) = log(1 - q + q exp((-1/2 - x)/s^2)), falling in x. Removing the unit draws x from P,
adding it draws x from Q and turns the sign of the loss.

Here losses go onto a grid by Connect-the-Dots (Doroshenko et al. 2022, algorithm 1), the same
estimate as `dp_accounting`'s: an upper bound at every epsilon, however coarse the grid. Two things
differ, and the tests hold both against `dp_accounting`: all points are computed at once, and the
divergence below loss 0 is taken from its other end, where it is small, so that masses are right to
1e-15 instead of 1e-9.

Shapes: L points of a loss grid, X points of a quadrature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from taciturn.accounting.gaussian import Floats, hockey_stick

Direction = Literal["remove", "add"]

_TAIL_DEVIATIONS = 10.0

TAIL_MASS = 2e-23
"""What lies beyond 10 standard deviations on both sides; it counts as an infinite loss."""


@dataclass(frozen=True, order=True)
class SampledGaussian:
    """One step: Poisson sampling, then Gaussian noise on a sum of l2 sensitivity 1."""

    sampling_probability: float
    noise_multiplier: float

    def loss(self, x: Floats | float) -> Floats:
        """Privacy loss at x for removal of the unit; for addition turn the sign."""
        q = self.sampling_probability
        unsampled = (-0.5 - np.asarray(x, dtype=np.float64)) / self.noise_multiplier**2
        if q == 1:
            return unsampled
        return np.logaddexp(math.log1p(-q), math.log(q) + unsampled)

    def reach(self, direction: Direction) -> tuple[float, float]:
        """The x between which all but TAIL_MASS lies."""
        tail = _TAIL_DEVIATIONS * self.noise_multiplier
        return (-1 - tail, tail) if direction == "remove" else (-tail, tail)


@dataclass(frozen=True)
class LossGrid:
    """An upper estimate of one step's privacy loss: masses at (first + i) * interval.

    Attributes:
        interval: distance of two neighbouring losses.
        first: index of the lowest loss; loss 0 has index 0.
        masses_L: probability of each loss.
        infinity_mass: probability counted as an infinite loss.
    """

    interval: float
    first: int
    masses_L: Floats
    infinity_mass: float

    def losses(self) -> Floats:
        """The losses, ascending."""
        return _multiples(self.first, len(self.masses_L), self.interval)


@dataclass(frozen=True)
class LossSample:
    """The privacy loss of one step within its reach; sums over it converge exponentially."""

    losses_X: Floats
    log_masses_X: Floats


def connect_the_dots(step: SampledGaussian, interval: float, direction: Direction) -> LossGrid:
    """The step's privacy loss on multiples of `interval`; its divergence is never too small."""
    low, high = loss_range(step, direction)
    first, last = min(math.floor(low / interval), 0), max(math.ceil(high / interval), 1)
    epsilons = _multiples(first - 1, last - first + 3, interval)
    gap = _divergence(step, epsilons, direction)
    gap[0] = gap[1] * math.exp(-interval)  # no mass of P below the grid: it is lifted onto it
    gap[-1] = gap[-2]  # what lies above the grid has an infinite loss
    before, middle, after = gap[:-2].copy(), gap[1:-1], gap[2:]
    before[-first] -= math.expm1(-interval)  # at loss 0, from the lower form to the upper
    masses_L = ((after - middle) * math.exp(-interval) - (middle - before)) / -math.expm1(-interval)
    return LossGrid(interval, first, np.maximum(masses_L, 0.0), float(middle[-1]))


def loss_range(step: SampledGaussian, direction: Direction) -> tuple[float, float]:
    """Lowest and highest loss within the step's reach."""
    left, right = step.reach(direction)
    ends = float(step.loss(right)), float(step.loss(left))
    return ends if direction == "remove" else (-ends[1], -ends[0])


def quadrature(step: SampledGaussian, direction: Direction) -> LossSample:
    """The loss at evenly spaced x, weighted with the density of what is drawn."""
    q, noise = step.sampling_probability, step.noise_multiplier
    x = np.linspace(*step.reach(direction), 1000 + math.ceil(10 / noise))
    losses_X, log_masses_X = step.loss(x), -0.5 * (x / noise) ** 2
    if direction == "add":
        losses_X = -losses_X
    else:
        with_unit = math.log(q) - 0.5 * ((x + 1) / noise) ** 2
        without = log_masses_X + (math.log1p(-q) if q < 1 else -math.inf)
        log_masses_X = np.logaddexp(without, with_unit)
    return LossSample(losses_X, log_masses_X - special.logsumexp(log_masses_X))


def _divergence(step: SampledGaussian, epsilons: Floats, direction: Direction) -> Floats:
    """delta(eps) for eps >= 0, and delta(eps) - (1 - e^eps) below 0: the part that decays.

    Connect-the-Dots takes second differences under which 1 - e^eps vanishes, so either form gives
    the same masses; each is used where it is small. For every pair of distributions the second
    form is e^eps delta(-eps) of the pair exchanged, so below 0 the other direction takes over.
    """
    above, below = (_removed, _added) if direction == "remove" else (_added, _removed)
    positive = epsilons >= 0
    negative = epsilons[~positive]
    gap = np.empty_like(epsilons)
    gap[positive] = above(step, epsilons[positive])
    gap[~positive] = np.exp(negative) * below(step, -negative)
    return gap


def _removed(step: SampledGaussian, epsilons: Floats) -> Floats:
    """delta(eps) for eps >= 0 of P against Q: q delta_Gauss(l), where sampling turns l into eps.

    l = log((e^eps - 1 + q) / q), without cancellation and without overflow.
    """
    q = step.sampling_probability
    small = np.log1p(np.expm1(np.minimum(epsilons, 1.0)) / q)
    large = epsilons + np.log1p((q - 1) * np.exp(-epsilons)) - math.log(q)
    losses = np.where(epsilons > 1, large, small)
    return q * hockey_stick(losses, step.noise_multiplier)


def _added(step: SampledGaussian, epsilons: Floats) -> Floats:
    """delta(eps) for eps >= 0 of Q against P: r delta_Gauss(eps - log(r / q)).

    Q - e^eps P = r N(0, s^2) - e^eps q N(-1, s^2) with r = 1 - (1 - q) e^eps, a Gaussian pair
    again; from r = 0 on there is no loss.
    """
    q = step.sampling_probability
    near = np.minimum(epsilons, 0.7)
    # 1 - q is exact from q = 1/2 on, and a smaller q has no loss above log 2 = 0.69.
    far = np.minimum(epsilons, 700.0) if q < 1 else np.zeros_like(epsilons)
    remainder = np.where(epsilons < 0.7, q - (1 - q) * np.expm1(near), 1 - (1 - q) * np.exp(far))
    some = remainder > 0
    deltas = np.zeros_like(epsilons)
    losses = epsilons[some] - np.log(remainder[some] / q)
    deltas[some] = remainder[some] * hockey_stick(losses, step.noise_multiplier)
    return deltas


def _multiples(first: int, count: int, interval: float) -> Floats:
    return (first + np.arange(count, dtype=np.float64)) * interval

"""Rényi bounds on composed steps: cheap, and used to choose tilt and grid of the exact accountant.

K(order) = log E[exp(order * loss)] adds up over steps; order + 1 is the usual alpha and
K(order) / order the Rényi divergence. Sums run over `privacy_loss.quadrature`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from taciturn.accounting.gaussian import Floats
from taciturn.accounting.privacy_loss import TAIL_MASS, LossSample

Counted = Sequence[tuple[LossSample, int]]
"""Losses of distinct steps, each with how often it is taken."""

_LOG_ORDERS = np.linspace(-12.0, 20.0, 17)


def cumulant(sample: LossSample, order: float) -> float:
    """K(order) = log E[exp(order * loss)] of one step."""
    exponents = order * sample.losses_X
    if np.abs(exponents[[0, -1]]).max() < 1:  # K is near 0 and times many steps: keep its digits
        return math.log1p(float(np.exp(sample.log_masses_X) @ np.expm1(exponents)))
    exponents += sample.log_masses_X
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top).sum()))


def total_cumulant(samples: Counted, order: float) -> float:
    """K(order) of all steps together."""
    return sum(n * cumulant(sample, order) for sample, n in samples)


def renyi_epsilon(samples: Counted, delta: float) -> tuple[float, float]:
    """(order, epsilon) of the best Rényi bound (Canonne, Kamath & Steinke 2020, proposition 12).

    What a quadrature leaves out counts as an infinite loss.
    """
    finite = delta - sum(n for _, n in samples) * TAIL_MASS
    if finite <= 0:
        return 1.0, math.inf

    def bound(log_order: float) -> float:
        order = math.exp(log_order)
        slack = order * log_order - (1 + order) * math.log1p(order) - math.log(finite)
        return (total_cumulant(samples, order) + slack) / order

    best = int(np.argmin([bound(log_order) for log_order in _LOG_ORDERS]))
    around = _LOG_ORDERS[max(best - 1, 0)], _LOG_ORDERS[min(best + 1, len(_LOG_ORDERS) - 1)]
    found = optimize.minimize_scalar(
        bound, bounds=around, method="bounded", options={"xatol": 1e-2}
    )
    return math.exp(found.x), max(float(found.fun), 0.0)


def saddle_order(samples: Counted, epsilon: float, highest: float) -> float:
    """The order at most `highest` under which epsilon is the mean of the tilted, composed loss."""

    def excess(log_order: float) -> float:
        order = math.exp(log_order)
        return sum(n * _mean(sample, order) for sample, n in samples) - epsilon

    low, high = float(_LOG_ORDERS[0]), math.log(highest)
    if low >= high or excess(low) >= 0:
        return min(math.exp(low), highest)
    if excess(high) <= 0:
        return highest
    return math.exp(optimize.brentq(excess, low, high, xtol=0.02))


def grid_interval(samples: Counted, order: float, allowed: float) -> float:
    """The widest grid interval, in powers of 2 from a bound, that costs at most `allowed` epsilon.

    Connect-the-Dots splits a loss l in [a, b] between a and b and keeps E[1] and E[e^-loss], which
    multiplies E[e^(order * loss)] by at most 1 + order (order + 1) (l - a)(b - l) / 2 to second
    order in b - a; at the order that fits epsilon, epsilon grows by the sum of the logarithms over
    the steps divided by `order`. (l - a)(b - l) <= interval^2 / 4 starts the search.
    """
    steps = sum(n for _, n in samples)
    interval = math.sqrt(8 * allowed / (steps * (1 + order)))
    tilted = [(sample.losses_X, n * _tilt(sample, order)) for sample, n in samples]

    def cost(interval: float) -> float:
        spread = 0.0
        for losses_X, weights_X in tilted:
            part = losses_X / interval
            part -= np.floor(part)
            spread += float(weights_X @ (part * (1 - part)))
        return 0.5 * (1 + order) * spread * interval**2

    widest = max(float(np.abs(losses_X).max()) for losses_X, _ in tilted)
    while interval < widest and cost(2 * interval) <= allowed:
        interval *= 2
    return interval


def composed_deviation(samples: Counted, order: float) -> float:
    """Standard deviation of the composed loss under the tilt."""
    variance = 0.0
    for sample, n in samples:
        weights_X = _tilt(sample, order)
        mean = weights_X @ sample.losses_X
        variance += n * float(weights_X @ (sample.losses_X - mean) ** 2)
    return math.sqrt(variance)


def _mean(sample: LossSample, order: float) -> float:
    return float(_tilt(sample, order) @ sample.losses_X)


def _tilt(sample: LossSample, order: float) -> Floats:
    exponents = order * sample.losses_X + sample.log_masses_X
    weights_X: Floats = np.exp(exponents - exponents.max())
    weights_X /= weights_X.sum()
    return weights_X

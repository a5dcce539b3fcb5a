"""Rényi bounds on composed steps: cheap, and used to choose tilt and grid of the exact accountant.

K(order) = log E[exp(order * loss)] adds up over steps; order + 1 is the usual alpha and
K(order) / order the Rényi divergence. Sums run over `privacy_loss.quadrature`, which holds what
decides epsilon; `divergence` holds what a privacy filter needs, an upper bound at every order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

from taciturn.accounting.gaussian import Floats
from taciturn.accounting.privacy_loss import TAIL_MASS, LossSample, SampledGaussian

Counted = Sequence[tuple[LossSample, int]]
"""Losses of distinct steps, each with how often it is taken."""

_LOG_ORDERS = np.linspace(-12.0, 20.0, 17)

_REACH = 12.0  # deviations on both sides of what an order looks at: 4e-33 lies beyond
_DIVERGENCE_POINTS = 200_000
_ROUNDING = 1 + 1e-9


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
    minimum = optimize.minimize_scalar(
        bound, bounds=around, method="bounded", options={"xatol": 1e-2}
    )
    return math.exp(minimum.x), max(float(minimum.fun), 0.0)


def divergence(step: SampledGaussian, alpha: float) -> float:
    """Rényi divergence of one step at order `alpha` > 1, for adding or removing a unit: no less.

    Removing is the larger of the two (Mironov, Talwar & Zhang 2019, section 3.2), and it is
    log(1 + E[f]) / (alpha - 1) with f(u) = (1 + u)^alpha - 1 - alpha u, u = q (e^z - 1) and
    E[u] = 0, where z is the loss without sampling at a draw without the unit. f is never negative,
    so nothing cancels and every digit is kept, at fractional orders too; the trapezoid sum of an
    analytic function converges exponentially. What an order that is high for its noise would take
    too many points for, is bounded by the step without sampling, which costs more.
    """
    q, noise = step.sampling_probability, step.noise_multiplier
    spacing = min(0.3, noise / 4)
    points = math.ceil((alpha / noise + 2 * _REACH) / spacing) + 1
    if q == 1 or points > _DIVERGENCE_POINTS:
        return alpha / (2 * noise**2) * _ROUNDING
    # In standard deviations, up to where the order moves the mean.
    x = spacing * np.arange(points, dtype=np.float64) - _REACH
    terms_X = _log_excess(q, x / noise - 0.5 / noise**2, alpha) - x * x / 2
    total = float(special.logsumexp(terms_X)) + math.log(spacing) - 0.5 * math.log(2 * math.pi)
    return float(np.logaddexp(0.0, total)) / (alpha - 1) * _ROUNDING


def _log_excess(q: float, z_X: Floats, alpha: float) -> Floats:
    """log f(q (e^z - 1)), f(u) = (1 + u)^alpha - 1 - alpha u, without cancellation or overflow."""
    u_X = q * np.expm1(np.minimum(z_X, 700.0))
    log_X = np.where(z_X > 30, np.logaddexp(math.log1p(-q), math.log(q) + z_X), np.log1p(u_X))
    log_f_X: Floats = alpha * log_X  # where 1 + alpha u is nothing beside it: no less than f
    small = np.abs(alpha * u_X) < 1e-3
    u = u_X[small]
    series = 1 + (alpha - 2) / 3 * u * (1 + (alpha - 3) / 4 * u)
    middle = ~small & (log_f_X < 30)
    excess = np.expm1(log_f_X[middle]) - alpha * u_X[middle]
    with np.errstate(divide="ignore"):
        log_f_X[small] = np.log(alpha * (alpha - 1) / 2 * u**2 * series)
        log_f_X[middle] = np.log(excess)
    return log_f_X


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


def grid_interval(samples: Counted, order: float, excess: float) -> float:
    """The widest grid interval, in powers of 2 from a bound, that costs at most `excess` epsilon.

    Connect-the-Dots splits a loss l in [a, b] between a and b and keeps E[1] and E[e^-loss], which
    multiplies E[e^(order * loss)] by at most 1 + order (order + 1) (l - a)(b - l) / 2 to second
    order in b - a; at the order that fits epsilon, epsilon grows by the sum of the logarithms over
    the steps divided by `order`. (l - a)(b - l) <= interval^2 / 4 starts the search.
    """
    steps = sum(n for _, n in samples)
    interval = math.sqrt(8 * excess / (steps * (1 + order)))
    tilted = [(sample.losses_X, n * _tilt(sample, order)) for sample, n in samples]

    def cost(interval: float) -> float:
        spread = 0.0
        for losses_X, weights_X in tilted:
            part = losses_X / interval
            part -= np.floor(part)
            spread += float(weights_X @ (part * (1 - part)))
        return 0.5 * (1 + order) * spread * interval**2

    widest = max(float(np.abs(losses_X).max()) for losses_X, _ in tilted)
    while interval < widest and cost(2 * interval) <= excess:
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

"""The Gaussian mechanism in closed form: no grid, no sampling (Balle & Wang 2018, theorem 8)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Floats = NDArray[np.float64]


def hockey_stick(losses: Floats, noise_multiplier: float) -> Floats:
    """delta(loss) of one Gaussian step with sensitivity 1: sup over events of P(E) - e^loss Q(E).

    Precise to the last digits of P(E): what is subtracted is formed in logarithms.
    """
    half = 0.5 / noise_multiplier
    shifted = losses * noise_multiplier
    below = np.exp(losses + special.log_ndtr(-half - shifted))
    deltas: Floats = np.maximum(special.ndtr(half - shifted) - below, 0.0)
    return deltas


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Epsilon of one Gaussian step with sensitivity 1, exact to 1e-9 and rounded up.

    k steps of noise multiplier s cost what one step of s / sqrt(k) costs.
    """

    def excess(epsilon: float) -> float:
        return float(hockey_stick(np.array([epsilon]), noise_multiplier)[0]) - delta

    if excess(0.0) <= 0:
        return 0.0
    # Tail bound: delta(eps) <= P(loss > eps), a normal tail at `deviations`.
    deviations = math.sqrt(-2 * math.log(delta))
    highest = 0.5 / noise_multiplier**2 + deviations / noise_multiplier
    root = optimize.brentq(excess, 0.0, highest, xtol=1e-12, rtol=1e-12)
    return float(root) * (1 + 1e-9) + 1e-12

"""Claim of an engine: the whole trade-off function of a run, not one (epsilon, delta) of it.

An audit sees what happens often; epsilon at delta = 1e-5 is about what hardly ever happens. The
curve joins the two: a test that is better than it allows refutes the claim where that can be seen.

The points come from Google's `dp_accounting` and not from our own accountant: an auditor should not
have to trust the one who made the promise. Its estimates are upper bounds of delta, so the curve
lies on or below the true one, and is refuted too seldom rather than too often.

Shapes: E points of a privacy profile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray

from taciturn.engine.auditing.bounds import Guesses, contradicts

# Smallest delta of a profile: rarer events than this tell an audit nothing.
_RAREST = 1e-12
_LARGEST = 500.0  # epsilons beyond this overflow, and promise nothing
_POINTS = 200
# Steps of the grid of losses, as a share of the largest loss that matters.
_RESOLUTION = 2e-4
_FURTHEST = 32  # x more or less noise than was promised is looked for
_BISECTIONS = 6  # within a factor of two: to 1%


@dataclass(frozen=True, slots=True)
class DpSgdRun:
    """The numbers that the guarantee of one DP-SGD run depends on.

    Attributes:
        sampling_probability: chance of each unit to join a step.
        noise_multiplier: noise standard deviation over the clip norm.
        steps: logical steps.
    """

    sampling_probability: float
    noise_multiplier: float
    steps: int

    def epsilon(self, delta: float) -> float:
        """Epsilon that the run promises at `delta`, by dp_accounting's accountant."""
        return float(_losses(self).get_epsilon_for_delta(delta))


@dataclass(frozen=True, slots=True)
class PrivacyProfile:
    """A trade-off function by points (epsilon, delta) that all hold (Dong et al. 2022, prop. 6).

    A test of power p on either side has at least the error that each point leaves it:
    exp(-epsilon) (p - delta), and 1 - delta - exp(epsilon) (1 - p).

    Attributes:
        epsilons_E: ascending from 0.
        deltas_E: an upper bound of delta at each.
    """

    epsilons_E: NDArray[np.float64]
    deltas_E: NDArray[np.float64]

    @classmethod
    def of(cls, run: DpSgdRun) -> PrivacyProfile:
        """The profile of a run, adding and removing a unit both covered."""
        losses = _losses(run)
        highest = min(max(losses.get_epsilon_for_delta(_RAREST), 1e-3), _LARGEST)
        epsilons_E = np.linspace(0.0, highest, _POINTS)
        deltas_E = np.asarray(losses.get_delta_for_epsilon(list(epsilons_E)), dtype=np.float64)
        return cls(epsilons_E, deltas_E)

    @property
    def advantage(self) -> float:
        """The most that a test's power can exceed its error: the total variation distance."""
        return float(self.deltas_E[0])

    def least_error(self, power: float) -> float:
        """The least false positive rate of a test of true positive rate `power`, in [0, 1]."""
        rising_E = np.exp(-self.epsilons_E) * (power - self.deltas_E)
        turned_E = 1 - self.deltas_E - np.exp(self.epsilons_E) * (1 - power)
        return min(1.0, max(0.0, float(rising_E.max()), float(turned_E.max())))


def epsilon_lower_bound_of_run(
    guesses: Guesses, run: DpSgdRun, delta: float, confidence: float
) -> float:
    """The epsilon at `delta` that the engine exceeds, with `confidence`, whatever its noise is.

    Of the runs with this sampling and these steps, those with more noise promise more. The bound is
    the epsilon of the least noise that the guesses refute; 0 if they refute none.

    Guarantee: for an engine with the trade-off function of such a run, the bound is above its
    epsilon with probability at most 1 - confidence, over coins and engine (`bounds.contradicts`).

    Args:
        guesses: their number was fixed before anything was seen.
        run: what was promised. Noise is sought from 1/32 to 32 times its own: an engine that is
            worse than that is at least as bad as the bound says.
        delta: at which epsilon is meant.
        confidence: in (0, 1).
    """

    def refuted(noise: float) -> bool:
        profile = PrivacyProfile.of(replace(run, noise_multiplier=noise))
        return contradicts(guesses, profile, 1 - confidence)

    noise = _least_refuted(refuted, run.noise_multiplier)
    return 0.0 if noise is None else replace(run, noise_multiplier=noise).epsilon(delta)


def _least_refuted(refuted: Callable[[float], bool], start: float) -> float | None:
    """The least noise that is refuted, up to 1% above; None if none is within `_FURTHEST` x."""
    low, high = start / 2, start
    if refuted(start):
        while low > start / _FURTHEST and refuted(low):
            low, high = low / 2, low
    else:
        while not refuted(2 * high):
            if high > start * _FURTHEST:
                return None
            high *= 2
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        if refuted(middle):
            high = middle
        else:
            low = middle
    return high


def _losses(run: DpSgdRun) -> Any:
    """dp_accounting's privacy loss distribution of the whole run, rounded up."""
    one_step = privacy_loss_distribution.from_gaussian_mechanism(
        run.noise_multiplier,
        sampling_prob=run.sampling_probability,
        value_discretization_interval=_interval(run),
        use_connect_dots=True,
    )
    return one_step.self_compose(run.steps)


def _interval(run: DpSgdRun) -> float:
    """Spacing of losses: fine beside a step's largest one, and its sampling probability."""
    sigma = run.noise_multiplier
    largest = 0.5 / sigma**2 + 7 / sigma
    return max(1e-5, min(largest * _RESOLUTION, run.sampling_probability / 10))

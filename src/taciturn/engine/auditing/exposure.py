"""Exposure: how far down the list of alternatives one would have to guess to find a secret.

Carlini et al. 2019, "The Secret Sharer", section 4: exposure = log2 |R| - log2 rank, where R is the
space of alternatives and the rank counts those that the model finds as likely as the secret or
likelier. 0 bits: last of all; log2 |R| bits: first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import integrate, stats

from taciturn.engine.auditing.intervals import Floats, Interval, clopper_pearson

Method = Literal["exact", "sampled", "extrapolated", "at least"]

# With so many drawn alternatives above the secret, their share needs no model of the tail.
_ENOUGH = 10
# A fitted distribution that the sample contradicts at this level extrapolates nothing.
_REJECTED = 0.05


@dataclass(frozen=True, slots=True)
class Exposure:
    """Exposure of a secret, and the method that it is known by.

    Attributes:
        bits: the exposure.
        rank: place of the secret among the alternatives, itself included; 1 is the likeliest.
        size: |R|.
        method: "exact": every alternative was scored. Otherwise from a random sample: "sampled":
            from the share of it above the secret; "extrapolated": from a skew-normal distribution
            fitted to it, since hardly any is above the secret; "at least": that distribution does
            not fit, so `bits` and `rank` are the least that the sample shows.
        interval: of `bits`, from the sample alone, whatever the distribution.
        fit_p_value: of the Kolmogorov-Smirnov test of the fitted distribution.
    """

    bits: float
    rank: float
    size: int
    method: Method
    interval: Interval
    fit_p_value: float | None = None

    @property
    def most(self) -> float:
        """The exposure of the likeliest of all: log2 |R|."""
        return math.log2(self.size)


def exact_exposure(secret: float, alternatives: Floats) -> Exposure:
    """Exposure from the log-probabilities of every alternative, the secret's own not among them."""
    rank, size = 1 + int((alternatives >= secret).sum()), 1 + len(alternatives)
    bits = _bits(rank, size)
    return Exposure(bits, rank, size, "exact", (bits, bits))


def estimated_exposure(secret: float, sample: Floats, size: int, confidence: float) -> Exposure:
    """Exposure from the log-probabilities of alternatives drawn at random, the secret not among
    them.

    Section 4.3 of the paper gives both estimates; its fit is checked here as there, with the
    Kolmogorov-Smirnov test, and held against the interval that the sample gives by itself.
    """
    likelier = int((sample >= secret).sum())
    shares = clopper_pearson(likelier, len(sample), confidence)
    interval = _bits(_rank(shares[1], size), size), _bits(_rank(shares[0], size), size)
    if likelier >= _ENOUGH:
        rank = _rank(likelier / len(sample), size)
        return Exposure(_bits(rank, size), rank, size, "sampled", interval)
    tail, p_value = _fitted_tail(secret, sample)
    rank = _rank(tail, size)
    bits = _bits(rank, size)
    if p_value >= _REJECTED and interval[0] <= bits <= interval[1]:
        return Exposure(bits, rank, size, "extrapolated", interval, p_value)
    return Exposure(interval[0], _rank(shares[1], size), size, "at least", interval, p_value)


def _rank(share: float, size: int) -> float:
    return 1 + share * (size - 1)


def _bits(rank: float, size: int) -> float:
    return math.log2(size) - math.log2(rank)


def _fitted_tail(secret: float, sample: Floats) -> tuple[float, float]:
    """Share above the secret of a skew-normal fitted to the sample, and the p-value of the fit."""
    if np.ptp(sample) == 0:
        return 0.0, 0.0  # one value fits no density
    fitted = stats.skewnorm(*stats.skewnorm.fit(sample))
    return _upper_tail(fitted, secret), float(stats.kstest(sample, fitted.cdf).pvalue)


def _upper_tail(fitted: Any, x: float) -> float:
    """P(X > x), right in relative terms: as a difference of distribution functions it cancels."""
    log_density, std = float(fitted.logpdf(x)), float(fitted.std())

    def relative(t: float) -> float:
        return math.exp(float(fitted.logpdf(x + t)) - log_density)

    if fitted.cdf(x) < 0.99:
        return float(fitted.sf(x))
    area = sum(integrate.quad(relative, a * std, b * std)[0] for a, b in ((0, 1), (1, 40)))
    return float(math.exp(log_density) * area)

"""Confidence intervals of shares and of areas under a ROC curve; two-sided."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Interval = tuple[float, float]
Floats = NDArray[np.float64]

# With fewer discordant units than this, the sample says too little about its own variance.
_FEW = 3


def clopper_pearson(hits: float, n: float, confidence: float) -> Interval:
    """Interval of a probability after `hits` successes in `n` trials (Clopper & Pearson 1934).

    Covers at least `confidence`, whatever the probability. [0, 1] of no trials.
    """
    if n == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if hits <= 0 else float(stats.beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits >= n else float(stats.beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def auc(members_M: Floats, others_N: Floats) -> float:
    """Chance that a member scores above a non-member; a tie counts half."""
    return float(_placements(members_M, others_N)[0].mean())


def auc_interval(members_M: Floats, others_N: Floats, confidence: float) -> Interval:
    """Interval of the area under the ROC curve; any distribution, ties included.

    DeLong, DeLong & Clarke-Pearson 1988 on the logit scale. Near 0 and 1 their variance is that of
    a handful of units, and zero at the ends: there the interval also holds Clopper-Pearson's for
    the smaller sample, whose variance no AUC exceeds (Birnbaum & Klose 1957). The tests measure how
    often it covers: at 95%, between 91% and 100% over the laws and sizes tried.
    """
    above_M, below_N = _placements(members_M, others_N)
    area, smaller = float(above_M.mean()), min(len(above_M), len(below_N))
    variance = above_M.var(ddof=1) / len(above_M) + below_N.var(ddof=1) / len(below_N)
    low, high = _logit_interval(area, math.sqrt(variance), confidence)
    if min(area, 1 - area) * smaller < _FEW:
        exact = clopper_pearson(area * smaller, smaller, confidence)
        low, high = min(low, exact[0]), max(high, exact[1])
    return low, high


def _logit_interval(area: float, std: float, confidence: float) -> Interval:
    if not 0 < area < 1:
        return area, area
    reach = stats.norm.ppf((1 + confidence) / 2) * std / (area * (1 - area))
    centre = math.log(area / (1 - area))
    return tuple(1 / (1 + math.exp(-(centre + side))) for side in (-reach, reach))  # type: ignore[return-value]


def _placements(members_M: Floats, others_N: Floats) -> tuple[Floats, Floats]:
    """Share of non-members under each member, and of members over each non-member."""
    m, n = len(members_M), len(others_N)
    ranks = stats.rankdata(np.concatenate([members_M, others_N]))
    above_M = (ranks[:m] - stats.rankdata(members_M)) / n
    below_N = 1 - (ranks[m:] - stats.rankdata(others_N)) / m
    return above_M, below_N

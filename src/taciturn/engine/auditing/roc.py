"""ROC curves: how well scores tell members from non-members, and what the sample is too small to
say.

Shapes: M members, N non-members.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from taciturn.engine.auditing.intervals import Floats, Interval, auc, auc_interval, clopper_pearson
from taciturn.errors import DataError

Promise = Callable[[float], float]
"""The largest true positive rate that a guarantee leaves possible, by false positive rate."""

FALSE_POSITIVE_RATES = (0.001, 0.01)
LEAST_UNITS = 10
"""Of members and of non-members; with fewer no interval means anything."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The share of members found by a threshold at which few non-members are taken for members.

    Attributes:
        fpr: the false positive rate that was asked for.
        tpr: share of members above the threshold. None if there are too few non-members to see so
            small a rate: it takes `non_members_needed`.
        tpr_interval: of the true positive rate of this threshold; Clopper-Pearson.
        fpr_interval: of the false positive rate of this threshold, which was chosen on the same
            non-members; Clopper-Pearson.
        non_members_needed: 1 / fpr.
        promised_tpr: the most that the model's guarantee leaves possible at `fpr`, of the members
            on average over fits; None without a guarantee.
    """

    fpr: float
    tpr: float | None
    tpr_interval: Interval | None
    fpr_interval: Interval | None
    non_members_needed: int
    promised_tpr: float | None


@dataclass(frozen=True, slots=True)
class Roc:
    """ROC of one score that separates members from non-members."""

    auc: float
    auc_interval: Interval
    points: tuple[OperatingPoint, ...]


def roc(
    members_M: Floats, others_N: Floats, confidence: float, promise: Promise | None = None
) -> Roc:
    """Separate by score, higher for members.

    Raises DataError of fewer than LEAST_UNITS on a side.
    """
    if min(len(members_M), len(others_N)) < LEAST_UNITS:
        raise DataError(
            f"membership needs at least {LEAST_UNITS} members and {LEAST_UNITS} non-members with "
            "text to predict; give more"
        )
    points = tuple(
        operating_point(members_M, others_N, fpr, confidence, promise)
        for fpr in FALSE_POSITIVE_RATES
    )
    return Roc(auc(members_M, others_N), auc_interval(members_M, others_N, confidence), points)


def operating_point(
    members_M: Floats,
    others_N: Floats,
    fpr: float,
    confidence: float,
    promise: Promise | None = None,
) -> OperatingPoint:
    """The lowest threshold that at most a share `fpr` of the non-members lies above."""
    fewest_units, n = math.ceil(1 / fpr - 1e-9), len(others_N)
    most = None if promise is None else promise(fpr)
    false_positives_allowed = math.floor(fpr * n + 1e-9)
    if false_positives_allowed < 1:
        return OperatingPoint(fpr, None, None, None, fewest_units, most)
    # Above it, not at it: a tie is never split.
    threshold = np.sort(others_N)[::-1][false_positives_allowed]
    true_positives, false_positives = (
        int((members_M > threshold).sum()),
        int((others_N > threshold).sum()),
    )
    return OperatingPoint(
        fpr,
        true_positives / len(members_M),
        clopper_pearson(true_positives, len(members_M), confidence),
        clopper_pearson(false_positives, n, confidence),
        fewest_units,
        most,
    )

"""Parts of a release of an evaluation's figures, and how exact it is: public numbers.

Each unit has one row of figures, each between -1 and 1, times a weight. The noise of a figure is
the noise of the row over its weight, so what is asked for has the largest: how much better the
fitted model predicts than the base. Where that is asked, each unit is its own control: models
differ by far less on one text than texts do, so the difference is bounded by less and has less
noise than two figures of their own. What the fitted model's own figures are follows from both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GAIN_BOUND = 3.0
"""Nats per token that a unit's gain counts as at most, up or down."""

ACCURACY_GAIN_BOUND = 0.5
"""Share of hits that a unit's gain counts as at most, up or down."""

_CLUSTER = 1.0


@dataclass(frozen=True, slots=True)
class RowWeights:
    """Weight of each figure in a unit's row.

    Attributes:
        nats, accuracy: of the base model, or of the only one.
        gain, accuracy_gain: of the fitted model over the base; 0 without one.
        preferred: of the share of pairs that the fitted model ranks as people did; 0 of texts. It
            is what pairs are judged for, so it gets most of what the row may weigh.
        presence: of the count of units; 0 where that is public.
    """

    nats: float
    accuracy: float
    gain: float = 0.0
    accuracy_gain: float = 0.0
    presence: float = 0.0
    preferred: float = 0.0

    @classmethod
    def of(cls, *, paired: bool, counted: bool, pairs: bool = False) -> RowWeights:
        """Weights for two models or one; `counted` where the number of units is private, too.

        `pairs`: of answers, which two models judge.
        """
        presence, preferred = 0.5 if counted else 0.0, 2.0 if pairs else 0.0
        if paired:
            return cls(0.7, 0.5, 1.0, 0.5, presence, preferred)
        return cls(1.0, 1.0, presence=presence)

    def norm(self, *, clusters: bool) -> float:
        """The largest norm of a row: the sensitivity of their sum."""
        models = (self.nats, self.accuracy, self.gain, self.accuracy_gain)
        return math.hypot(*models, self.preferred, self.presence, _CLUSTER if clusters else 0.0)


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Cost and accuracy of a private evaluation; nothing is spent.

    Attributes:
        n_units: how many units are judged; public.
        gain_std: standard deviation of the noise in the gain in nats per token.
        accuracy_gain_std: the same of the gain in the share of tokens that are predicted right.
        preferred_std: the same of the share of pairs that are ranked as people did; None of texts.
    """

    epsilon: float
    delta: float
    n_units: int
    gain_std: float
    accuracy_gain_std: float
    preferred_std: float | None = None

    def __str__(self) -> str:
        ranked = ""
        if self.preferred_std is not None:
            ranked = f", which share of pairs is ranked as people did, ± {self.preferred_std:.2%}"
        return (
            f"epsilon={self.epsilon:g} at delta={self.delta:.3g} would tell of {self.n_units} "
            f"units by how many nats per token the fitted model is better, ± {self.gain_std:.3g}, "
            f"and by which share of tokens predicted right, ± {self.accuracy_gain_std:.2%}{ranked} "
            "(standard deviations of the noise)"
        )


def plan_evaluation(
    n_units: int,
    epsilon: float,
    delta: float,
    noise_multiplier: float,
    *,
    counted: bool = False,
    clusters: bool = False,
    pairs: bool = False,
) -> EvaluationPlan:
    """Accuracy of a release's figure for the gain of a fitted model over its base.

    Args:
        counted: the number of units is private, and released too, as it is behind a gateway. Then
            the error is that of a gain near zero; the largest has 2.2 times as much.
        clusters: samples are compared with the text as well.
        pairs: pairs of answers are judged.
    """
    weights = RowWeights.of(paired=True, counted=counted, pairs=pairs)
    row = weights.norm(clusters=clusters) * noise_multiplier / n_units
    return EvaluationPlan(
        epsilon,
        delta,
        n_units,
        GAIN_BOUND * row / weights.gain,
        ACCURACY_GAIN_BOUND * row / weights.accuracy_gain,
        row / weights.preferred / 2 if pairs else None,
    )

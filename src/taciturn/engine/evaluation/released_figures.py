"""Figures of an evaluation in the form in which a released folder keeps them."""

from __future__ import annotations

from taciturn.engine.evaluation.classifier import Downstream
from taciturn.engine.evaluation.likelihood import Likelihood
from taciturn.engine.evaluation.release import ReleasedGain, ReleasedScore
from taciturn.reports.figures import Figure, Gain, ModelScore, Release, ReleasedDownstream


def model_score(score: Likelihood | ReleasedScore, mauve: float | None) -> ModelScore:
    """One model's figures; a public text's are exact."""
    stds = (score.nats_std, score.accuracy_std) if isinstance(score, ReleasedScore) else (0.0, 0.0)
    return ModelScore(
        nats_per_token=Figure(value=score.nats_per_token, std=stds[0]),
        token_accuracy=Figure(value=score.token_accuracy, std=stds[1]),
        mauve=mauve,
    )


def model_gain(
    base: Likelihood | ReleasedScore,
    fitted: Likelihood | ReleasedScore | None,
    released: ReleasedGain | None,
) -> Gain | None:
    """Gain of the fitted model over the base: as released, or from exact figures."""
    if fitted is None:
        return None
    if released is None:
        return Gain(
            nats_per_token=Figure(value=base.nats_per_token - fitted.nats_per_token),
            token_accuracy=Figure(value=fitted.token_accuracy - base.token_accuracy),
        )
    return Gain(
        nats_per_token=Figure(value=released.nats_per_token, std=released.nats_std),
        token_accuracy=Figure(value=released.token_accuracy, std=released.accuracy_std),
    )


def downstream_figures(downstream: Downstream, release: Release) -> ReleasedDownstream:
    """A classifier's figures, released on that basis."""
    std = downstream.accuracy_std
    return ReleasedDownstream(
        **release.model_dump(),
        accuracy=Figure(value=downstream.accuracy, std=std),
        majority_accuracy=Figure(value=downstream.majority_accuracy, std=std),
        n_train=downstream.n_train,
    )

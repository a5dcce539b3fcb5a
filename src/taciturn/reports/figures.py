"""Figures about a model's worth that anybody may see: of public text, or paid for.

What `show_private` shows to a data owner has no place here: there is no basis to say it on.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

Basis = Literal["public", "differential privacy"]


class _FigureModel(BaseModel):
    # A model that has diverged has figures that are no numbers; they are kept as what they are.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Figure(_FigureModel):
    """A value, and the standard deviation of the noise in it; 0 if exact."""

    value: float
    std: float = 0.0


class ModelScore(_FigureModel):
    """Figures of how well one model predicts a text, and how like it its samples are.

    Attributes:
        nats_per_token: cross-entropy; lower is better.
        token_accuracy: share of tokens that the model held for the likeliest.
        mauve: MAUVE-style likeness of samples and text in (0, 1]; None if there were no samples.
    """

    nats_per_token: Figure
    token_accuracy: Figure
    mauve: float | None = None


class Gain(_FigureModel):
    """Gain of the fitted model over the base, from each unit's own difference.

    Attributes:
        nats_per_token: fewer; positive is better.
        token_accuracy: more; positive is better.
    """

    nats_per_token: Figure
    token_accuracy: Figure


class Release(_FigureModel):
    """Basis on which figures were released.

    Attributes:
        basis: the text was declared public, or the figures are noised and paid for.
        n_units: units of the text; records, if it is public.
        epsilon: what the release cost by itself; None if nothing.
        delta: goes with epsilon.
    """

    basis: Basis
    n_units: int
    epsilon: float | None = None
    delta: float | None = None


class ReleasedEvaluation(Release):
    """`evaluate`: base and, if there is one, fitted model on one text.

    Attributes:
        preferred: share of pairs of answers that the fitted model ranks as people did; the other
            figures are of the chosen answers. None where the text is no pairs.
        preferred_std: standard deviation of the noise in it; 0 if exact.
    """

    base: ModelScore
    fitted: ModelScore | None = None
    gain: Gain | None = None
    preferred: float | None = None
    preferred_std: float = 0.0

    @model_validator(mode="after")
    def _noised_pairs(self) -> Self:
        if self.preferred is not None and self.basis != "public" and not self.preferred_std > 0:
            raise ValueError("preferred is a figure of private pairs, and is released with noise")
        return self

    @property
    def ranked(self) -> Figure | None:
        """Return `preferred` with the noise in it."""
        return (
            None if self.preferred is None else Figure(value=self.preferred, std=self.preferred_std)
        )


class ReleasedDownstream(Release):
    """`downstream`: a classifier trained on synthetic text and tested on real text.

    Attributes:
        accuracy: of the classifier.
        majority_accuracy: of always guessing the commonest training label.
        n_train: synthetic texts it was trained on.
    """

    accuracy: Figure
    majority_accuracy: Figure
    n_train: int


class ReleasedFigures(_FigureModel):
    """All of them, oldest first."""

    evaluations: tuple[ReleasedEvaluation, ...] = ()
    downstream: tuple[ReleasedDownstream, ...] = ()

    def plus(self, figures: ReleasedEvaluation | ReleasedDownstream) -> ReleasedFigures:
        """Return these figures and one more."""
        if isinstance(figures, ReleasedEvaluation):
            return self.model_copy(update={"evaluations": (*self.evaluations, figures)})
        return self.model_copy(update={"downstream": (*self.downstream, figures)})

"""Evaluation: on what a model is judged, and what that may cost."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from taciturn.spec.base import NewTokens, Seed
from taciturn.spec.data import DataSpec


class AssessmentSpec(DataSpec):
    """Data that a model is judged on, and what that may cost.

    Without target_epsilon the data are declared public (or, with show_private, the owner looks at
    private rows); with it they are private, and figures about them are released with noise.
    """

    target_epsilon: Annotated[
        float | None,
        Field(description="Private data: epsilon of this release; added to the model's."),
    ] = None
    delta: Annotated[
        float | None, Field(description="Goes with target_epsilon; default: the model's.")
    ] = None
    show_private: Annotated[
        bool, Field(description="Private data: exact figures, for the owner's eyes only.")
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _no_unlimited(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("target_epsilon") == "unlimited":
            raise ValueError(
                'target_epsilon="unlimited" releases nothing; show_private=True shows the owner '
                "exact figures, which must not be passed on"
            )
        return fields

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        epsilon = self.target_epsilon
        if epsilon is None:
            if self.delta is not None:
                raise ValueError(f"delta={self.delta:g} goes with target_epsilon; give that too")
            return self
        if self.show_private:
            raise ValueError(
                f"show_private=True and target_epsilon={epsilon:g} exclude each other; give one"
            )
        if not 0.01 <= epsilon <= 1000:
            raise ValueError(
                f"target_epsilon={epsilon:g} must lie in [0.01, 1000]; choose for example 0.5"
            )
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta:g} must lie in (0, 1); leave it out for a default")
        return self


class EvaluateSpec(AssessmentSpec):
    """The arguments of `LLM.evaluate`."""

    loss_bound: Annotated[
        float | None,
        Field(
            ge=1e-3,
            le=100,
            description="Nats per token that count at most; default ln(vocabulary).",
        ),
    ] = None
    samples: Annotated[
        int, Field(ge=0, le=100_000, description="Samples to compare with the data; 0: none.")
    ] = 0
    max_new_tokens: Annotated[NewTokens, Field(description="Tokens of a sample at most.")] = 64
    seed: Annotated[Seed | None, Field(description="Makes samples repeatable.")] = None

    @model_validator(mode="after")
    def _pairs_alone(self) -> Self:
        if self.pairs and self.samples:
            raise ValueError(
                f"samples={self.samples} does not go with pairs of answers, of which no text is "
                "compared; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if 0 < self.samples < 20:
            raise ValueError(f"samples={self.samples} is too few for a comparison; take 20 or more")
        return self


class DownstreamSpec(AssessmentSpec):
    """The arguments of `LLM.downstream`."""

    label_field: Annotated[str, Field(description="Column of labels, in both data sets.")] = "label"

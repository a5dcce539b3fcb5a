"""The promise of a fit, and the canaries by which an audit tests it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from taciturn.spec.base import Spec

Unlimited = Literal["unlimited"]
CanaryKind = Literal["random", "new-token", "secret"]


class PrivacySpec(Spec):
    """The promise. `target_epsilon="unlimited"` promises nothing, and says so."""

    target_epsilon: Annotated[
        float | Unlimited | None,
        Field(description='Privacy budget epsilon, or "unlimited" for no privacy at all.'),
    ] = None
    delta: Annotated[
        float | None,
        Field(description="Chance left out of the promise; default 10^-k at most 1/(10 n)."),
    ] = None
    l2_clip_norm: Annotated[
        float | None,
        Field(
            ge=1e-6, le=1e6, allow_inf_nan=False, description="Bound C on one unit's gradient norm."
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Field(ge=1, le=10**12, description="Expected number of units per step (public)."),
    ] = None

    @field_validator("target_epsilon", mode="before")
    @classmethod
    def _number_or_unlimited(cls, value: Any) -> Any:
        """Accept a number or "unlimited", and no YAML `yes` for 1."""
        if value is None or value == "unlimited" or _is_number(value):
            return value
        raise ValueError(
            'must be a number in [0.01, 1000], for example 3, or "unlimited" for no privacy at all'
        )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        epsilon = self.target_epsilon
        if isinstance(epsilon, float) and not 0.01 <= epsilon <= 1000:
            raise ValueError(
                f"target_epsilon={epsilon:g} must lie in [0.01, 1000]; "
                'choose for example 3, or "unlimited" for no privacy at all'
            )
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta:g} must lie in (0, 1); leave it out for a default")
        return self


class CanarySpec(Spec):
    """Canaries among the training data, which an audit of the model will need."""

    canaries: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Invented units for an audit; each is in by a fair coin. 0: none.",
        ),
    ] = 0
    canary_kind: Annotated[
        CanaryKind, Field(description="Text of the canaries: random, new-token or secret.")
    ] = "new-token"

    @model_validator(mode="after")
    def _kind_of_some(self) -> Self:
        if not self.canaries and self.canary_kind != "new-token":
            raise ValueError(
                f"canary_kind={self.canary_kind!r} without canaries; give, for example, "
                "canaries=500"
            )
        return self


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, bool)

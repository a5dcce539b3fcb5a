"""What was released, under what guarantee: the public record of one fit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class PrivacyReport(BaseModel):
    """The promise that goes with a model. Every field is public or chosen by the data owner.

    With `guarantee="none"` epsilon and delta are None: nothing is promised.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    guarantee: Literal["differential privacy", "none"]
    epsilon: float | None = None
    delta: float | None = None
    privacy_unit: str
    neighbouring_relation: str = "add or remove one unit"
    max_records_per_unit: int | None = None
    n_units: int
    n_units_is_public: bool = True
    mechanism: str
    noise_multiplier: float | None = None
    sampling_probability: float | None = None
    steps: int
    l2_clip_norm: float | None = None
    expected_batch_size: int
    dp_event: dict[str, Any] | None = None
    accountant: str | None = None
    base_model: str
    trainable_parameters: int
    taciturn_version: str

    @property
    def policy(self) -> str:
        """One line for people: the guarantee, or that there is none."""
        if self.guarantee == "none":
            return "no guarantee"
        return f"DP (epsilon={self.epsilon:.4g}, delta={self.delta:.1g}, unit={self.privacy_unit})"

    def __str__(self) -> str:
        return self.policy

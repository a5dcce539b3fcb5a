"""What was released, under what guarantee: the public record of one fit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class PrivateStep(BaseModel):
    """One computation on private units that a model's guarantee covers.

    `dataset_commitment` is a salted hash of the data; its salt is in the private folder only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: str
    dp_event: dict[str, Any]
    privacy_unit: str
    max_records_per_unit: int
    n_units: int
    dataset_commitment: str | None = None


class PrivacyReport(BaseModel):
    """The promise that goes with a model. Every field is public or chosen by the data owner.

    With `guarantee="none"` epsilon and delta are None: nothing is promised. `epsilon` is that of
    all `private_steps` together (`dp_event` is their composition); the mechanism's parameters are
    those of the last fit.
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
    private_steps: tuple[PrivateStep, ...] = ()
    accountant: str | None = None
    base_model: str
    base_model_sha256: dict[str, str] = {}
    libraries: dict[str, str] = {}
    trainable_parameters: int
    taciturn_version: str

    @property
    def spent(self) -> tuple[PrivateStep, ...]:
        """All private steps so far; of a report that lists none, the one its event describes."""
        if self.private_steps or self.dp_event is None:
            return self.private_steps
        step = PrivateStep(
            purpose="fit",
            dp_event=self.dp_event,
            privacy_unit=self.privacy_unit,
            max_records_per_unit=self.max_records_per_unit or 1,
            n_units=self.n_units,
        )
        return (step,)

    @property
    def policy(self) -> str:
        """One line for people: the guarantee, or that there is none."""
        if self.guarantee == "none":
            return "no guarantee"
        return f"DP (epsilon={self.epsilon:.4g}, delta={self.delta:.1g}, unit={self.privacy_unit})"

    def __str__(self) -> str:
        return self.policy

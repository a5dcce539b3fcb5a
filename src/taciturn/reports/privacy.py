"""Public record of a fit: what was released, under what guarantee, and what an audit found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from taciturn.errors import ModelError
from taciturn.spec import CanaryKind

BASE_POLICY = "public (base model, no private data)"
"""The policy line of a model that nothing was fitted on."""

CERTIFICATE, REPORT, AUDIT = "certificate.json", "privacy_report.json", "audit.json"
DERIVATION, CARD, PAGE = "derivation.json", "README.md", "report.html"
FIGURES = "evaluations.json"
"""Names of what is said of a model, in its folder."""

PRIVATE, DATA = "private", "data"
"""The folder beside them of what must not be shared, and in it that of tokenised rows."""


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


class CanaryReport(BaseModel):
    """The canaries of a fit. They are units like any other, and counted in `n_units`.

    `commitment` is the SHA-256 of the private file that says which of them were in; that file holds
    a secret nonce. It fixes texts and coins before the fit and tells nothing about them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    kind: CanaryKind
    commitment: str


DECLARED_PUBLIC = (
    "Whoever ran the fit declares that this text is public. It was learned from without noise, and "
    "the guarantee does not cover it."
)


class PublicData(BaseModel):
    """Text that a fit learned from before any private row, and that is not protected.

    Attributes:
        records: how many there were.
        sha256: of the records' tokens, as the fit read them.
        declaration: who says that it is public, in words.
        name: of a public data set of a gateway; None for what was named on this machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    records: int
    sha256: str
    declaration: str = DECLARED_PUBLIC
    name: str | None = None


class LedgerTotal(BaseModel):
    """Totals that a ledger adds up over all runs on one data set and unit, this model's own
    included.

    Attributes:
        epsilon: of all steps that were charged, composed, at delta.
        runs: fits and evaluations that were charged, whether or not anything came of them.
        without_guarantee: fits without privacy, and looks at exact figures; epsilon is not about
            them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float
    delta: float
    runs: int
    without_guarantee: int

    def __str__(self) -> str:
        text = f"epsilon={self.epsilon:.4g}, delta={self.delta:.3g}, runs={self.runs}"
        if not self.without_guarantee:
            return text
        return f"{text}; without a guarantee besides: {self.without_guarantee}"


SCOPE = (
    "epsilon is that of the steps listed under private_steps. Other fits on the same data, whether "
    "kept or thrown away, and figures that were looked at to choose among them spend besides it. "
    "Where a ledger was kept, `ledger` says what all of them cost together."
)
"""What a report of a run that no gateway arranged does not know."""


class PrivacyReport(BaseModel):
    """The promise that goes with a model. Every field is public or chosen by the data owner.

    With `guarantee="none"` epsilon and delta are None: nothing is promised.

    Attributes:
        guarantee: "differential privacy" or "none".
        epsilon: of all `private_steps` together; None without a guarantee.
        delta: at which epsilon holds: a probability; None without a guarantee.
        privacy_unit: column or expression that names whom the guarantee protects.
        neighbouring_relation: what "one unit more or less" means.
        max_records_per_unit: records of one unit that were used at most.
        n_units: number of units; public if `n_units_is_public`.
        n_units_is_public: False where it is only a bound that was declared.
        mechanism: name of the algorithm of the last fit.
        noise_multiplier: standard deviation of its noise, divided by l2_clip_norm.
        sampling_probability: with which each step drew each unit.
        steps: optimiser steps of the last fit.
        l2_clip_norm: bound on the norm of one unit's gradient.
        expected_batch_size: units that a step drew on average.
        dp_event: composition of all private steps, as dp_accounting writes it.
        private_steps: fits and private evaluations that epsilon covers.
        accountant: what computed epsilon.
        base_model: name of the model that was fitted.
        base_model_sha256: SHA-256 of its files, by their names.
        libraries: versions that the fit ran with, by their names.
        trainable_parameters: number of weights that were fitted.
        taciturn_version: that wrote the report.
        canaries: number and kind of canaries, for an audit; None without.
        public_data: text of all fits that the guarantee does not cover.
        scope: what epsilon is not about, in words.
        ledger: what a ledger had added up at the last step; None where there was none.
        objective: what the last fit learned, where that is more than to predict text.

    Examples:
        >>> report = model.privacy
        >>> report.mechanism, report.delta
        ('...', 0.001)
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
    canaries: CanaryReport | None = None
    public_data: tuple[PublicData, ...] = ()
    scope: str | None = None
    ledger: LedgerTotal | None = None
    objective: str | None = None

    @property
    def spent(self) -> tuple[PrivateStep, ...]:
        """All private steps so far; of a report that lists none, the one its event describes.

        Examples:
            >>> [step.purpose for step in model.privacy.spent]
            ['fit']
        """
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
        """One line for people: the guarantee, or that there is none.

        Examples:
            >>> model.privacy.policy
            'DP (epsilon=..., delta=0.001, unit=patient_id)'
        """
        if self.guarantee == "none":
            return "no guarantee"
        assert self.epsilon is not None
        assert self.delta is not None
        return policy_of(self.epsilon, self.delta, self.privacy_unit)

    def __str__(self) -> str:
        return self.policy


def policy_of(epsilon: float, delta: float, unit: str) -> str:
    """A guarantee in one line. Three digits of delta: one would promise up to a third more."""
    return f"DP (epsilon={epsilon:.4g}, delta={delta:.3g}, unit={unit})"


def read_report(path: Path) -> PrivacyReport:
    """The report beside a fitted model; raises ModelError if it cannot be read."""
    try:
        return PrivacyReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise ModelError(
            f"{path} is damaged or truncated, so nothing says what the model promises; put back "
            "the file that the fit wrote"
        ) from None


class GuessRound(BaseModel):
    """Count of right guesses about who was in, out of a number of guesses fixed beforehand.

    `epsilon_lower_bound` is this round's own, at its share of what the confidence leaves open.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    guesses: int
    correct: int
    epsilon_lower_bound: float


class ScoreHistogram(BaseModel):
    """Canaries by score, those that were in and those that were not.

    A score is the share of a canary's loss under the base model that the fit took away; of a pair
    of answers, by how many nats the fit has widened its margin. `edges` has one more entry than the
    counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    edges: tuple[float, ...]
    included: tuple[int, ...]
    excluded: tuple[int, ...]


class AttackerLimit(BaseModel):
    """The most that any attacker can do: share of members found at a share of false alarms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    false_positive_rate: float
    true_positive_rate: float


class Audit(BaseModel):
    """Outcome of a one-run audit of a fitted model. It depends on no row but through the model.

    Attributes:
        threat_model: what the attacker sees.
        method: name and source.
        canaries: how many there were, each in by a fair coin.
        canary_kind: what they said.
        canary_commitment: of the privacy report whose fit they were part of.
        confidence: with which the bounds hold.
        rounds: every number of guesses that was tried, all fixed beforehand.
        guesses: of the round with the largest bound.
        correct: how many of them were right.
        epsilon_lower_bound: with `confidence`, the model's epsilon at `delta` is not below it.
        gaussian_epsilon_lower_bound: the same, if the fit's trade-off function is a Gaussian one.
        auc: how well scores tell canaries that were in from others; 0.5 is chance.
        promised_epsilon: None if nothing is promised.
        delta: at which both epsilons are meant.
        largest_advantage: of any attacker, over guessing, as the promise's events bound it.
        attacker_limits: the same at small shares of false alarms; empty if nothing is promised.
        histogram: of the canaries' scores.
        verdict: all of this in plain words.
        taciturn_version: that ran the audit.

    Examples:
        >>> audit = taciturn.LLM("fitted").audit(signing_key="key.pem")
        >>> audit.threat_model, audit.canaries
        ('black box', 20)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threat_model: Literal["black box", "white box"]
    method: str
    canaries: int
    canary_kind: CanaryKind
    canary_commitment: str
    confidence: float
    rounds: tuple[GuessRound, ...]
    guesses: int
    correct: int
    epsilon_lower_bound: float
    gaussian_epsilon_lower_bound: float
    auc: float
    promised_epsilon: float | None
    delta: float
    largest_advantage: float | None
    attacker_limits: tuple[AttackerLimit, ...]
    histogram: ScoreHistogram
    verdict: str
    taciturn_version: str

    @property
    def refuted(self) -> bool:
        """True if more was found than is promised: the guarantee is broken.

        Examples:
            >>> taciturn.LLM("fitted").audit(signing_key="key.pem").refuted
            False
        """
        promised_epsilon = self.promised_epsilon
        return promised_epsilon is not None and self.epsilon_lower_bound > promised_epsilon

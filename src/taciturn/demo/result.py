"""What a run of the demo found, as plain values, and the verdict that follows from them.

The verdict is computed, never assumed: where the story doesn't hold in a run, it says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from taciturn.engine.auditing.extraction import tells
from taciturn.errors import SpecError
from taciturn.report import PrivacyReport


@dataclass(frozen=True)
class Sample:
    """One completion: `continuation` is what the model wrote after `prompt`."""

    prompt: str
    continuation: str


@dataclass(frozen=True)
class Secret:
    """What one patient's notes hold, and how to notice that a model tells it."""

    prompt: str
    """What the model is asked to go on from, for example "François Dupont suffers"."""
    continuation: str
    """The text whose probability is measured, with its leading space."""
    telltale: str
    """Words that give the secret away wherever they follow the prompt."""
    owner: str
    """Whose secret it is."""
    n_notes: int
    """How many notes of the owner repeat it."""

    def told_by(self, sample: Sample) -> bool:
        """True if the prompt is the secret's and the continuation gives the secret away."""
        return sample.prompt == self.prompt and tells(sample.continuation, self.telltale)


@dataclass(frozen=True)
class ModelOutcome:
    """One model's answers and measurements."""

    samples: tuple[Sample, ...]
    secret_log_probability: float
    """Natural logarithm of the probability of the secret's continuation after its prompt."""
    held_out_loss: float
    """Mean cross-entropy on held-out patients' notes, in nats per token."""
    secret_rank: int | None = None
    """Place of the secret among the candidates by probability; 1 is the most probable."""
    control_log_probability: float | None = None
    """The same for the name of somebody who is in no note: what the model would say of anybody."""

    @property
    def perplexity(self) -> float:
        """exp(held_out_loss)."""
        return math.exp(self.held_out_loss)


@dataclass(frozen=True)
class FitSettings:
    """How one of the two models was trained; None where it doesn't apply."""

    method: str
    trainable_parameters: int
    steps: int
    learning_rate: float
    expected_batch_size: int
    sampling_probability: float | None
    l2_clip_norm: float | None
    noise_multiplier: float | None
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """Everything the report page shows."""

    secret: Secret
    base: ModelOutcome
    non_private: ModelOutcome
    private: ModelOutcome
    report: PrivacyReport
    """The private fit's guarantee."""
    epsilon_curve: tuple[tuple[int, float], ...]
    """(step, epsilon spent so far) of the private fit, in order."""
    non_private_fit: FitSettings
    private_fit: FitSettings
    n_notes: int
    n_held_out_patients: int
    versions: tuple[tuple[str, str], ...]
    n_candidates: int | None = None
    """How many continuations the secret's rank is among, itself included."""

    def __post_init__(self) -> None:
        """Raises SpecError where the report promises nothing or a model was never asked."""
        if self.report.epsilon is None or self.report.delta is None:
            raise SpecError(
                f"report has epsilon={self.report.epsilon} and delta={self.report.delta}; "
                "pass the report of the private fit"
            )
        for outcome in (self.non_private, self.private):
            if not self.times_asked(outcome):
                raise SpecError(
                    f"no sample has the prompt {self.secret.prompt!r}; sample it from both models"
                )
        if not self.epsilon_curve:
            raise SpecError("epsilon_curve is empty; give (step, epsilon) after each step")

    @property
    def epsilon(self) -> float:
        """The private fit's epsilon."""
        return self.report.epsilon or math.inf

    @property
    def delta(self) -> float:
        """The private fit's delta."""
        return self.report.delta or 0.0

    def times_told(self, outcome: ModelOutcome) -> int:
        """How many of a model's answers to the secret's prompt give the secret away."""
        return sum(self.secret.told_by(sample) for sample in outcome.samples)

    def times_asked(self, outcome: ModelOutcome) -> int:
        """How many of a model's samples answer the secret's prompt."""
        return sum(sample.prompt == self.secret.prompt for sample in outcome.samples)

    @property
    def told_without_privacy(self) -> bool:
        """True if the non-private model gave the secret away at least once."""
        return self.times_told(self.non_private) > 0

    @property
    def kept_with_privacy(self) -> bool:
        """True if the private model never gave it away, nor holds it the likeliest candidate."""
        return self.times_told(self.private) == 0 and self.private.secret_rank != 1

    @property
    def learned_with_privacy(self) -> bool:
        """True if the private model predicts held-out notes better than the base model."""
        return self.private.held_out_loss < self.base.held_out_loss

    @property
    def share_kept(self) -> float:
        """Of the nats per token that the non-private model gained on held-out notes, those that the
        private one gained, too. How its text reads is another matter."""
        gained = self.base.held_out_loss - self.private.held_out_loss
        return gained / (self.base.held_out_loss - self.non_private.held_out_loss)

    @property
    def story_holds(self) -> bool:
        """True if the secret came out without privacy, stayed in with it, and both learned."""
        return (
            self.told_without_privacy
            and self.kept_with_privacy
            and self.learned_with_privacy
            and self.non_private.held_out_loss < self.base.held_out_loss
        )

    @property
    def verdict(self) -> str:
        """One sentence that says what happened to the secret in this run."""
        return f"{self._without_privacy()}; {self._with_privacy()}."

    @property
    def remark(self) -> str:
        """What the verdict means: that the story held, or why it did not."""
        if self.story_holds:
            return (
                "Only one of the two talks about a patient. Of what the ordinary fit learned about "
                f"predicting notes, the private one kept {self.share_kept:.0%} (nats per token)."
            )
        flaws = [
            (not self.told_without_privacy, "the model without privacy did not tell the secret"),
            (self.times_told(self.private) > 0, "the private model told it"),
            (self.private.secret_rank == 1, "the private model holds it the likeliest candidate"),
            (not self.learned_with_privacy, "the private model predicts notes no better than base"),
            (
                self.non_private.held_out_loss >= self.base.held_out_loss,
                "the model without privacy predicts held-out notes no better than base",
            ),
        ]
        found = " and ".join(words for is_so, words in flaws if is_so)
        return f"This run does not show what the demo is meant to show: {found}."

    def _without_privacy(self) -> str:
        owner, told = self.secret.owner, self._share_told(self.non_private)
        return f"Trained without privacy, the model told {owner}'s secret in {told} samples"

    def _with_privacy(self) -> str:
        told = self._share_told(self.private)
        words = f"trained with differential privacy (ε = {self.epsilon:.3g}), in {told}"
        if self.private.secret_rank == 1:
            words += ", but finds it the likeliest of all candidates"
        return words

    def _share_told(self, outcome: ModelOutcome) -> str:
        told, asked = self.times_told(outcome), self.times_asked(outcome)
        return f"{told or 'none'} of {asked}"

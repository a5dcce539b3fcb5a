"""Result of a run of the demo, as plain values, and the verdict that follows from them.

The verdict is computed, never assumed: where the story doesn't hold in a run, it says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from taciturn.demo.judge import ErrorRates, repetition
from taciturn.engine.auditing.extraction import tells
from taciturn.errors import SpecError
from taciturn.reports.privacy import PrivacyReport

KEPT_GOAL = 0.6
"""Share of what the ordinary fit learns that the private one should learn, too."""
NOTES_GOAL = 0.8
"""Share of the private model's samples that should read as notes: 4 of 5."""


@dataclass(frozen=True)
class Sample:
    """One completion: `continuation` is what the model wrote after `prompt`."""

    prompt: str
    continuation: str
    reads_as_note: bool | None = None
    """What the judge says of it; None where it wasn't asked, as of the secret's prompt."""


@dataclass(frozen=True)
class Secret:
    """Secret that one patient's notes hold, and how to notice that a model tells it."""

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

    @property
    def judged(self) -> int:
        """Number of samples that the judge was shown."""
        return sum(sample.reads_as_note is not None for sample in self.samples)

    @property
    def notes(self) -> int:
        """Number of them that it takes for notes."""
        return sum(sample.reads_as_note is True for sample in self.samples)

    @property
    def repetition(self) -> float:
        """Share of word trigrams that a sample has written before: the mean of all samples."""
        shares = [repetition(sample.continuation) for sample in self.samples]
        return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True)
class FitSettings:
    """Settings with which one of the two models was trained; None where it doesn't apply.

    Attributes:
        batch_of: what a batch counts: patients, or notes.
    """

    method: str
    trainable_parameters: int
    steps: int
    learning_rate: float
    expected_batch_size: int
    batch_of: str
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
    judge: ErrorRates
    """How often the judge of the samples errs, on texts that it had not seen."""
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
        if not self.private.judged:
            raise SpecError("no sample of the private model was judged; show the judge some")
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
        """Number of a model's answers to the secret's prompt that give the secret away."""
        return sum(self.secret.told_by(sample) for sample in outcome.samples)

    def times_asked(self, outcome: ModelOutcome) -> int:
        """Number of a model's samples that answer the secret's prompt."""
        return sum(sample.prompt == self.secret.prompt for sample in outcome.samples)

    @property
    def share_kept(self) -> float | None:
        """Share of the nats per token that the non-private model gained on held-out notes and the
        private one gained, too; None where there was no gain."""
        possible = self.base.held_out_loss - self.non_private.held_out_loss
        gained = self.base.held_out_loss - self.private.held_out_loss
        return gained / possible if possible > 0 else None

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """Claims of the story that this run did not show, in words; empty where it holds."""
        private, share = self.private, self.share_kept
        checks = [
            (
                self.times_told(self.non_private) == 0,
                "the model without privacy did not tell the secret",
            ),
            (self.times_told(private) > 0, "the private model told it"),
            (private.secret_rank == 1, "the private model holds it the likeliest candidate"),
            (
                share is None,
                "the model without privacy predicts held-out notes no better than base",
            ),
            (
                private.held_out_loss >= self.base.held_out_loss,
                "the private model predicts notes no better than base",
            ),
            (
                share is not None and 0 < share < KEPT_GOAL,
                f"the private model kept {self.share_in_words(private)} of what the ordinary fit "
                f"learned, where {KEPT_GOAL:.0%} is the goal",
            ),
            (
                private.notes < NOTES_GOAL * private.judged,
                f"{private.notes} of its {private.judged} samples read as notes, where "
                f"{math.ceil(NOTES_GOAL * private.judged)} is the goal",
            ),
        ]
        return tuple(words for is_so, words in checks if is_so)

    @property
    def story_holds(self) -> bool:
        """True if the secret came out without privacy and stayed in with it, and the private model
        kept enough of what there was to learn and writes notes."""
        return not self.shortfalls

    @property
    def verdict(self) -> str:
        """Two sentences: what happened to the secret in this run, and what was learned."""
        return (
            f"{self._without_privacy()}; {self._with_privacy()}. "
            f"The private model {self._share_kept_text()}, and {self.private.notes} of its "
            f"{self.private.judged} samples on ordinary prompts read as notes."
        )

    @property
    def remark(self) -> str:
        """Meaning of the verdict: that the story held, or why it did not."""
        if self.story_holds:
            return (
                "Only one of the two talks about a patient. Both goals of the private one are met: "
                f"at least {KEPT_GOAL:.0%} of the gain in nats per token kept, and at least "
                f"{NOTES_GOAL:.0%} of its samples read as notes."
            )
        shortfalls = " and ".join(self.shortfalls)
        return f"This run does not show what the demo is meant to show: {shortfalls}."

    def share_in_words(self, outcome: ModelOutcome) -> str:
        """A model's gain as a share of the ordinary fit's, rounded down, for example "62%"."""
        possible = self.base.held_out_loss - self.non_private.held_out_loss
        gained = self.base.held_out_loss - outcome.held_out_loss
        return f"{math.floor(100 * gained / possible)}%" if possible > 0 else "not defined"

    def _share_kept_text(self) -> str:
        if self.share_kept is None:
            return "was compared with an ordinary fit that learned nothing"
        if self.share_kept <= 0:
            return "kept nothing of what the ordinary fit learned"
        return f"kept {self.share_in_words(self.private)} of what the ordinary fit learned"

    def _without_privacy(self) -> str:
        owner, share_told = self.secret.owner, self._share_told(self.non_private)
        return f"Trained without privacy, the model told {owner}'s secret in {share_told} samples"

    def _with_privacy(self) -> str:
        share_told = self._share_told(self.private)
        words = f"trained with differential privacy (ε = {self.epsilon:.3g}), in {share_told}"
        if self.private.secret_rank == 1:
            words += ", but finds it the likeliest of all candidates"
        return words

    def _share_told(self, outcome: ModelOutcome) -> str:
        n_telling, n_answers = self.times_told(outcome), self.times_asked(outcome)
        return f"{n_telling or 'none'} of {n_answers}"

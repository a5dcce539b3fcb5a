"""Figures about a gateway's model: of public texts, or paid for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from taciturn.notebook.cards import card, table
from taciturn.reports.figures import Figure, Gain, ModelScore, ReleasedEvaluation


@dataclass(frozen=True, slots=True)
class RemoteScore:
    """Score of a model on a text; named as the scores of models that are here.

    Attributes:
        nats_std, accuracy_std: standard deviation of the noise in it; 0 if exact.
        mauve: likeness of samples and text; None if there were none.
    """

    nats_per_token: float
    token_accuracy: float
    nats_std: float
    accuracy_std: float
    mauve: float | None

    @classmethod
    def of(cls, score: ModelScore) -> RemoteScore:
        """The score that travels, as people use it."""
        nats, accuracy = score.nats_per_token, score.token_accuracy
        return cls(nats.value, accuracy.value, nats.std, accuracy.std, score.mauve)

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(min(self.nats_per_token, 700.0))

    def row(self) -> tuple[str, str, str, str]:
        """The figures as a table shows them, noise beside them."""
        return (
            _noisy(self.nats_per_token, self.nats_std, "{:.4f}"),
            f"{self.perplexity:.2f}",
            _noisy(self.token_accuracy, self.accuracy_std, "{:.2%}"),
            "" if self.mauve is None else f"{self.mauve:.3f}",
        )


@dataclass(frozen=True, slots=True, repr=False)
class RemoteEvaluation:
    """Scores of base and fitted model on a text; see LLM.evaluate.

    Attributes:
        policy: what these figures are, in one line.
        basis: public, or differential privacy.
        epsilon, delta: what the evaluation cost by itself; None if it was free.
        gain: of the fitted model over the base, with the noise in it.
        preferred: share of pairs of answers that the fitted model ranks as people did, with the
            noise in it; None of texts.
    """

    policy: str
    base: RemoteScore
    fitted: RemoteScore | None
    basis: str
    epsilon: float | None
    delta: float | None
    gain: Gain | None
    preferred: Figure | None = None

    @classmethod
    def of(cls, figures: ReleasedEvaluation, policy: str) -> RemoteEvaluation:
        """Return the figures that travel, as people use them."""
        fitted = None if figures.fitted is None else RemoteScore.of(figures.fitted)
        base, cost = RemoteScore.of(figures.base), (figures.epsilon, figures.delta)
        return cls(policy, base, fitted, figures.basis, *cost, figures.gain, figures.ranked)

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each model, for what was gained, and for pairs that are ranked right."""
        scores = [("base", self.base)]
        if self.fitted is not None:
            scores.append(("fitted", self.fitted))
        rows: list[tuple[str, ...]] = [(name, *score.row()) for name, score in scores]
        if self.gain is not None:
            nats, accuracy = self.gain.nats_per_token, self.gain.token_accuracy
            better = (_noisy(nats.value, nats.std, "{:.4f}"), "")
            rows.append(("gained", *better, _noisy(accuracy.value, accuracy.std, "{:.2%}"), ""))
        if self.preferred is not None:
            ranked = _noisy(self.preferred.value, self.preferred.std, "{:.2%}")
            rows.append(("pairs ranked right", "", "", ranked, ""))
        return rows

    def __repr__(self) -> str:
        import pandas as pd

        frame = pd.DataFrame(self.rows(), columns=list(COLUMNS)).set_index("model")
        return f"policy: {self.policy}\n{frame}"

    def _repr_html_(self) -> str:
        return card("evaluation", self.policy, table(COLUMNS, self.rows()))


COLUMNS = ("model", "nats per token", "perplexity", "token accuracy", "MAUVE-style")


def _noisy(value: float, std: float, form: str) -> str:
    text = form.format(value)
    return text if std == 0 else f"{text} ± {form.format(std)}"

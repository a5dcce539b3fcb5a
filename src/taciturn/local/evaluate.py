"""Evaluation of a model: exact and free on public text, with noise on private units.

Public text is judged exactly and free of charge. Private units are judged with noise: the event is
charged to the model's guarantee before a figure is returned.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from peft import PeftModel

from taciturn.accounting.calibrate import check_delta, default_delta, noise_multiplier
from taciturn.accounting.events import event_to_dict
from taciturn.data.declared import DeclaredRows
from taciturn.data.labelled import LabelledTexts, read_labelled
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.data.unit import unit_name
from taciturn.engine.evaluation.classifier import (
    Downstream,
    TextClassifier,
    hits,
    macro_f1,
    unit_means,
)
from taciturn.engine.evaluation.features import Embedder
from taciturn.engine.evaluation.likelihood import Likelihood, UnitScores, unit_scores
from taciturn.engine.evaluation.preferences import Preferences, UnitPreferences, preferences
from taciturn.engine.evaluation.quality import (
    Comparison,
    Quality,
    ScoredTexts,
    TextStatistics,
    compare,
    unit_texts,
)
from taciturn.engine.evaluation.release import (
    ReleasedGain,
    ReleasedPreferences,
    ReleasedScore,
    release,
    release_shares,
)
from taciturn.engine.evaluation.released_figures import downstream_figures, model_gain, model_score
from taciturn.engine.generation.sample import sample
from taciturn.engine.model.load import LoadedModel
from taciturn.engine.privacy.rng import SecureStream
from taciturn.errors import SpecError
from taciturn.planning.plan import max_tokens, record_tokens
from taciturn.reports.figures import Release, ReleasedDownstream, ReleasedEvaluation
from taciturn.reports.privacy import PrivateStep
from taciturn.spec import (
    AssessmentSpec,
    DataSpec,
    DownstreamSpec,
    EvaluateSpec,
    SampleSpec,
    is_whole,
)

Basis = Literal["public", "private, exact: for the owner's eyes only", "differential privacy"]


class Ledger(Protocol):
    """Account that private steps are charged to, and place for figures that may be shown."""

    def check(self, unit: str) -> None:
        """Raise unless a step about this unit could be charged."""
        ...

    def look(self, delta: float) -> None:
        """Write down that exact figures of private units are about to be shown to their owner.

        `delta` is what a guarantee about as many units would leave out.
        """
        ...

    def charge(self, step: PrivateStep, delta: float, fingerprint: str) -> None:
        """Add a step to what the model has spent, for good.

        `delta` is what the step was asked to leave out; `fingerprint` names its data.
        """
        ...

    def keep(self, figures: ReleasedEvaluation | ReleasedDownstream) -> None:
        """Put figures that are public, or charged, beside the model."""
        ...


_MOST_RECORDS = 10_000_000


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is judged, and the base model beside it."""

    base: LoadedModel
    fitted: Any | None
    base_model: Callable[[], AbstractContextManager[Any]]
    delta: float | None
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures: how well base and fitted model predict a text, and how like it they write.

    Attributes:
        base: of the base model.
        fitted: of the fitted model.
        basis: whether the figures are of public text, exact figures of private rows that must not
            leave the owner, or released with noise.
        epsilon: what the release cost by itself; None if nothing was charged.
        delta: goes with epsilon.
        gain: by how much the fitted model is better, where both were released with noise: from
            each unit's own difference, with less noise than the difference of the two scores.
        quality: of samples, where they were asked for.
        preferences: of pairs of answers, whose chosen ones the other figures are about.
    """

    base: Likelihood | ReleasedScore
    fitted: Likelihood | ReleasedScore | None
    basis: Basis = "public"
    epsilon: float | None = None
    delta: float | None = None
    quality: Quality | None = None
    gain: ReleasedGain | None = None
    preferences: Preferences | ReleasedPreferences | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """The noise of one release, and what it promises by itself."""

    epsilon: float
    delta: float
    noise_multiplier: float


def evaluate(
    subject: Subject,
    data: object,
    spec: EvaluateSpec,
    embedder: Embedder | None,
    budget: Budget | None = None,
) -> Evaluation:
    """Judge the subject on `data`; see LLM.evaluate.

    Args:
        data: whatever `fit` takes, or DeclaredRows, whose number of units is the declared one.
        budget: the noise, where a gateway has calibrated it; by default that of the spec.
    """
    basis = _basis(spec, subject.ledger)
    with _prepared(subject, data, spec) as dataset:
        n_units = data.n_units if isinstance(data, DeclaredRows) else dataset.n_units
        budget = budget or budget_of(spec, subject.delta, n_units)
        judged = _preferences(subject, dataset, spec) if spec.pairs else None
        limit = max_tokens(spec, subject.base.context_length)
        scores = [judged.base, judged.fitted] if judged else _scores(subject, dataset, limit)
        compared = None
        if spec.samples:
            compared = _compared(subject, dataset, scores[0], spec, embedder)
        if budget is None:
            _look(subject.ledger, basis, n_units)
            totals = [score.total() for score in scores]
            quality = compared and compared[0].quality(compared[0].reference_K, compared[1])
            fitted = totals[-1] if totals[1:] else None
            exact = None if judged is None else judged.total()
            result = Evaluation(totals[0], fitted, basis, quality=quality, preferences=exact)
        else:
            declared = n_units if isinstance(data, DeclaredRows) else None
            shares_U = None if judged is None else judged.shares_U
            result = _released(subject, dataset, spec, budget, scores, compared, declared, shares_U)
        _keep(subject.ledger, result, n_units)
        return result


def _preferences(
    subject: Subject, dataset: TokenizedDataset, spec: EvaluateSpec
) -> UnitPreferences:
    """Judge pairs of answers; raises SpecError for a model that has no adapter."""
    if not isinstance(subject.fitted, PeftModel):
        raise SpecError(
            "pairs of answers are judged by how a fitted model's adapter has moved its base, and "
            "this model has none; fit one, or judge text with text_field"
        )
    limit = record_tokens(spec, subject.base.context_length)
    return preferences(subject.fitted, dataset, limit)


def downstream(
    subject: Subject, synthetic: object, test: object, spec: DownstreamSpec
) -> Downstream:
    """Train a classifier on `synthetic`, test it on `test`; see LLM.downstream."""
    basis = _basis(spec, subject.ledger)
    own = DataSpec(text_field=spec.text_field)
    with tempfile.TemporaryDirectory() as folder:
        train = read_labelled(synthetic, own, spec.label_field, Path(folder))
        real = read_labelled(test, _data_spec(spec), spec.label_field, Path(folder))
    classifier = TextClassifier.train(train.texts, train.labels)
    predicted = classifier.predict(real.texts)
    n_units = int(real.unit_of_N[-1]) + 1
    budget = budget_of(spec, subject.delta, n_units)
    results = [
        hits(predicted, real.labels),
        hits([classifier.majority] * len(predicted), real.labels),
    ]
    if budget is None:
        _look(subject.ledger, basis, n_units)
        accuracy, majority = (float(result.mean()) for result in results)
        score = macro_f1(predicted, real.labels)
        exact = Downstream(accuracy, majority, score, 0.0, len(train.texts))
        if basis == "public":
            release = Release(basis=basis, n_units=n_units)
            subject.ledger.keep(downstream_figures(exact, release))
        return exact
    unit_of_N = torch.from_numpy(real.unit_of_N)
    (accuracy, majority), std, event = release_shares(
        [unit_means(result, unit_of_N) for result in results],
        noise_multiplier=budget.noise_multiplier,
        stream=SecureStream.fresh(),
    )
    step = _step("downstream", event, spec, n_units)
    subject.ledger.charge(step, budget.delta, _fingerprint(real))
    noised = Downstream(accuracy, majority, None, std, len(train.texts))
    release = Release(
        basis="differential privacy", n_units=n_units, epsilon=budget.epsilon, delta=budget.delta
    )
    subject.ledger.keep(downstream_figures(noised, release))
    return noised


def in_turn(prompts: Sequence[str], n: int) -> list[int]:
    """Return the prompt's index of each of `n` records; raises SpecError if there is none."""
    if not prompts:
        raise SpecError("prompts must be a list, or a mapping of labels, with at least one prompt")
    if not (is_whole(n) and 1 <= n <= _MOST_RECORDS):
        raise SpecError(
            f"n={n!r:.40} must be a whole number from 1 to {_MOST_RECORDS}; say how many records "
            "to write"
        )
    return [index % len(prompts) for index in range(n)]


def _released(
    subject: Subject,
    dataset: TokenizedDataset,
    spec: EvaluateSpec,
    budget: Budget,
    scores: list[UnitScores],
    compared: tuple[Comparison, tuple[TextStatistics, ...]] | None,
    declared_units: int | None,
    preferred_U: torch.Tensor | None,
) -> Evaluation:
    n_units = declared_units or dataset.n_units

    def charge(event: Any) -> None:
        step = _step("evaluate", event, spec, n_units)
        subject.ledger.charge(step, budget.delta, dataset.fingerprint)

    released = release(
        scores,
        None if compared is None else torch.from_numpy(compared[0].reference_U),
        0 if compared is None else len(compared[0].centres_KD),
        loss_bound=spec.loss_bound or math.log(subject.base.vocabulary),
        noise_multiplier=budget.noise_multiplier,
        stream=SecureStream.fresh(),
        declared_units=declared_units,
        preferred_U=preferred_U,
        before=charge,
    )
    return Evaluation(
        released.scores[0],
        released.scores[-1] if released.scores[1:] else None,
        "differential privacy",
        budget.epsilon,
        budget.delta,
        compared and compared[0].quality(released.shares_K, compared[1]),
        released.gain,
        released.preferences,
    )


def _keep(ledger: Ledger, result: Evaluation, n_units: int) -> None:
    """Keep what may be shown; exact figures of private rows are not."""
    if result.basis == "private, exact: for the owner's eyes only":
        return
    mauve, mauve_base = None, None
    if result.quality is not None:
        mauve, mauve_base = result.quality.mauve, result.quality.mauve_base
    ledger.keep(
        ReleasedEvaluation(
            basis=result.basis,
            n_units=n_units,
            epsilon=result.epsilon,
            delta=result.delta,
            base=model_score(result.base, mauve_base),
            fitted=None if result.fitted is None else model_score(result.fitted, mauve),
            gain=model_gain(result.base, result.fitted, result.gain),
            preferred=None if result.preferences is None else result.preferences.accuracy,
            preferred_std=getattr(result.preferences, "accuracy_std", 0.0),
        )
    )


def _look(ledger: Ledger, basis: Basis, n_units: int) -> None:
    if basis != "public":
        ledger.look(default_delta(n_units))


def _basis(spec: AssessmentSpec, ledger: Ledger) -> Basis:
    if spec.target_epsilon is not None:
        ledger.check(unit_name(spec))
        return "differential privacy"
    return "private, exact: for the owner's eyes only" if spec.show_private else "public"


def budget_of(spec: AssessmentSpec, delta: float | None, n_units: int) -> Budget | None:
    """The noise that the spec's epsilon asks for, for one release about every unit."""
    if spec.target_epsilon is None:
        return None
    own_delta = spec.delta or delta or default_delta(n_units)
    check_delta(own_delta, n_units)
    noise = noise_multiplier(
        target_epsilon=spec.target_epsilon, delta=own_delta, sampling_probability=1.0, steps=1
    )
    return Budget(spec.target_epsilon, own_delta, noise)


def _step(purpose: str, event: Any, spec: AssessmentSpec, n_units: int) -> PrivateStep:
    return PrivateStep(
        purpose=purpose,
        dp_event=event_to_dict(event),
        privacy_unit=unit_name(spec),
        max_records_per_unit=spec.max_records_per_unit,
        n_units=n_units,
    )


def _data_spec(spec: AssessmentSpec) -> DataSpec:
    """The data part; without a guarantee every record is judged for itself."""
    fields = {name: getattr(spec, name) for name in DataSpec.model_fields}
    if spec.target_epsilon is None:
        fields["privacy_unit"] = None
    return DataSpec(**fields)


@contextmanager
def _prepared(subject: Subject, data: object, spec: EvaluateSpec) -> Iterator[TokenizedDataset]:
    limit = max_tokens(spec, subject.base.context_length)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "data"
        base = subject.base
        yield prepare(
            data,
            _data_spec(spec),
            base.tokenizer,
            limit,
            target,
            seed=0,
            vocabulary=base.vocabulary,
        )


def _scores(subject: Subject, dataset: TokenizedDataset, limit: int) -> list[UnitScores]:
    """Score the base model, and the fitted one if there is one."""
    with subject.base_model() as model:
        scores = [unit_scores(model, dataset, limit)]
    if subject.fitted is not None:
        scores.append(unit_scores(subject.fitted, dataset, limit))
    return scores


def _compared(
    subject: Subject,
    dataset: TokenizedDataset,
    base_scores: UnitScores,
    spec: EvaluateSpec,
    embedder: Embedder | None,
) -> tuple[Comparison, tuple[TextStatistics, ...]]:
    """Samples of both models against the reference, and statistics of what may be counted."""
    private = spec.target_epsilon is not None
    with subject.base_model() as model:
        base = _samples(subject, model, spec)
        samples = base if subject.fitted is None else _samples(subject, subject.fitted, spec)
        judged, judged_base = (_judged(subject, model, texts, spec) for texts in (samples, base))
    references = unit_texts(dataset, subject.base.tokenizer)
    reference = ScoredTexts.of(references, base_scores)
    comparison = compare(judged, judged_base, reference, private=private, embedder=embedder)
    counted = [samples, base] if private else [samples, base, references]
    return comparison, tuple(TextStatistics.of(texts) for texts in counted)


def _samples(subject: Subject, model: Any, spec: EvaluateSpec) -> list[str]:
    options = SampleSpec(max_new_tokens=spec.max_new_tokens, n=spec.samples, seed=spec.seed)
    base = subject.base
    rows = sample(model, base.tokenizer, [""], options, base.context_length)
    return [row.text for row in rows]


def _judged(subject: Subject, model: Any, texts: Sequence[str], spec: EvaluateSpec) -> ScoredTexts:
    """Texts with the base model's nats; an empty one stands as a full stop."""
    nonempty = [text if text.strip() else "." for text in texts]
    limit = max_tokens(spec, subject.base.context_length)
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare(
            nonempty, DataSpec(), subject.base.tokenizer, limit, Path(folder) / "x", 0
        )
        return ScoredTexts.of(nonempty, unit_scores(model, dataset, limit))


def _fingerprint(data: LabelledTexts) -> str:
    content = json.dumps([data.texts, data.labels, data.unit_of_N.tolist()])
    return hashlib.sha256(content.encode()).hexdigest()

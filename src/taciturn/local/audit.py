"""The one-run audit of a fitted model: canaries scored, guessed about, and a verdict in words.

The canaries' texts and coins were drawn before the fit, independently of every row, so what an
audit finds is post-processing of the model and may be released.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel

from taciturn._version import __version__
from taciturn.accounting.calibrate import default_delta
from taciturn.accounting.events import event_from_dict
from taciturn.accounting.tradeoff import Tradeoff, tradeoff
from taciturn.data.tokens.encoding import PAIRS
from taciturn.data.tokens.planted import CANARIES, Planted, own_words
from taciturn.engine.auditing.bounds import (
    Guesses,
    can_show,
    epsilon_lower_bound,
    fewest_canaries,
    gaussian_epsilon_lower_bound,
    guess,
    guess_numbers,
)
from taciturn.engine.auditing.scores import auc, nats, rewards, shares
from taciturn.errors import DataError, DataNotFoundError, SpecError
from taciturn.local.evaluate import Subject
from taciturn.reports.privacy import (
    AttackerLimit,
    Audit,
    CanaryReport,
    GuessRound,
    PrivacyReport,
    ScoreHistogram,
)
from taciturn.reports.verdict import verdict
from taciturn.spec import AuditSpec

METHOD = (
    "one run, {score} of canaries (Steinke, Nasr, Jagielski 2023, theorem 5.2; "
    "Mahloujifar, Melis, Chaudhuri 2024)"
)
_FALSE_ALARMS = (0.001, 0.01)
_BINS = 24


def check_canaries(report: PrivacyReport | None, confidence: float) -> CanaryReport:
    """The canaries of a model that can be audited; raises SpecError if it cannot be."""
    if report is None:
        raise SpecError(
            "a base model has no canaries, so there is nothing to audit; fit it with canaries=500"
        )
    if report.canaries is None:
        raise SpecError(
            "this model was fitted without canaries, which an audit guesses about; fit with "
            "canaries=500 (--canaries 500)"
        )
    delta, number = _delta(report), report.canaries.number
    if not can_show(number, delta, confidence):
        fewest = fewest_canaries(delta, confidence)
        if fewest is None:
            raise SpecError(
                f"delta={delta:g} is too large for a bound at confidence {confidence:g}; lower the "
                "confidence, or fit with a smaller delta"
            )
        raise SpecError(
            f"{number} canaries can give no bound at confidence {confidence:g}, even if all "
            f"guesses are right: {fewest} could; fit with more of them, or lower the confidence"
        )
    return report.canaries


def find_canaries(expected: CanaryReport, folders: Sequence[Path]) -> Planted:
    """Read what was planted, from the first of the private `folders` that holds it.

    Raises:
        DataNotFoundError: none does.
        DataError: the file is truncated, was edited, or belongs to another fit.
    """
    folder = next((path for path in folders if (path / CANARIES).is_file()), None)
    if folder is None:
        raise DataNotFoundError(
            f"{CANARIES}, which says what the canaries were, is not in the model's private folder "
            f"({', '.join(map(str, folders)) or 'there is none'}); audit where the model was fitted"
        )
    planted = Planted.read(folder)
    if planted.commitment != expected.commitment:
        raise DataError(
            f"{folder / CANARIES} was edited, or belongs to another fit: its SHA-256 is not that "
            "of the privacy report; take the file that the fit wrote"
        )
    return planted


def audit(subject: Subject, report: PrivacyReport, planted: Planted, spec: AuditSpec) -> Audit:
    """Guess which canaries were in, and say what the right guesses prove; see LLM.audit."""
    scores_N = _scores(subject, planted)
    included_N = planted.units.included_N
    games = [guess(scores_N, included_N, number) for number in guess_numbers(len(scores_N))]
    delta = _delta(report)
    rounds = _rounds(games, delta, spec.confidence)
    best = max(rounds, key=lambda bound: bound.epsilon_lower_bound)
    limits = None if report.dp_event is None else tradeoff(event_from_dict(report.dp_event))
    result = Audit(
        threat_model="black box",
        method=METHOD.format(score="reward" if planted.format in PAIRS else "loss"),
        canaries=len(scores_N),
        canary_kind=planted.units.kind,
        canary_commitment=planted.commitment,
        confidence=spec.confidence,
        rounds=rounds,
        guesses=best.guesses,
        correct=best.correct,
        epsilon_lower_bound=best.epsilon_lower_bound,
        gaussian_epsilon_lower_bound=gaussian_epsilon_lower_bound(games, delta, spec.confidence),
        auc=auc(scores_N, included_N),
        promised_epsilon=report.epsilon,
        delta=delta,
        largest_advantage=None if limits is None else limits.advantage,
        attacker_limits=() if limits is None else _limits(limits),
        histogram=_histogram(scores_N, included_N),
        verdict="",
        taciturn_version=__version__,
    )
    return result.model_copy(update={"verdict": verdict(result, report)})


def _scores(subject: Subject, planted: Planted) -> NDArray[np.float64]:
    limit = planted.max_tokens
    with tempfile.TemporaryDirectory() as folder:
        data = own_words(planted, subject.base.tokenizer, Path(folder))
        if planted.format in PAIRS:
            if not isinstance(subject.fitted, PeftModel):
                raise SpecError(
                    "canaries that are pairs of answers are judged by how the model's adapter has "
                    "moved its base, and this model has none; audit the folder of the fit"
                )
            return rewards(subject.fitted, data, 2 * limit)
        with subject.base_model() as model:
            base_N = nats(model, data, limit)
        return shares(base_N, nats(subject.fitted, data, limit))


def _rounds(games: Sequence[Guesses], delta: float, confidence: float) -> tuple[GuessRound, ...]:
    """Each number of guesses with its own bound, at an even share of 1 - confidence."""
    share = 1 - (1 - confidence) / len(games)
    return tuple(
        GuessRound(
            guesses=game.count,
            correct=game.correct,
            epsilon_lower_bound=epsilon_lower_bound([game], delta, share),
        )
        for game in games
    )


def _delta(report: PrivacyReport) -> float:
    """The promise's; for a model that promises nothing, the one it would have had."""
    return default_delta(report.n_units) if report.delta is None else report.delta


def _limits(curve: Tradeoff) -> tuple[AttackerLimit, ...]:
    return tuple(
        AttackerLimit(false_positive_rate=rate, true_positive_rate=curve.true_positive_rate(rate))
        for rate in _FALSE_ALARMS
    )


def _histogram(scores_N: NDArray[np.float64], included_N: NDArray[np.bool_]) -> ScoreHistogram:
    edges = np.histogram_bin_edges(scores_N, _BINS)
    inside, outside = (np.histogram(scores_N[mask], edges)[0] for mask in (included_N, ~included_N))
    return ScoreHistogram(
        edges=tuple(edges.tolist()),
        included=tuple(inside.tolist()),
        excluded=tuple(outside.tolist()),
    )

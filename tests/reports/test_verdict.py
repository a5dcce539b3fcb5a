"""A verdict says what is promised, found, possible at most and left unsaid; or it shouts."""

from __future__ import annotations

from typing import Any

import pytest

from support import released_files
from taciturn.reports.privacy import (
    AttackerLimit,
    Audit,
    GuessRound,
    ScoreHistogram,
)
from taciturn.reports.verdict import BROKEN, verdict

REPORT = released_files.report(
    delta=1e-5, privacy_unit="patient_id", n_units=1000, steps=10, expected_batch_size=100
)
NOTHING = REPORT.model_copy(update={"guarantee": "none", "epsilon": None, "delta": None})


def audit(**fields: Any) -> Audit:
    limits = (
        AttackerLimit(false_positive_rate=0.001, true_positive_rate=0.0123),
        AttackerLimit(false_positive_rate=0.01, true_positive_rate=0.0456),
    )
    known: dict[str, Any] = {
        "threat_model": "black box",
        "method": "one run",
        "canaries": 500,
        "canary_kind": "secret",
        "canary_commitment": "00",
        "confidence": 0.95,
        "rounds": (GuessRound(guesses=250, correct=170, epsilon_lower_bound=0.4),),
        "guesses": 250,
        "correct": 170,
        "epsilon_lower_bound": 0.4,
        "gaussian_epsilon_lower_bound": 0.6,
        "auc": 0.6,
        "promised_epsilon": 3.0,
        "delta": 1e-5,
        "largest_advantage": 0.3,
        "attacker_limits": limits,
        "histogram": ScoreHistogram(edges=(0, 1), included=(1,), excluded=(2,)),
        "verdict": "",
        "taciturn_version": "0.1.0",
    }
    return Audit(**{**known, **fields})


def test_within_the_promise() -> None:
    text = verdict(audit(), REPORT)
    promised, found, possible, unsaid = text.split("\n\n")
    assert "epsilon 3 at delta 1e-05, for one unit (patient_id)" in promised
    assert "170 of 250 guesses" in found
    assert "at confidence 0.95, epsilon is at least 0.4. That is within the promise." in found
    assert "right in 65.0% of all cases" in possible
    assert "at most 1.2% at 0.1% false alarms, or 4.6% at 1.0% false alarms" in possible
    assert "a better attack may find more, up to what is promised" in unsaid
    assert BROKEN not in text


def test_more_than_the_promise() -> None:
    found = audit(epsilon_lower_bound=3.01)
    assert found.refuted
    text = verdict(found, REPORT)
    assert BROKEN in text
    assert "with probability 0.05 at most" in text
    assert "Do not pass this model on" in text
    assert "within the promise" not in text
    assert not audit(epsilon_lower_bound=3.0).refuted


def test_nothing_found() -> None:
    text = verdict(audit(epsilon_lower_bound=0.0), REPORT)
    assert "proves no epsilon above 0 at confidence 0.95" in text
    assert "within the promise" not in text


@pytest.mark.parametrize("bound", [0.0, 5.0])
def test_nothing_promised(bound: float) -> None:
    fields: dict[str, Any] = {"promised_epsilon": None, "largest_advantage": None}
    found = audit(**fields, attacker_limits=(), epsilon_lower_bound=bound)
    assert not found.refuted
    text = verdict(found, NOTHING)
    assert "Promised: nothing" in text
    assert "Nothing limits what an attacker can find out" in text
    assert "a low bound is no sign that this model is safe" in text
    assert "within the promise" not in text

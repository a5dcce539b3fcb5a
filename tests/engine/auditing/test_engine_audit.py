"""One run proves much of what the real engine promises and not more; of a broken one, more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mutants import broken_mechanisms as mechanisms
from mutants import broken_steps as steps
from mutants.variants import Step
from taciturn.engine.auditing.bounds import contradicts
from taciturn.engine.auditing.claim import DpSgdRun, PrivacyProfile
from taciturn.engine.auditing.engine_audit import EngineAudit, audit_engine
from taciturn.engine.auditing.gradient_canaries import Engine, EngineSettings
from taciturn.engine.privacy.forms import Form
from taciturn.engine.training.batch import BatchLimits

pytestmark = pytest.mark.statistical

CHANCE = 1e-9
"""Of one audit here to refute an honest engine; they have no fixed seeds."""

ALL_IN_ONE = EngineSettings(DpSgdRun(1.0, 1.0, 1))
FEW_AT_ONCE = BatchLimits(tokens=32, units=7, max_tokens=2)
PARTS = BatchLimits(tokens=4, units=7, max_tokens=2)
SETTINGS: dict[str, tuple[EngineSettings, int]] = {
    # name: (settings, canaries)
    "all units in one step": (ALL_IN_ONE, 10_000),
    "all units in four steps": (EngineSettings(DpSgdRun(1.0, 2.0, 4)), 2000),
    "samples": (EngineSettings(DpSgdRun(0.1, 0.8, 10)), 2000),
    "many records": (replace(ALL_IN_ONE, records_per_unit=3), 2000),
    "records in parts": (replace(ALL_IN_ONE, records_per_unit=5, limits=PARTS), 500),
    "small microbatches": (replace(ALL_IN_ONE, limits=FEW_AT_ONCE), 2000),
    "instantiated": (replace(ALL_IN_ONE, form=Form.INSTANTIATE), 1000),
    "factors": (replace(ALL_IN_ONE, form=Form.FACTORS), 2000),
    "another clip norm": (replace(ALL_IN_ONE, l2_clip_norm=1e-3), 2000),
}


def refutes(audit: EngineAudit, chance: float) -> bool:
    """Whether so many right guesses have less than this chance, with an engine that is honest."""
    return contradicts(audit.guesses, PrivacyProfile.of(audit.run), chance)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_real_engine_is_not_refuted(name: str) -> None:
    settings, canaries = SETTINGS[name]
    audit = audit_engine(settings, canaries=canaries)
    assert audit.epsilon == audit.run.epsilon(1e-5)
    assert not refutes(audit, CHANCE)


def test_the_bound_is_worth_something() -> None:
    """It is 65% of epsilon, give or take 3 (bench/auditor.py): 45% is six deviations below."""
    audit = audit_engine(ALL_IN_ONE)
    assert audit.guesses.count == 1000
    assert audit.epsilon_lower_bound > 0.45 * audit.epsilon


def test_sampling_probability_is_a_whole_number_of_canaries() -> None:
    audit = audit_engine(EngineSettings(DpSgdRun(64 / 3000, 2.0, 2)), canaries=1000)
    canaries = audit.guesses.canaries
    assert abs(canaries - 1000) < 50
    assert audit.run.sampling_probability * canaries == pytest.approx(
        round(audit.run.sampling_probability * canaries)
    )
    assert audit.run.sampling_probability == pytest.approx(64 / 3000, rel=2e-3)


def first_six(step: Step) -> Step:
    """Mutants know neither forms nor ranks."""
    return lambda *arguments: step(*arguments[:6])


QUIET = replace(ALL_IN_ONE, run=DpSgdRun(1.0, 2.0, 1))
BROKEN: dict[str, tuple[Engine, EngineSettings, int]] = {
    # mutant: (engine, settings, canaries)
    "half of sigma": (Engine(mechanism=mechanisms.HalfNoise), QUIET, 10_000),
    "no noise": (Engine(mechanism=mechanisms.NoNoise), QUIET, 1000),
    "no clip": (
        Engine(mechanism=mechanisms.NoClip),
        replace(QUIET, form=Form.INSTANTIATE),
        1000,
    ),
    "double draw": (Engine(step=first_six(steps.step_with_two_draws)), QUIET, 8000),
    "records clipped, not units": (
        Engine(step=first_six(steps.step_by_record)),
        replace(QUIET, records_per_unit=8),
        1000,
    ),
    "parts of a unit clipped": (
        Engine(step=first_six(steps.step_that_clips_parts)),
        replace(QUIET, records_per_unit=15, limits=PARTS),
        300,
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine_is_refuted_every_time(name: str) -> None:
    """Three audits of three: an honest engine would be as unlucky once in 8,000 times."""
    engine, settings, canaries = BROKEN[name]
    audits = [audit_engine(settings, canaries=canaries, engine=engine) for _ in range(3)]
    assert all(audit.refuted for audit in audits), [audit.guesses for audit in audits]

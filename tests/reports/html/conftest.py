"""Reports and released figures as a fitted model has them."""

from __future__ import annotations

import pytest
from dp_accounting.dp_event import DpEvent, GaussianDpEvent

from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.reports.figures import (
    Figure,
    ModelScore,
    ReleasedDownstream,
    ReleasedEvaluation,
    ReleasedFigures,
)
from taciturn.reports.privacy import Audit, PrivacyReport, PrivateStep, ScoreHistogram
from taciturn.reports.spending import with_steps

RUN = {"sampling_probability": 0.12, "noise_multiplier": 1.6, "steps": 60}


def private_step(purpose: str, event: DpEvent) -> PrivateStep:
    return PrivateStep(
        purpose=purpose,
        dp_event=event_to_dict(event),
        privacy_unit="patient_id",
        max_records_per_unit=8,
        n_units=1234,
        dataset_commitment="ab12" * 16,
    )


@pytest.fixture
def report() -> PrivacyReport:
    """Of one private fit."""
    event = dpsgd_event(**RUN)
    bare = PrivacyReport(
        guarantee="differential privacy",
        epsilon=0.0,
        delta=1e-5,
        privacy_unit="patient_id",
        max_records_per_unit=8,
        n_units=1234,
        mechanism="DP-SGD: exact Poisson sampling of units",
        noise_multiplier=RUN["noise_multiplier"],
        sampling_probability=RUN["sampling_probability"],
        steps=60,
        l2_clip_norm=0.001,
        expected_batch_size=148,
        accountant="test accountant",
        base_model="some/base",
        base_model_sha256={"model.safetensors": "cd" * 32},
        libraries={"torch": "2.13.0", "python": "3.11.7"},
        trainable_parameters=34567,
        taciturn_version="0.1.0",
    )
    return with_steps(bare, [private_step("fit", event)])


@pytest.fixture
def spent_more(report: PrivacyReport) -> PrivacyReport:
    """After an evaluation and a further fit."""
    evaluation = private_step("evaluate", GaussianDpEvent(8.0))
    further = private_step("fit", dpsgd_event(**{**RUN, "noise_multiplier": 3.2}))
    return with_steps(report, [*report.spent, evaluation, further])


@pytest.fixture
def unlimited(report: PrivacyReport) -> PrivacyReport:
    return PrivacyReport(
        guarantee="none",
        privacy_unit="patient_id",
        n_units=1234,
        mechanism="none (ordinary fine-tuning)",
        steps=400,
        expected_batch_size=16,
        base_model=report.base_model,
        trainable_parameters=34567,
        taciturn_version="0.1.0",
    )


def score(nats: float, accuracy: float, std: float, mauve: float | None) -> ModelScore:
    return ModelScore(
        nats_per_token=Figure(value=nats, std=std),
        token_accuracy=Figure(value=accuracy, std=std / 5),
        mauve=mauve,
    )


@pytest.fixture
def figures() -> ReleasedFigures:
    """A public evaluation, a private one, and a private downstream test."""
    return ReleasedFigures(
        evaluations=(
            ReleasedEvaluation(
                basis="public",
                n_units=4321,
                base=score(4.708, 0.231, 0.0, 0.11),
                fitted=score(4.285, 0.287, 0.0, 0.43),
            ),
            ReleasedEvaluation(
                basis="differential privacy",
                n_units=300,
                epsilon=0.5,
                delta=1e-5,
                base=score(4.69, 0.23, 0.06, None),
                fitted=score(4.31, 0.281, 0.06, None),
            ),
        ),
        downstream=(
            ReleasedDownstream(
                basis="differential privacy",
                n_units=300,
                epsilon=0.4,
                delta=1e-5,
                accuracy=Figure(value=0.71, std=0.02),
                majority_accuracy=Figure(value=0.52, std=0.02),
                n_train=2000,
            ),
        ),
    )


@pytest.fixture
def audit(report: PrivacyReport) -> Audit:
    """Of the fit of `report`; it keeps its promise."""
    edges = (-1.0, 0.0, 1.0, 2.0)
    return Audit(
        threat_model="black box",
        method="one run (Steinke et al. 2023)",
        canaries=500,
        canary_kind="new-token",
        canary_commitment="cd" * 32,
        confidence=0.95,
        rounds=(),
        guesses=250,
        correct=162,
        epsilon_lower_bound=0.61,
        gaussian_epsilon_lower_bound=1.3,
        auc=0.7,
        promised_epsilon=report.epsilon,
        delta=1e-5,
        largest_advantage=None,
        attacker_limits=(),
        histogram=ScoreHistogram(edges=edges, included=(10, 140, 100), excluded=(90, 150, 10)),
        verdict="",
        taciturn_version="0.1.0",
    )

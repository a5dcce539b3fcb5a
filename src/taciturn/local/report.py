"""The public record of a finished fit: what ran, on what, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from taciturn._version import __version__
from taciturn.accounting.compose import ACCOUNTANT
from taciturn.accounting.events import event_to_dict
from taciturn.certificate.sign import library_versions
from taciturn.data.tokens.origin import Origin
from taciturn.engine.model.load import LoadedModel
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.training.mechanism import planned_mechanism
from taciturn.planning.plan import TrainingPlan
from taciturn.reports.privacy import PrivacyReport, PrivateStep
from taciturn.reports.spending import with_steps


def privacy_report(
    base: LoadedModel, data: Origin, plan: TrainingPlan, loss: torch.nn.Module
) -> PrivacyReport:
    """Return the record of a finished run: of the data that were prepared, and of what ran."""
    parameters = trainable_parameters(loss)
    trained = sum(value.numel() for value in parameters.values())
    unit = data.privacy_unit
    if plan.privacy is None:
        return PrivacyReport(
            guarantee="none",
            privacy_unit=unit,
            n_units=plan.n_units,
            mechanism="none (ordinary fine-tuning)",
            steps=plan.steps,
            expected_batch_size=plan.batch_size,
            base_model=base.name,
            trainable_parameters=trained,
            taciturn_version=__version__,
            objective=_objective(plan),
        )
    mechanism = planned_mechanism(plan, tuple(parameters))
    return PrivacyReport(
        guarantee="differential privacy",
        epsilon=plan.privacy.epsilon,
        delta=plan.privacy.delta,
        privacy_unit=unit,
        max_records_per_unit=data.spec.max_records_per_unit,
        n_units=plan.n_units,
        mechanism="DP-SGD: exact Poisson sampling of units, per-unit clipping, Gaussian noise",
        noise_multiplier=mechanism.noise_multiplier,
        sampling_probability=mechanism.sampling_probability,
        steps=mechanism.steps,
        l2_clip_norm=mechanism.l2_clip_norm,
        expected_batch_size=mechanism.expected_batch_size,
        dp_event=event_to_dict(mechanism.dp_event),
        accountant=ACCOUNTANT,
        base_model=base.name,
        trainable_parameters=trained,
        taciturn_version=__version__,
        objective=_objective(plan),
    )


def _objective(plan: TrainingPlan) -> str | None:
    if plan.beta is None:
        return None
    return f"preferences between two answers (DPO), beta={plan.beta:g}"


def with_costs(
    report: PrivacyReport,
    spent: Iterable[PrivateStep],
    earlier: PrivacyReport | None,
    commitment: str,
) -> PrivacyReport:
    """Return the report of this fit with what was spent before it."""
    report = report.model_copy(update={"libraries": library_versions()})
    if report.delta is not None and earlier is not None and earlier.delta is not None:
        report = report.model_copy(update={"delta": min(report.delta, earlier.delta)})
    return with_steps(report, [*spent, *_fit_step(report, commitment)])


def _fit_step(report: PrivacyReport, commitment: str) -> list[PrivateStep]:
    if report.dp_event is None:
        return []
    step = PrivateStep(
        purpose="fit",
        dp_event=report.dp_event,
        privacy_unit=report.privacy_unit,
        max_records_per_unit=report.max_records_per_unit or 1,
        n_units=report.n_units,
        dataset_commitment=commitment,
    )
    return [step]

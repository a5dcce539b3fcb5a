"""The mechanism of a plan: the one object that samples, clips, noises and accounts."""

from __future__ import annotations

from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.errors import PrivacyParameterError
from taciturn.planning.plan import TrainingPlan


def planned_mechanism(plan: TrainingPlan, parameter_names: tuple[str, ...]) -> DpSgdMechanism:
    """Mechanism of a private plan; raises PrivacyParameterError for a plan without privacy."""
    if plan.privacy is None:
        raise PrivacyParameterError('target_epsilon="unlimited" has no mechanism')
    return DpSgdMechanism(
        n_units=plan.n_units,
        expected_batch_size=plan.batch_size,
        steps=plan.steps,
        noise_multiplier=plan.privacy.noise_multiplier,
        l2_clip_norm=plan.privacy.l2_clip_norm,
        parameter_names=parameter_names,
    )
